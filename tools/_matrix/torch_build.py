"""Install the pinned torch, but never a CUDA build by accident: those pull gigabytes that no test here uses.

    python tools/_matrix/torch_build.py constraints.txt

Environment: TORCH_PIP_ARGS, more arguments for pip, such as an index of CPU builds; ALLOW_CUDA=1 takes any.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from typing import Any

CUDA = re.compile(r"(nvidia|cuda|triton|rocm|pytorch-triton)\b", re.IGNORECASE)

REFUSAL = """\
pip would take {version}, a build for GPUs: several GB, of which nothing is used here. Do one of
  TORCH_PIP_ARGS='--index-url URL' make ...    with the URL of an index that has CPU builds of torch
  PIP_FIND_LINKS=FOLDER make ...               with a folder that holds a CPU wheel of torch for this Python
  make PYTHON=python3.X ...                    with the Python that such a wheel is for
  ALLOW_CUDA=1 make ...                        to take that build"""


def pip(*arguments: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, text=True, **kwargs)


def is_gpu_build(version: str, requires: list[str], system: str) -> bool:
    """Whether torch is a GPU build, by its local version or else by what it requires on this system."""
    from packaging.requirements import Requirement

    local = version.partition("+")[2]
    if local:
        return local != "cpu"
    needed = [Requirement(text) for text in requires]
    environment = {"platform_system": system, "extra": ""}
    return any(CUDA.match(r.name) and (r.marker is None or r.marker.evaluate(environment)) for r in needed)


def candidate(constraints: str, extra: list[str]) -> dict[str, Any] | None:
    """pip's choice of torch under the constraints: its metadata. A file at hand comes before any index."""
    for where in (["--no-index"], []):
        found = pip(
            "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps", "--report", "-",
            "-c", constraints, *extra, *where, "torch", capture_output=True,
        )  # fmt: skip
        if found.returncode == 0:
            metadata: dict[str, Any] = json.loads(found.stdout)["install"][0]["metadata"]
            return metadata
    sys.stderr.write(found.stderr)
    return None


def main(constraints: str) -> int:
    import platform

    extra = shlex.split(os.environ.get("TORCH_PIP_ARGS", ""))
    chosen = candidate(constraints, extra)
    if chosen is None:
        print("pip finds no torch that the constraints allow, see above", file=sys.stderr)
        return 1
    version = chosen["version"]
    gpu = is_gpu_build(version, chosen.get("requires_dist", []), platform.system())
    if gpu and os.environ.get("ALLOW_CUDA") != "1":
        print(REFUSAL.format(version=f"torch {version}"), file=sys.stderr)
        return 1
    print(f"torch {version}")
    # The local version, so that pip cannot change its mind between the question and the answer.
    return pip("install", "--quiet", "--no-compile", "-c", constraints, *extra, f"torch=={version}").returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
