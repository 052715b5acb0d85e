"""Every error that the package raises says what to do about it."""

from __future__ import annotations

import ast
from pathlib import Path

from zamba_compat import errors

ROOT = Path(__file__).parents[2]
KINDS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}


def made(source: str) -> list[tuple[int, bool]]:
    """Of every error that is made in a source: its line, and whether it has a remedy."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    own = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in KINDS]
    return [(call.lineno, any(word.arg in ("remedy", None) for word in call.keywords)) for call in own]


def test_every_error_has_a_remedy() -> None:
    files = [*(ROOT / "zamba_compat").rglob("*.py"), *(ROOT / "patches").rglob("*.py")]
    found = {path: made(path.read_text(encoding="utf-8")) for path in files}
    assert sum(map(len, found.values())) > 100
    assert [f"{path}:{line}" for path, calls in found.items() for line, has_remedy in calls if not has_remedy] == []


def test_one_without_is_noticed() -> None:
    assert made('raise ConfigError("no", where="here")') == [(1, False)]
