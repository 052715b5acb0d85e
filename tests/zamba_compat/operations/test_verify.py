"""verify: whatever is changed after it was written is told, and nothing else is."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from support import synthetic
from support.raw_files import snapshot
from zamba_compat.checkpoint.reading.location import MANIFEST
from zamba_compat.checkpoint.reading.manifest import digest_of
from zamba_compat.cli.main import main
from zamba_compat.errors import CheckpointError
from zamba_compat.operations.convert import Options, convert
from zamba_compat.operations.verify import verify

CONFIG = synthetic.make_config("2.7B", hidden_size=16, n_mamba_heads=4, vocab_size=8, adapter_rank=2)
SHARD = "model-00002-of-00004.safetensors"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of four shards, with a chat template in a subdirectory."""
    top = tmp_path_factory.mktemp("verify")
    synthetic.write_checkpoint(top / "source", synthetic.make_state(CONFIG), CONFIG)
    (top / "source" / "tokenizer.json").write_text("{}")
    (top / "source" / "additional_chat_templates").mkdir()
    (top / "source" / "additional_chat_templates" / "tool.jinja").write_text("{{ x }}")
    convert(top / "source", top / "made", Options(max_shard_size="39KB"))
    assert (top / "made" / SHARD).exists()
    return top / "made"


@pytest.fixture
def made(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "made"))


def test_all_as_it_was_written(made: Path) -> None:
    before = snapshot(made)
    found = verify(made)
    assert found.ok and not found.warnings and found.format_version == 2
    assert (found.shards, found.files) == (4, 5)  # config, index, card, tokenizer, template
    assert found.bytes == sum(path.stat().st_size for path in made.rglob("*") if path.is_file()) - _size(made)
    assert [source["name"] for source in found.sources] == ["source"]
    assert snapshot(made) == before
    assert json.loads(json.dumps(found.as_dict()))["ok"] is True


def _size(made: Path) -> int:
    return (made / MANIFEST).stat().st_size


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=st.integers(0, 9), at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@example(file=0, at=0.0, bit=0)
def test_any_bit_that_flips_is_told(file: int, at: float, bit: int, written: Path) -> None:
    files = sorted(path for path in written.rglob("*") if path.is_file())
    path = files[file % len(files)]
    data = path.read_bytes()
    place = int(at * len(data))
    try:
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
        found = verify(written)
        if path.name == MANIFEST and json.loads(data) == _json(path):
            assert found.ok  # white space, or the case of an escape
        else:
            assert not found.ok and path.name in found.faults[0]
    finally:
        path.write_bytes(data)
    assert verify(written).ok


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def cut(made: Path) -> None:
    os.truncate(made / SHARD, 1000)


def swapped(made: Path) -> None:
    names = [made / SHARD, made / "model-00003-of-00004.safetensors", made / "x"]
    for i in (0, 1, 2):
        names[i].rename(names[i - 1])


def linked(made: Path) -> None:
    shutil.copy(made / SHARD, made.parent / "elsewhere.safetensors")
    (made / SHARD).unlink()
    (made / SHARD).symlink_to(made.parent / "elsewhere.safetensors")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda made: (made / SHARD).unlink(), "No such file"),
        (lambda made: (made / "config.json").unlink(), "config.json: .*No such file"),
        (lambda made: (made / "additional_chat_templates" / "tool.jinja").write_text(""), "tool.jinja"),
        (lambda made: (made / "additional_chat_templates" / "more.jinja").touch(), "not written with.*more.jinja"),
        (lambda made: (made / "extra.json").touch(), "not written with the checkpoint.*extra.json"),
        (lambda made: (made / "training_args.bin").touch(), "not written with the checkpoint.*training_args.bin"),
        (lambda made: (made / "folder").mkdir(), "not written with the checkpoint.*folder"),
        (cut, "1000 bytes"),
        (swapped, "bytes|are missing"),
        (linked, "leads out of the checkpoint"),
    ],
)
def test_what_is_missing_extra_or_changed(change: Callable[[Path], Any], match: str, made: Path) -> None:
    import re

    change(made)
    found = verify(made)
    assert not found.ok and any(re.search(match, fault) for fault in found.faults), found.faults


def test_hidden_files_are_told_and_no_fault(made: Path) -> None:
    (made / ".gitattributes").touch()
    found = verify(made)
    assert found.ok and ".gitattributes" in found.warnings[0]


def rewrite(made: Path, change: Callable[[dict[str, Any]], Any], *, sign: bool = True) -> None:
    content = json.loads((made / MANIFEST).read_text())
    change(content)
    if sign:
        content["digest"] = digest_of(content)
    (made / MANIFEST).write_text(json.dumps(content))


def test_format_1_is_verified_as_far_as_it_goes(made: Path) -> None:
    def to_version_1(content: dict[str, Any]) -> None:
        content["format_version"] = 1
        for key in ("headers", "files", "digest"):
            del content[key]

    rewrite(made, to_version_1, sign=False)
    found = verify(made)
    assert found.ok and found.format_version == 1 and "format 1" in found.warnings[0]
    (made / "stray.safetensors").touch()
    assert "stray.safetensors" in verify(made).faults[0]
    data = bytearray((made / SHARD).read_bytes())
    data[-1] ^= 1
    (made / SHARD).write_bytes(data)
    assert "not what was written" in verify(made).faults[1]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda content: content.update(format_version=3), "Update zamba_compat"),
        (lambda content: content.update(format_version="2"), "no format_version"),
        (lambda content: content["files"].update({"../x": {"size": 1, "sha256": "0" * 64}}), "elsewhere.*../x"),
        (lambda content: content["files"].update({"/etc/passwd": {"size": 1, "sha256": "0" * 64}}), "elsewhere"),
        (lambda content: content["shards"].update({"../x.safetensors": 1}), "form of a manifest|is a path"),
        (lambda content: content.update(tensors={}), "form of a manifest"),
        (lambda content: content.update(tensors=[1]), "form of a manifest"),
        (lambda content: content.update(shards=None), "form of a manifest"),
        (lambda content: next(iter(content["tensors"].values())).update(dtype="F99"), "form of a manifest"),
        (lambda content: next(iter(content["tensors"].values())).update(shape=[-1]), "form of a manifest"),
    ],
)
def test_a_manifest_that_is_none(change: Callable[[dict[str, Any]], Any], match: str, made: Path) -> None:
    import re

    rewrite(made, change)
    (fault,) = verify(made).faults
    assert re.search(match, fault) and MANIFEST in fault


def test_a_manifest_that_was_changed_does_not_have_its_digest(made: Path) -> None:
    rewrite(made, lambda content: content["sources"][0].update(name="another"), sign=False)
    assert "digest" in verify(made).faults[0]


def test_no_manifest(made: Path, tmp_path: Path) -> None:
    (made / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"nothing says what these files were.*convert-checkpoint"):
        verify(made)
    with pytest.raises(CheckpointError, match="No such file"):
        verify(tmp_path / "absent")


def test_the_command(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(made)]) == 0
    out, err = capsys.readouterr()
    assert "all as it was written" in out and "made of source" in out and not err
    (made / "config.json").write_text("{}")
    assert main(["verify", str(made), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False and "config.json" in report["faults"][0]
    assert main(["verify", str(made), "-q"]) == 1
    assert capsys.readouterr() == ("", "")
    (made / MANIFEST).unlink()
    assert main(["verify", str(made)]) == 3
    assert "inspect" in capsys.readouterr().err
