"""Edits of Python source: one function rewritten, renamed, moved, or a whole file written in another way."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from support.invented.base import Base

Function = ast.FunctionDef


def find(source: str, path: str) -> Function:
    """The function at a dotted path. Raises ValueError when there is none."""
    body: list[ast.stmt] = ast.parse(source).body
    *owners, name = path.split(".")
    for owner in owners:
        body = next((n.body for n in body if isinstance(n, ast.ClassDef) and n.name == owner), [])
    found = [n for n in body if isinstance(n, ast.FunctionDef) and n.name == name]
    if len(found) != 1:
        raise ValueError(f"there are {len(found)} functions {path}")
    return found[0]


def edited(source: str, path: str, edit: Callable[[Function], None]) -> str:
    """With one function changed in place; the rest keeps every character."""
    function = find(source, path)
    before = ast.dump(function)
    first, last = _lines(function)
    edit(function)
    if ast.dump(function) == before:
        raise ValueError(f"{path} stays as it is")
    return _spliced(source, first, last, _indented(ast.unparse(function), function.col_offset))


def segment(source: str, path: str) -> str:
    """The text of a function, with its decorators."""
    first, last = _lines(find(source, path))
    return textwrap.dedent("".join(source.splitlines(keepends=True)[first - 1 : last]))


def replaced(source: str, path: str, new: str) -> str:
    """With another function in the place of one."""
    function = find(source, path)
    first, last = _lines(function)
    return _spliced(source, first, last, _indented(new.strip(), function.col_offset))


def copied(source: str, path: str, name: str, *, as_function: bool = False) -> str:
    """With a copy of a method beside it, or before its class and without decorators, under another name."""
    method = find(source, path)
    _, last = _lines(method)
    method.name = name
    if not as_function:
        return _spliced(source, last + 1, last, "\n" + _indented(ast.unparse(method), method.col_offset))
    method.decorator_list = []
    owner = next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == path.split(".")[0])
    first, _ = _lines(owner)
    return _spliced(source, first, first - 1, f"{ast.unparse(method)}\n\n")


def call_renamed(source: str, path: str, old: str, new: str) -> str:
    """With another attribute called inside one function."""

    def rename(function: Function) -> None:
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and node.attr == old:
                node.attr = new

    return edited(source, path, rename)


def word_renamed(base: Base, old: str, new: str) -> dict[str, str]:
    """Every file in which a word occurs, with another in its place. Raises ValueError when there is none."""
    files = {}
    for name in base.sources():
        text = (base.package / name).read_bytes()
        if old.encode() in text:
            files[name] = re.sub(rf"\b{old}\b", new, text.decode())
    if not files:
        raise ValueError(f"{old} occurs nowhere")
    return files


def moved(source: str, last: str, *, to: str) -> tuple[str, str]:
    """Everything up to a class for a module of its own, and the rest, which imports that back."""
    tree = ast.parse(source)
    place = next(i for i, node in enumerate(tree.body) if isinstance(node, ast.ClassDef) and node.name == last)
    head, rest = tree.body[: place + 1], tree.body[place + 1 :]
    defined = [node for node in head if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    kept = [node for node in head if node not in defined]
    names = ", ".join(node.name for node in defined)
    back = ast.parse(f"from .{to} import {names}").body
    new = ast.unparse(ast.Module(head, []))
    return new + "\n", ast.unparse(ast.Module([*kept, *back, *rest], [])) + "\n"


class _Plain(ast.NodeTransformer):
    """Drops the annotations inside functions, and writes docstrings in another way."""

    def visit_FunctionDef(self, node: Function) -> Function:
        node.returns = None
        every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for argument in (*every, node.args.vararg, node.args.kwarg):
            if argument is not None:
                argument.annotation = None
        text = ast.get_docstring(node, clean=False)
        if text is not None:
            node.body[0] = ast.Expr(ast.Constant(f"{text.rstrip()}\n\nThis release says a sentence more.\n"))
        node.body = [self._bare(statement) for statement in node.body]
        self.generic_visit(node)
        return node

    def _bare(self, statement: ast.stmt) -> ast.stmt:
        if isinstance(statement, ast.AnnAssign) and statement.value is not None:
            return ast.Assign([statement.target], statement.value)
        return statement


def plainly_written(source: str) -> str:
    """The same program: no comment, no annotation in functions, longer docstrings, one expression a line."""
    tree = _Plain().visit(ast.parse(source))
    return f"# Written anew.\n\n\n{ast.unparse(ast.fix_missing_locations(tree))}\n"


def _lines(node: ast.stmt) -> tuple[int, int]:
    """First and last line of a function or class with its decorators, from 1."""
    decorators = getattr(node, "decorator_list", [])
    return min(n.lineno for n in (node, *decorators)), node.end_lineno or node.lineno


def _spliced(source: str, first: int, last: int, text: str) -> str:
    """With `text` in place of lines `first` to `last`; in front of `first` when `last` is the line before it."""
    lines = source.splitlines(keepends=True)
    return "".join([*lines[: first - 1], text, "\n", *lines[last:]])


def _indented(text: str, columns: int) -> str:
    return textwrap.indent(text, " " * columns)
