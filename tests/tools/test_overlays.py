"""How releases and torch are set up: the right versions, whole folders or none, no GPU build by accident."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import overlays
from _matrix import torch_build
from _matrix.releases import PINS, RELEASES

ROOT = Path(__file__).resolve().parents[2]


def test_one_release_of_every_minor_line() -> None:
    lines = [Version(release).release[:2] for release in RELEASES]
    assert lines == [(4, minor) for minor in range(49, 58)] + [(5, minor) for minor in range(25)]


def test_the_base_release_is_the_newest() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {requirement.name: requirement for requirement in requirements}
    assert all(len(r.specifier) == 1 and str(r.specifier).startswith("==") for r in pinned.values())
    assert str(pinned["transformers"].specifier) == f"=={RELEASES[-1]}"


class FakePip:
    """Unpacks distributions that consist of metadata alone."""

    def __init__(self, requires: dict[str, list[str]]) -> None:
        self.requires = requires
        self.installed: list[str] = []

    def __call__(self, requirement: str, target: Path) -> None:
        name, _, number = requirement.partition("==")
        self.installed.append(requirement)
        folder = target / f"{name.replace('-', '_')}-{number}.dist-info"
        folder.mkdir(parents=True)
        lines = [f"Requires-Dist: {text}" for text in self.requires.get(requirement, ())]
        head = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {number}"]
        (folder / "METADATA").write_text("\n".join([*head, *lines, ""]))


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """An environment of known versions, and an empty folder of overlays."""
    found = {"transformers": "5.23.0", "huggingface-hub": "2.4.0", "tokenizers": "0.23.3", "numpy": "2.4.6"}
    monkeypatch.setattr(overlays, "OVERLAYS", tmp_path / "overlays")
    monkeypatch.setattr(overlays, "installed", lambda name: found.get(name.replace("_", "-")))
    return found


def names(paths: tuple[Path, ...]) -> list[str]:
    return [path.name for path in paths]


def test_the_base_release_needs_no_overlay(base: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlays, "pip_install", FakePip({}))
    assert overlays.overlay("5.23.0") == ()


def test_only_what_the_environment_lacks_is_added(base: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    pip = FakePip({
        "transformers==4.56.0": [
            "numpy>=1.17", "huggingface-hub<1.0,>=0.34", "tokenizers<=0.23.0,>=0.22",
            'torch>=9; extra == "torch"', 'elsewhere; sys_platform == "nowhere"',
        ],
        "huggingface-hub==0.36.2": ["requests", "numpy"],
        "requests==2.34.2": ["urllib3<3"],
    })  # fmt: skip
    monkeypatch.setattr(overlays, "pip_install", pip)
    expected = [
        "transformers-4.56.0", "huggingface-hub-0.36.2", "tokenizers-0.22.2",
        "requests-2.34.2", "urllib3-2.8.0",
    ]  # fmt: skip
    assert names(overlays.overlay("4.56.0")) == expected
    assert names(overlays.overlay("4.56.0")) == expected
    assert len(pip.installed) == len(expected), "a folder that is there is not built again"


def test_a_requirement_no_pin_satisfies(base: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlays, "pip_install", FakePip({"transformers==6.0.0": ["tokenizers>=7"]}))
    with pytest.raises(overlays.OverlayError, match=r"transformers 6\.0\.0 requires tokenizers>=7.*PINS"):
        overlays.overlay("6.0.0")


def test_requirements_that_contradict_each_other(base: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    requires = {
        "transformers==5.0.0": ["tokenizers<0.23", "huggingface-hub<2"],
        "huggingface-hub==1.33.0": ["tokenizers<0.22"],
    }
    monkeypatch.setattr(overlays, "pip_install", FakePip(requires))
    with pytest.raises(overlays.OverlayError, match=r"tokenizers 0\.22\.2 was chosen"):
        overlays.overlay("5.0.0")


def test_an_interrupted_build_leaves_nothing(base: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(requirement: str, target: Path) -> None:
        target.mkdir(parents=True)
        (target / "half").touch()
        raise overlays.OverlayError("network down")

    monkeypatch.setattr(overlays, "pip_install", dies)
    with pytest.raises(overlays.OverlayError):
        overlays.build("requests", "2.34.2")
    assert not overlays.folder("requests", "2.34.2").exists()
    assert list(overlays.folder("requests", "2.34.2").parent.iterdir()) == []


def test_two_processes_that_build_the_same(base: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    pip = FakePip({})
    target = overlays.folder("requests", "2.34.2")

    def overtaken(requirement: str, staged: Path) -> None:
        pip(requirement, staged)
        pip(requirement, target)  # as if another process had finished first

    monkeypatch.setattr(overlays, "pip_install", overtaken)
    assert overlays.build("requests", "2.34.2") == target
    assert names(tuple(target.parent.iterdir())) == ["requests-2.34.2"]


def test_threads_build_a_folder_once(base: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    pip = FakePip({})
    together = threading.Barrier(4)

    def build() -> None:
        together.wait()
        overlays.build("requests", "2.34.2")

    def slow(requirement: str, target: Path) -> None:
        time.sleep(0.1)
        pip(requirement, target)

    monkeypatch.setattr(overlays, "pip_install", slow)
    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pip.installed == ["requests==2.34.2"]


def test_pins_are_names_as_the_resolver_spells_them() -> None:
    assert [name for name in PINS if name != overlays.canonicalize_name(name)] == []
    assert [pins for pins in PINS.values() if list(pins) != sorted(pins, key=Version)] == []


@pytest.mark.parametrize(
    ("number", "requires", "system", "gpu"),
    [
        ("2.13.0+cpu", ["sympy"], "Linux", False),
        ("2.13.0+cu130", ["sympy"], "Linux", True),
        ("2.13.0+rocm7", [], "Linux", True),
        ("2.13.0", ["sympy", 'nvidia-nccl-cu13==2; platform_system == "Linux"'], "Linux", True),
        ("2.13.0", ['cuda-toolkit[cublas]==13; platform_system == "Linux"'], "Linux", True),
        ("2.13.0", ["sympy", 'nvidia-nccl-cu13==2; platform_system == "Linux"'], "Darwin", False),
    ],
)
def test_gpu_builds_are_recognised(number: str, requires: list[str], system: str, gpu: bool) -> None:
    assert torch_build.is_gpu_build(number, requires, system) is gpu


@pytest.mark.parametrize("allowed", [False, True])
def test_a_gpu_build_is_taken_only_if_asked_for(
    allowed: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, ...]] = []

    def pip(*arguments: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        calls.append(arguments)
        report = {"install": [{"metadata": {"version": "2.13.0+cu130", "requires_dist": []}}]}
        return subprocess.CompletedProcess(arguments, 0, json.dumps(report), "")

    monkeypatch.setattr(torch_build, "pip", pip)
    monkeypatch.setenv("ALLOW_CUDA", "1" if allowed else "")
    assert torch_build.main("constraints.txt") == (0 if allowed else 1)
    installs = [arguments for arguments in calls if "--dry-run" not in arguments]
    assert len(installs) == (1 if allowed else 0)
    assert ("ALLOW_CUDA=1" in capfd.readouterr().err) is not allowed
