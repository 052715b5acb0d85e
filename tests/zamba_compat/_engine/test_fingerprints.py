"""Fingerprints say what the code does, in every Python alike."""

from __future__ import annotations

import pytest

from support.fake_library import FakeLibrary
from zamba_compat._engine.fingerprints import fingerprint, forget, source

CODE = '''
from typing import Any
import functools

@functools.lru_cache(maxsize=None)
def f(a, /, b: "int" = 1, *args: Any, c=u"x", **kw) -> dict[str, int]:
    """Words."""
    total: int = 0
    other: int
    match a:
        case [x, *rest] if rest:
            total += x
        case {"k": 1, **more}:
            pass
    with open(a) as one, open(b) as two:
        try:
            text = f"{a!r:>{b}} {c=}" "tail"
        except (ValueError, OSError) as error:
            raise RuntimeError from error
    async def inner[T](x): return [y async for y in x if (z := y)]
    return {**kw, "n": -1j, "s": b"\\x00", "e": ..., "big": 10**3}
'''.replace("inner[T]", "inner")


@pytest.fixture(autouse=True)
def fresh() -> None:
    forget()


def test_the_same_under_every_python(library: FakeLibrary) -> None:
    """The value was taken under Python 3.10, 3.11, 3.12 and 3.13: a record of one serves the others."""
    library.write("code", CODE)
    assert fingerprint("zlib_fake.code:f") == "1b9c43ca1de320c2"


def test_nothing_is_imported(library: FakeLibrary) -> None:
    library.write("explodes", "raise SystemError\ndef f(): pass")
    assert fingerprint("zlib_fake.explodes:f") is not None
    assert fingerprint("zlib_fake.explodes:g") is None
    assert fingerprint("zlib_fake.nowhere:f") is None
    assert fingerprint("no_such_package_at_all:f") is None


def test_a_target_in_a_branch_is_found(library: FakeLibrary) -> None:
    library.write("branch", "try:\n    import x\nexcept ImportError:\n    def f(): return 1\nelse:\n    f = None\n")
    assert source("zlib_fake.branch:f") == "# zlib_fake.branch\n    f = None\n"


def test_relative_imports_lead_to_the_definition(library: FakeLibrary) -> None:
    library.write("models/deep", "from ..shared import load as fetch, PreTrained\nclass Model(PreTrained): pass\n")
    assert source("zlib_fake.models.deep:Model.save") == '# zlib_fake.shared\n    def save(self): return "stock save"\n'
    assert fingerprint("zlib_fake.models.deep:fetch") not in (None, fingerprint("zlib_fake.shared:load"))


def test_a_circle_ends(library: FakeLibrary) -> None:
    library.write("one", "from .two import f")
    library.write("two", "from .one import f")
    assert fingerprint("zlib_fake.one:f") is None
