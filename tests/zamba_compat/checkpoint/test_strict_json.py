"""JSON that is refused, and what the error says."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zamba_compat.checkpoint.reading.strict_json import listed, parse_object
from zamba_compat.errors import CheckpointError

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    # No surrogates: they cannot be written again.
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(
    content=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), JSON, max_size=5),
    ascii_only=st.booleans(),
)
def test_valid_objects_are_read_as_json_reads_them(content: dict[str, object], ascii_only: bool) -> None:
    data = json.dumps(content, ensure_ascii=ascii_only).encode()
    assert parse_object(data, where="x", what="index") == content


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b'{"a": 1, "a": 1}', "names 'a' more than once"),
        (b'{"a": {"b": 1, "b": 2}}', "names 'b' more than once"),
        ('{"é": 1}'.encode("latin-1"), "not readable JSON"),
        ('{"a": 1}'.encode("utf-16"), "not readable JSON"),
        (b"", "not readable JSON"),
        (b"{", "not readable JSON"),
        (b"{} {}", "not readable JSON"),
        (b"[1]", "JSON list, not an object"),
        (b"null", "JSON NoneType, not an object"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": -Infinity}', "Infinity is no JSON number"),
        (b'{"a": ' + b"1" * 5000 + b"}", "an integer of 5000 digits"),
        (b'{"a": "\\ud800"}', "not readable JSON"),
        (b'{"\\udfff": 1}', "not readable JSON"),
    ],
)
def test_refused(data: bytes, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        parse_object(data, where="some.json", what="index")
    assert caught.value.where == "some.json"
    assert caught.value.remedy


@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}")])
def test_row_26_deep_nesting(begin: str, end: str) -> None:
    deep = '{"a": ' + begin * 100_000 + "1" + end * 100_000 + "}"
    with pytest.raises(CheckpointError, match="nested too deeply"):
        parse_object(deep.encode(), where="x", what="index")


@settings(deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(CheckpointError):
        assert isinstance(parse_object(data, where="x", what="index"), dict)


def test_names_are_shown_escaped_and_few() -> None:
    assert listed(["a\x1b[2J", "b"]) == r"'a\x1b[2J', 'b'"
    assert listed([str(n) for n in range(20)]).endswith("'11' and 8 more")
    assert len(listed(["x" * 10_000])) < 300
