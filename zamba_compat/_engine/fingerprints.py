"""Fingerprints of functions: a hash of what the code says, not of how it is written down.

A function is looked up in the module's source by its qualified name, so decorators count and nothing is imported.
Comments, docstrings, annotations and formatting do not change a fingerprint; a decorator, a default or a statement
does. It is the same under Python 3.10 to 3.13.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

_LENGTH = 16  # hexadecimal digits
_LEFT_OUT = frozenset({"annotation", "returns", "type_comment", "type_params", "kind", "ctx", "type_ignores"})
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def fingerprint(target: str) -> str | None:
    """The fingerprint of a target such as "package.module:Class.method" in the release that is installed.

    A method that the class inherits is looked up in its bases, in other modules too, in the order they are written. A
    name that the module imports from another of the same package is followed there, and counts as another than one
    that is defined in place: who defines it calls it by its own name.

    Returns:
        None if the source has no such thing.
    """
    module, _, path = target.partition(":")
    text = _described(module, tuple(path.split(".")), 0)
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()[:_LENGTH]


def source(target: str) -> str | None:
    """The source that a target's fingerprint is made of, as text for a diff; None if there is none."""
    module, _, path = target.partition(":")
    found = _find(module, tuple(path.split(".")), 0)
    if found is None:
        return None
    place, node, _ = found
    file = _file(place)
    if file is None:
        return None
    first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))])
    lines = file.read_text(encoding="utf-8").splitlines()[first - 1 : node.end_lineno]
    return "\n".join([f"# {place}", *lines, ""])


def forget() -> None:
    """Read every module's source anew the next time, for another release on the same path."""
    _tree.cache_clear()


def _described(module: str, path: tuple[str, ...], depth: int) -> str | None:
    found = _find(module, path, depth)
    if found is None:
        return None
    _, node, imported = found
    return ("imported " if imported else "") + _dump(node)


def _find(module: str, path: tuple[str, ...], depth: int) -> tuple[str, ast.stmt, bool] | None:
    """The module and statement that define a path, and whether an import led there. Classes lead to their bases."""
    tree = _tree(module)
    if tree is None or depth > 12:
        return None
    name, *rest = path
    for node in reversed(list(_statements(tree.body))):
        if isinstance(node, ast.ImportFrom):
            found = _through(module, node, path, depth)
            if found is not None:
                return found
        elif isinstance(node, ast.ClassDef) and node.name == name:
            return _in_class(module, node, tuple(rest), depth) if rest else (module, node, False)
        elif not rest and name in _names(node):
            return module, node, False
    return None


def _in_class(module: str, cls: ast.ClassDef, path: tuple[str, ...], depth: int) -> tuple[str, ast.stmt, bool] | None:
    name, *rest = path
    for node in reversed(list(_statements(cls.body))):
        if rest and isinstance(node, ast.ClassDef) and node.name == name:
            return _in_class(module, node, tuple(rest), depth)
        if not rest and name in _names(node):
            return module, node, False
    for base in cls.bases:
        if isinstance(base, ast.Name):
            found = _find(module, (base.id, *path), depth + 1)
            if found is not None:
                return (*found[:2], False)
    return None


def _through(module: str, node: ast.ImportFrom, path: tuple[str, ...], depth: int) -> tuple[str, ast.stmt, bool] | None:
    for alias in node.names:
        if (alias.asname or alias.name) == path[0]:
            source = _absolute(module, node)
            if source.partition(".")[0] != module.partition(".")[0]:
                return None if path[1:] else (module, node, True)
            found = _find(source, (alias.name, *path[1:]), depth + 1)
            return None if found is None else (*found[:2], not path[1:])
    return None


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    file = _file(module)
    parts = module.split(".")
    up = node.level - (1 if file is not None and file.name == "__init__.py" else 0)
    return ".".join([*parts[: len(parts) - up], *([node.module] if node.module else [])])


def _names(node: ast.stmt) -> tuple[str, ...]:
    """What a statement binds, as far as targets are concerned."""
    if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
        return (node.name,)
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return tuple(target.id for target in targets if isinstance(target, ast.Name))


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """A body's statements, those under `if`, `try` and `with` among them."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            yield from _statements(node.body)
            for handler in getattr(node, "handlers", ()):
                yield from _statements(handler.body)
            for name in ("orelse", "finalbody"):
                yield from _statements(getattr(node, name, []))


@lru_cache(maxsize=64)
def _tree(module: str) -> ast.Module | None:
    file = _file(module)
    with suppress(OSError, SyntaxError, ValueError):
        return None if file is None else ast.parse(file.read_text(encoding="utf-8"))
    return None


def _file(module: str) -> Path | None:
    """A module's source file; its packages are not imported for it."""
    top, *rest = module.split(".")
    package = sys.modules.get(top)
    folders = list(getattr(package, "__path__", ()))
    if package is None or not folders:
        with suppress(ImportError, ValueError):
            spec = find_spec(top)
            folders = list(spec.submodule_search_locations or ()) if spec is not None else []
            if spec is not None and not folders and not rest and spec.origin:
                return Path(spec.origin)
    for folder in folders:
        stem = Path(folder, *rest)
        for file in (stem / "__init__.py", stem.with_name(stem.name + ".py")):
            if file.is_file():
                return file
    return None


def _dump(node: ast.AST) -> str:
    """A node as text: its type and its fields, but for what says nothing of the behaviour."""
    if isinstance(node, ast.AnnAssign):  # x: int = 1 is x = 1, and x: int is nothing
        return "" if node.value is None else f"Assign(targets=[{_dump(node.target)}],value={_dump(node.value)})"
    if isinstance(node, ast.JoinedStr):
        return f"JoinedStr({_f_string(node)})"
    fields = []
    for name, value in ast.iter_fields(node):
        if name in _LEFT_OUT:
            continue
        if name == "body" and isinstance(node, (*_FUNCTIONS, ast.ClassDef)) and isinstance(value, list):
            value = _without_docstring(value)
        fields.append(f"{name}={_value(value)}")
    return f"{type(node).__name__}({','.join(fields)})"


def _f_string(node: ast.JoinedStr) -> str:
    """The parts of an f-string; Python 3.12 cuts its text into other pieces than the rest."""
    parts: list[str] = []
    text = ""
    for part in node.values:
        if isinstance(part, ast.Constant):
            text += str(part.value)
            continue
        parts += [repr(text), _dump(part)] if text else [_dump(part)]
        text = ""
    return ",".join([*parts, repr(text)] if text else parts)


def _value(value: object) -> str:
    if isinstance(value, ast.AST):
        return _dump(value)
    if isinstance(value, list):
        return f"[{','.join(filter(None, map(_value, value)))}]"
    return repr(value)


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return body[1:]
    return body
