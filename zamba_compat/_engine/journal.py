"""What has been replaced, in order, and how to undo it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .declare import Adapter, Patch
from .targets import MISSING, Slot, chain, unwrap


class Record:
    """One replacement: what a slot held itself before (or MISSING) and what it was given."""

    __slots__ = ("adapter", "installed", "patch", "saved", "slot")

    def __init__(self, adapter: Adapter, patch: Patch, slot: Slot, saved: Any, installed: Any) -> None:
        self.adapter, self.patch, self.slot = adapter, patch, slot
        self.saved, self.installed = saved, installed

    def undo(self) -> bool:
        """Put back what was there, unless something else has been put there since."""
        if self.slot.raw is not self.installed:
            return False
        self.slot.put(self.saved)
        return True


class Journal:
    """The replacements in force, and those that other code covered before they could be undone.

    It has no lock of its own.
    """

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.covered: list[Record] = []

    def has(self, adapter: Adapter, slot: Slot) -> bool:
        """Whether an adapter's replacement is in force in a slot, under whichever target it was reached."""
        return any(record.adapter is adapter and record.slot == slot for record in self.records)

    def original(self, slot: Slot) -> Any:
        """What a slot holds itself, without what it took over from a slot that was patched before.

        A module that imports a function by name after it was replaced elsewhere holds the replacement.
        """
        raw = slot.raw
        if any(record.slot == slot for record in self.records):
            return raw
        while raw is not MISSING:
            source = next((record for record in self.records if record.installed is raw), None)
            if source is None or source.saved is MISSING:
                break
            raw = source.saved
        return raw

    def resume(self, adapter: Adapter, slot: Slot) -> bool:
        """Take up again a replacement that could not be undone and is still in use below what covers it."""
        for record in self.covered:
            if record.adapter is adapter and record.slot == slot and slot.raw is not MISSING:
                function = unwrap(record.installed, slot)[0]
                if any(link is function for link in chain(unwrap(slot.raw, slot)[0])):
                    self.covered.remove(record)
                    self.records.append(record)
                    return True
        return False

    def revert(self, chosen: Callable[[Record], bool]) -> list[Record]:
        """Undo the chosen records, last one first, and return those that other code has covered."""
        undone = [record for record in self.covered + self.records if chosen(record)]
        kept = [record for record in reversed(undone) if not record.undo()][::-1]
        self.records = [record for record in self.records if not chosen(record)]
        self.covered = [record for record in self.covered if not chosen(record)] + kept
        return kept

    def forget(self, module: str) -> None:
        """Drop the records of a module that is executed anew, undoing what its former self still holds."""
        covered = self.covered
        self.revert(lambda record: record.patch.module == module)
        self.covered = [record for record in covered if record.patch.module != module]
