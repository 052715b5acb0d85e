"""No line of the package can run what a checkpoint holds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [*sorted((ROOT / "zamba_compat").rglob("*.py")), *sorted((ROOT / "patches").rglob("*.py"))]
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "marshal", "shelve", "cloudpickle", "joblib"}


def dangerous(source: str) -> Iterator[str]:
    """What in a program can run code that it reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            if names == ["pickle"] and [alias.name for alias in node.names] == ["Pickler"]:
                continue  # it writes, and reads nothing
            yield from (f"import {name}" for name in names if name.split(".")[0] in FORBIDDEN_MODULES)
        # What a user told mergekit is handed on to mergekit; nothing of ours says it.
        handed_on = isinstance(node, ast.keyword) and ast.unparse(node.value).endswith("trust_remote_code")
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code" and not handed_on:
            yield "trust_remote_code"
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in ("eval", "exec", "compile", "__import__"):
            yield name
        if name == "torch.load" and keywords.get("weights_only") != "True":
            yield "torch.load without weights_only=True"
        if name in ("yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all") and "Safe" not in ast.unparse(
            node
        ):
            yield name
        if name in ("os.system", "os.popen") or name.startswith("subprocess."):
            yield name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_what_it_reads(path: Path) -> None:
    assert list(dangerous(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "import pickle",
        "from pickle import Pickler, Unpickler",
        "from dill import loads",
        "eval(x)",
        "yaml.load(x)",
        "yaml.load(x, yaml.Loader)",
        "f(trust_remote_code=x)",
        "os.system(x)",
    ],
)
def test_the_check_notices(line: str) -> None:
    assert list(dangerous(line))
