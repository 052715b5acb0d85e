"""What is built from the checkout is complete and works away from it."""

from __future__ import annotations

import email
import json
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from zamba_compat.cpu.native import kernels

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
VERSION = re.findall(r'^__version__ = "(.+)"$', (ROOT / "zamba_compat/_version.py").read_text(), re.MULTILINE)
NOT_SOURCE = (
    ".*cache",
    ".git",
    ".hypothesis",
    ".overlays",
    ".venv*",
    "*.egg-info",
    "build",
    "dist",
    "__pycache__",
)

COMPILER = sys.platform == "linux" and shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0])

# What `import zamba_compat` may need besides the standard library.
LIGHT = ("packaging",)


def run(*command: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command away from the checkout: nothing of this process's import path is left."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "ZAMBA_COMPAT_"))}
    words = [str(word) for word in command]
    env.update(variables)
    return subprocess.run(words, cwd=cwd, env=env, text=True, capture_output=True, timeout=300)


def packages_in(top: Path, name: str) -> set[str]:
    return {".".join((name, *init.parent.relative_to(top).parts)) for init in top.rglob("__init__.py")}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheel` makes: the sdist, and wheels of which the first was built from that sdist."""
    pytest.importorskip("build")
    work = tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, work / "source", ignore=shutil.ignore_patterns(*NOT_SOURCE), symlinks=True)
    made = f"--old-file={sys.prefix}/.ready"  # the environment is there
    done = run("make", "wheel", f"VENV={sys.prefix}", made, cwd=work / "source")
    assert done.returncode == 0, done.stdout + done.stderr
    return work / "source" / "dist"


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    """The one with the engine, where there is a compiler."""
    found = {path.stem.endswith("-any"): path for path in dist.glob("*.whl")}
    return found[not COMPILER]


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel and packaging, and nothing else."""
    home = tmp_path_factory.mktemp("bare")
    return install(wheel, home, borrowed=LIGHT)


@pytest.fixture(scope="module")
def full(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel, and all that this one has but the checkout."""
    return install(wheel, tmp_path_factory.mktemp("full"), borrowed=None)


def install(wheel: Path, home: Path, borrowed: tuple[str, ...] | None) -> Path:
    """Make an environment, install the wheel, lend it packages of this environment (None: all of them)."""
    done = run(sys.executable, "-m", "venv", "--without-pip", home / "env", cwd=home)
    assert done.returncode == 0, done.stderr
    python: Path = home / "env" / "bin" / "python"
    done = run(
        sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python,
        "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # A folder named in a .pth file gets on the path, but .pth files inside it are not read: so the
    # checkout, which this environment has installed as editable, stays out.
    lent = [Path(folder) for folder in site.getsitepackages()]
    if borrowed is not None:
        folder = home / "lent"
        folder.mkdir()
        for name in borrowed:
            (source,) = [found / name for found in lent if (found / name).exists()]
            (folder / name).symlink_to(source)
        lent = [folder]
    found = run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=home).stdout.strip()
    Path(found, "lent.pth").write_text("".join(f"{folder}\n" for folder in lent))
    return python


def test_every_package_is_listed() -> None:
    """A folder that is missing from pyproject.toml works in the checkout and is lost in the wheel."""
    own = packages_in(ROOT / "zamba_compat", "zamba_compat")
    adapters = packages_in(ROOT / "patches", "zamba_compat.patches")
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == own | adapters


def test_the_changelog_has_this_version() -> None:
    """Sections of a day for each release, newest first, below what is not released."""
    heads = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heads[0] == "Unreleased"
    assert re.fullmatch(rf"{re.escape(VERSION[0])} - \d{{4}}-\d\d-\d\d", heads[1])


@pytest.mark.slow
def test_metadata(metadata: Message) -> None:
    project = PROJECT["project"]
    assert metadata["Name"].replace("-", "_") == "zamba_compat"
    assert [metadata["Version"]] == VERSION
    assert metadata["Summary"] == project["description"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata.get_all("Classifier") == project["classifiers"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    extras = {"completion", "dev", "docs", "eval", "finetune", "mergekit", "plot", "quant", "serve", "test"}
    assert set(metadata.get_all("Provides-Extra", [])) == extras


@pytest.mark.slow
def test_requirements_have_both_bounds(metadata: Message) -> None:
    required = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    required = [requirement for requirement in required if requirement.marker is None]  # without the extras
    assert {r.name for r in required} == {"packaging", "pyyaml", "safetensors", "torch", "tqdm", "transformers"}
    for requirement in required:
        assert {bound.operator for bound in requirement.specifier} == {">=", "<"}, requirement


@pytest.mark.slow
def test_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name and not name.endswith("/")}
        (entry_points,) = [name for name in archive.namelist() if name.endswith("/entry_points.txt")]
        assert b"zamba-compat = zamba_compat.cli.main:main" in archive.read(entry_points)
    own = {path.relative_to(ROOT).as_posix() for path in (ROOT / "zamba_compat").rglob("*.py")}
    adapters = {path.relative_to(ROOT).as_posix() for path in (ROOT / "patches").rglob("*.py")}
    data = {"py.typed", "inference/questions.json", "patches/verified.json"}
    compiled = {"zamba_compat/cpu/native/_kernels.so"} if COMPILER else set()
    rest = {f"zamba_compat/{path}" for path in adapters | data}
    assert names == own | rest | compiled
    python, abi, platform = wheel.stem.split("-")[2:]
    assert (python, abi) == ("py3", "none")
    assert platform.startswith("manylinux_2_") if COMPILER else platform == "any"  # an index refuses linux_x86_64


@pytest.mark.slow
def test_there_is_a_wheel_for_any_platform(dist: Path) -> None:
    (pure,) = dist.glob("*-py3-none-any.whl")
    with zipfile.ZipFile(pure) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".so", ".c", ".h"))]
        assert "zamba_compat/cpu/native/__init__.py" in archive.namelist()
    assert len([*dist.iterdir()]) == (3 if COMPILER else 2)


@pytest.mark.slow
def test_without_a_compiler_it_is_built_all_the_same(tmp_path: Path) -> None:
    shutil.copytree(ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(*NOT_SOURCE, "tests", "*.so"))
    words = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path / "out", "source"]
    done = run(*words, cwd=tmp_path, CC="no-such-compiler")
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (tmp_path / "out").glob("*.whl")
    assert "zamba_compat/cpu/native/_kernels.so" not in zipfile.ZipFile(built).namelist()
    assert built.name.endswith("-py3-none-any.whl")


@pytest.mark.slow
def test_sdist_can_be_tested_and_built_again(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"pyproject.toml", "LICENSE", "README.md", "Makefile", "constraints.txt", "patches/__init__.py"}
    wanted |= {
        "tests/conftest.py",
        "tests/packaging/test_wheel.py",
        "tools/matrix.py",
        "tools/_matrix/runner.py",
    }
    assert wanted <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith((".venv", ".overlays"))]


@pytest.mark.slow
def test_imports_with_hardly_anything_installed(bare: Path, tmp_path: Path) -> None:
    done = run(
        bare, "-c",
        "import sys, zamba_compat as z, zamba_compat.patches\n"
        "print(z.__version__, z.__file__, *sorted({'torch', 'transformers'} & set(sys.modules)))",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    version, file, *heavy = done.stdout.split()
    assert [version] == VERSION
    assert ROOT not in Path(file).parents
    assert heavy == []


@pytest.mark.slow
def test_doctor_says_what_is_missing(bare: Path, tmp_path: Path) -> None:
    done = run(bare, "-m", "zamba_compat", "doctor", "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert not report["ok"]
    assert report["versions"]["torch"] is None
    assert "torch" in " ".join(report["faults"])


@pytest.mark.slow
def test_doctor_finds_no_fault(full: Path, tmp_path: Path) -> None:
    done = run(full, "-m", "zamba_compat", "doctor", "--json", cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] and report["adapters"] and report["checks"]
    assert report["versions"]["transformers"]
    assert (report["native"] is not None) == (kernels() is not None)


@pytest.mark.slow
def test_the_script_is_the_same_command(full: Path, tmp_path: Path) -> None:
    module = run(full, "-m", "zamba_compat", "--help", cwd=tmp_path)
    script = run(full.with_name("zamba-compat"), "--help", cwd=tmp_path)
    assert script.returncode == 0, script.stderr
    assert "doctor" in script.stdout
    assert script.stdout == module.stdout


@pytest.mark.slow
def test_the_checkout_is_out_of_the_way(full: Path, tmp_path: Path) -> None:
    """The tests above judge the wheel only if this holds."""
    done = run(full, "-c", "import zamba_compat.patches as p; print(p.__file__)", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ROOT not in Path(done.stdout.strip()).parents
