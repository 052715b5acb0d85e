"""JSON as a checkpoint's files must have it: UTF-8, one object, no key twice, nothing absurd."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from zamba_compat.errors import CheckpointError

LIMIT = (
    16 * 2**20
)  # bytes; the header of a checkpoint of 1000 tensors has 0.1 MB, and parsing 94 MB takes 7 s and 1.2 GB
_LONGEST_INTEGER = 20  # digits of 2**64
_REMEDY = "The file is damaged: download or write it again."


def parse_object(data: bytes, *, where: str, what: str) -> dict[str, Any]:
    """The JSON object in `data`.

    Args:
        where: the file, for errors.
        what: what the text is, for errors ("index", "header").

    Raises:
        CheckpointError: not UTF-8, not JSON, nested too deeply, no object, a key twice, or text that cannot be
            written again (lone surrogates).
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
            raise CheckpointError(
                f"The {what} names {listed(twice)} more than once; readers would silently keep the last one.",
                where=where,
                remedy="Write the file again from the model it was saved from.",
            )
        return content

    try:
        content = json.loads(
            data.decode("utf-8"), object_pairs_hook=unique, parse_int=_integer, parse_constant=_no_constant
        )
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    except CheckpointError:
        raise
    except RecursionError as error:
        raise CheckpointError(f"The {what} is nested too deeply.", where=where, remedy=_REMEDY) from error
    except ValueError as error:
        raise CheckpointError(f"The {what} is not readable JSON: {error}.", where=where, remedy=_REMEDY) from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise CheckpointError(f"The {what} is a JSON {kind}, not an object.", where=where, remedy=_REMEDY)
    return content


def listed(names: list[str], most: int = 12) -> str:
    """Names for an error message: quoted, escaped, the first dozen of them."""
    shown = ", ".join(ascii(name) if len(name) < 200 else ascii(name[:200]) + "..." for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_INTEGER:  # int() takes quadratic time
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON number")
