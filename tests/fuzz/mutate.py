"""Change a file as accidents and attackers would: bytes, text, and the structure of JSON."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**63, 2**64, -(2**63), 10**19, 10**400, 0.5, -0.0, 1e308),
    *("", "0", "a", "mamba", "hybrid", "zamba2", "..", "../x", "/", "\0", "\ud800", "\uff57", "x" * 5000, "1e3"),
    *([], {}, [[]], [None], ["mamba"], [0], {"a": 1}, [1, 2, 3], [[0, 8]], {"": ""}),
)
_WORDS = (
    *(
        b"&b ",
        b"*b",
        b"!!python/object/apply:os.system ",
        b"!!set ",
        b"<<: *b",
        b"---\n",
        b"? ",
        b"\t",
        b".nan",
        b"0x1f",
    ),
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"null", b"NaN", b"Infinity", b"1e999", b"\\ud800", b"\xff"),
)


def mutated(data: bytes, draw: random.Random, *, header: bool = False) -> bytes:
    """`data` with one to four changes. `header`: a safetensors file, whose JSON has its length before it."""
    if header:
        return _header(data, draw)
    for _ in range(draw.randint(1, 4)):
        data = draw.choice((_structure, _structure, _structure, _bytes))(data, draw)
    return data


def _header(data: bytes, draw: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    text, rest = data[8 : 8 + length], data[8 + length :]
    kind = draw.randrange(6)
    if kind == 0:
        return _bytes(data, draw)
    if kind == 1:
        rest = draw.choice((rest[:-1], rest + b"\0", rest * 2, b""))
    text = mutated(text, draw)
    size = len(text) if kind else draw.choice((0, 1, length, 2**24, 2**62, 2**64 - 1))
    return struct.pack("<Q", size) + text + rest


def _bytes(data: bytes, draw: random.Random) -> bytes:
    at = draw.randint(0, len(data))
    end = min(len(data), at + draw.choice((1, 1, 2, 8, 100)))
    return draw.choice(
        (
            data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :],
            data[:at] + data[end:],
            data[:at] + data[at:end] * 2 + data[end:],
            data[:at] + draw.choice(_WORDS) + data[at:],
            data[:at],
            data[:at] + b"[" * draw.choice((10, 2000)) + data[at:],
        )
    )


def _structure(data: bytes, draw: random.Random) -> bytes:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return _bytes(data, draw)
    places: list[tuple[Any, Any]] = []
    _walk(content, places)
    if not places:
        return json.dumps(draw.choice(ODD)).encode()
    holder, key = draw.choice(places)
    change: Callable[[Any, Any, list[tuple[Any, Any]], random.Random], None] = draw.choice(
        (_replace, _replace, _nudge, _remove, _swap, _rename, _add)
    )
    change(holder, key, places, draw)
    text = json.dumps(content).encode()
    if draw.randrange(8) == 0 and text.startswith(b"{") and len(text) > 2:  # the first pair once more
        text = b"{" + text[1:-1] + b"," + text[1:]
    return text


def _walk(content: Any, places: list[tuple[Any, Any]]) -> None:
    """Every place in nested JSON, as its holder and the key or index in it."""
    todo = [content]
    while todo:
        holder = todo.pop()
        keys = holder.keys() if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            places.append((holder, key))
            todo.append(holder[key])


def _replace(holder: Any, key: Any, places: list[tuple[Any, Any]], draw: random.Random) -> None:
    holder[key] = draw.choice(ODD)


def _nudge(holder: Any, key: Any, places: list[tuple[Any, Any]], draw: random.Random) -> None:
    value = holder[key]
    if isinstance(value, bool) or not isinstance(value, (int, float, str, list)):
        holder[key] = draw.choice(ODD)
    elif isinstance(value, str):
        holder[key] = draw.choice((value.upper(), value + " ", value[:-1], value * 2, f"../{value}"))
    elif isinstance(value, list):
        holder[key] = draw.choice((value[:-1], value * 2, value[::-1], [*value, *value[:1]]))
    else:
        as_text = json.dumps(value)  # str() refuses integers of thousands of digits, float() of hundreds
        holder[key] = draw.choice((value + 1, value - 1, -value, value * 2, float(as_text), as_text, value * 10**9))


def _remove(holder: Any, key: Any, places: list[tuple[Any, Any]], draw: random.Random) -> None:
    del holder[key]


def _swap(holder: Any, key: Any, places: list[tuple[Any, Any]], draw: random.Random) -> None:
    """Copy a value from elsewhere, by way of JSON so that nothing holds itself."""
    other, at = draw.choice(places)
    holder[key] = json.loads(json.dumps(other[at]))


def _rename(holder: Any, key: Any, places: list[tuple[Any, Any]], draw: random.Random) -> None:
    if isinstance(holder, dict):
        holder[draw.choice((key + "x", key[:-1], key.upper(), "\ud800", "weight_map", "num_mem_blocks"))] = holder.pop(
            key
        )


def _add(holder: Any, key: Any, places: list[tuple[Any, Any]], draw: random.Random) -> None:
    if isinstance(holder, dict):
        holder[draw.choice(("extra", "quantization_config", "rope_parameters", "layer_types", "__metadata__"))] = (
            draw.choice(ODD)
        )
    else:
        holder.insert(key, draw.choice(ODD))
