"""Releases outside the range get clear words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from zamba_compat.patches.transformers import release

OLD = """
class _LazyConfigMapping(dict):
    def __getitem__(self, key):
        raise KeyError(key)
CONFIG_MAPPING = _LazyConfigMapping()
"""


def test_a_release_without_zamba2(tmp_path: Path) -> None:
    package = tmp_path / "transformers" / "models" / "auto"
    package.mkdir(parents=True)
    (tmp_path / "transformers" / "__init__.py").write_text("__version__ = '4.48.0'\n")
    (tmp_path / "transformers" / "models" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "configuration_auto.py").write_text(OLD)
    info = tmp_path / "transformers-4.48.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 4.48.0\n")
    code = (
        "import zamba_compat\n"
        "from transformers.models.auto.configuration_auto import CONFIG_MAPPING\n"
        "try: CONFIG_MAPPING['zamba2']\n"
        "except zamba_compat.ZambaCompatError as error: print(error)\n"
        "try: CONFIG_MAPPING['other']\n"
        "except KeyError: print('KeyError')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path
    )
    assert run.stdout.splitlines() == [
        "transformers 4.48.0 has no Zamba2. Install transformers>=4.49.",
        "KeyError",
    ], run.stderr


def test_this_release_has_zamba2() -> None:
    assert release.release_fault() is None
