"""Run any transformers release in one environment: each in a folder of its own, put first on the path.

    python tools/overlays.py run 4.57.6 python -c 'import transformers; print(transformers.__version__)'
    python tools/overlays.py build --ci
    python tools/overlays.py path 5.0.0

A release's own metadata says what it requires. What the environment satisfies (torch, numpy, ...) is shared;
for the rest, the newest pinned version that fits (PINS in _matrix/releases.py) goes into a folder that all
releases share.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from _matrix import ci
from _matrix.releases import MERGEKIT, PINS, RELEASES

ROOT = Path(__file__).resolve().parents[1]
OVERLAYS = ROOT / ".overlays"

_building: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)


class OverlayError(Exception):
    """A release that cannot be set up: pip's own words, or the pin that is missing."""


def folder(name: str, version: str) -> Path:
    """Where one version of one distribution lies; by interpreter, since some are compiled for it."""
    return OVERLAYS / str(sys.implementation.cache_tag) / f"{name}-{version}"


def pip_install(requirement: str, target: Path) -> None:
    """Unpack one distribution, without what it requires, into a folder.

    Raises:
        OverlayError: pip's last words.
    """
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--no-compile", "--only-binary=:all:", "--target", str(target), requirement,
    ]  # fmt: skip
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise OverlayError(f"pip cannot install {requirement}: {done.stderr.strip()[-2000:]}")


def build(name: str, version: str) -> Path:
    """The folder of one distribution, made unless it is there. A folder that exists is complete."""
    target = folder(name, version)
    with _building[target]:
        if target.is_dir():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=target.parent) as scratch:
            staged = Path(scratch) / target.name
            pip_install(f"{name}=={version}", staged)
            try:
                staged.rename(target)
            except OSError:
                if not target.is_dir():  # else another process was quicker, with the same content
                    raise
    return target


def requirements(path: Path, name: str) -> list[Requirement]:
    """What the distribution in a folder requires here, extras left out."""
    for distribution in importlib.metadata.distributions(path=[str(path)]):
        if canonicalize_name(distribution.metadata["Name"]) == name:
            needed = [Requirement(text) for text in distribution.requires or ()]
            return [r for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    raise OverlayError(f"{path} holds no metadata of {name}; delete that folder and run again")


def installed(name: str) -> str | None:
    """The version of a distribution in the environment that runs this, None if there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def pinned(requirement: Requirement, wanted_by: str) -> str:
    """The newest pin that a requirement allows.

    Raises:
        OverlayError: there is none.
    """
    pins = PINS.get(canonicalize_name(requirement.name), ())
    fitting = [pin for pin in pins if requirement.specifier.contains(pin, prereleases=True)]
    if not fitting:
        raise OverlayError(
            f"{wanted_by} requires {requirement}: the environment does not satisfy it, nor does any pin. "
            f"Add one to PINS in tools/_matrix/releases.py."
        )
    return max(fitting, key=Version)


def overlay(version: str) -> tuple[Path, ...]:
    """The folders to put on the path, in order, so that the environment has this transformers release.

    Empty if the environment has it already. Everything a release requires is satisfied in the end, by the
    environment or by one of the folders, and so is what those folders require.

    Raises:
        OverlayError: a distribution or a pin is missing, or two folders contradict each other.
    """
    if installed("transformers") == version:
        return ()
    chosen = {"transformers": version}
    paths = {"transformers": build("transformers", version)}
    waiting = [("transformers", r) for r in requirements(paths["transformers"], "transformers")]
    while waiting:
        wanted_by, requirement = waiting.pop(0)
        name = canonicalize_name(requirement.name)
        here = chosen.get(name) or installed(name)
        if here is not None and requirement.specifier.contains(here, prereleases=True):
            continue
        if name in chosen:
            raise OverlayError(f"{wanted_by} requires {requirement}, but {name} {here} was chosen for another")
        chosen[name] = pinned(requirement, f"{wanted_by} {chosen[wanted_by]}")
        paths[name] = build(name, chosen[name])
        waiting += [(name, r) for r in requirements(paths[name], name)]
    return tuple(paths.values())


def mergekit() -> tuple[Path, ...]:
    """The folders to put on the path, so that mergekit's merges run beside the transformers of this environment.

    Raises:
        OverlayError: pip cannot install one of them.
    """
    return tuple(build(name, version) for name, version in MERGEKIT.items())


def environment(paths: Iterable[Path], *more: Path) -> dict[str, str]:
    """This process's environment with these folders first on the import path, and the hub out of reach."""
    search = os.pathsep.join(str(path) for path in (*paths, *more))
    return {**os.environ, "PYTHONPATH": search, "HF_HUB_OFFLINE": "1"}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("build", help="set releases up ahead of their use")
    making.add_argument("versions", nargs="*", metavar="VERSION")
    making.add_argument("--ci", action="store_true", help="the releases that CI runs")
    making.add_argument("--all", action="store_true", help="every release of the matrix")
    showing = commands.add_parser("path", help="print the PYTHONPATH of a release")
    showing.add_argument("version", metavar="VERSION")
    running = commands.add_parser("run", help="run a command with a release")
    running.add_argument("version", metavar="VERSION")
    running.add_argument("argv", nargs=argparse.REMAINDER, metavar="COMMAND")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        if options.command == "build":
            wanted = [
                *options.versions,
                *(ci.releases() if options.ci else ()),
                *(RELEASES if options.all else ()),
            ]
            with ThreadPoolExecutor(2) as pool:
                for version, paths in zip(wanted, pool.map(overlay, wanted), strict=True):
                    print(version, *(path.name for path in paths), flush=True)
            return 0
        paths = overlay(options.version)
    except OverlayError as error:
        print(f"overlays: {error}", file=sys.stderr)
        return 1
    if options.command == "path":
        print(os.pathsep.join(map(str, paths)))
        return 0
    bin_folder = os.path.dirname(sys.executable)
    env = environment(paths)
    env["PATH"] = os.pathsep.join([bin_folder, env.get("PATH", os.defpath)])
    os.execvpe(options.argv[0], options.argv, env)


if __name__ == "__main__":
    sys.exit(main())
