"""One test for each bug that the campaign found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fusing import Files
from recipefile import recipe

from lcmmerge.doctor import _places
from lcmmerge.errors import FormatError, NotFoundError, RecipeError
from lcmmerge.output import Output
from lcmmerge.recipe.loader import load
from lcmmerge.refs.weights import local_tree, read_json
from lcmmerge.tensors import open_source
from lcmmerge.train.checkpoint import STATE, Checkpoints, TrainingState
from lcmmerge.train.data import open_data

DEEP = "[" * 100_000
Cli = Callable[..., Any]


def test_a_pipe_in_place_of_weights_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    for name in ("base.safetensors", "base.ckpt"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(FormatError, match="is a pipe"):
            open_source(tmp_path / name)


@pytest.mark.parametrize("config", ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"])
def test_a_config_that_is_nested_too_deep(config: str, files: Callable[[str], Files], cli: Cli, tmp_path: Path) -> None:
    folder = files("sd1").folder("fp32")
    base = tmp_path / "base"
    for path in folder.rglob("*"):
        if path.is_file():
            place = base / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)
    (base / config).unlink()
    (base / config).write_text(DEEP)
    size = ("--size", "64x64", "--steps", 1, "--device", "cpu")
    done = cli("generate", base, "--prompt", "a", *size, "-o", tmp_path / "images")
    assert done.code == 1
    assert [line.partition(" ")[0] for line in done.err.splitlines()] == ["Error:", "Hint:"]
    with pytest.raises(FormatError):
        read_json(local_tree(base), config)


def test_recorded_json_that_is_nested_too_deep(cli: Cli, files: Callable[[str], Files], tmp_path: Path) -> None:
    data = files("sd1").style.read_bytes()
    length = int.from_bytes(data[:8], "little")
    metadata = dict.fromkeys(("sd_merge_recipe", "lora_adapter_metadata"), DEEP)
    header = json.loads(data[8 : 8 + length]) | {"__metadata__": metadata}
    text = json.dumps(header).encode()
    path = tmp_path / "style.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    done = cli("inspect", path)
    assert "a bug of lcmmerge" not in done.err
    assert done.code in (0, 1)


def test_names_from_files_are_no_orders_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Output.error(NotFoundError("a\x1b[31m\nb\0", "é 😀"))
    assert capsys.readouterr().err == "Error: a\\x1b[31m b\\x00\nHint: é 😀\n"


def test_a_table_on_a_narrow_terminal_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = ("component", "algorithm", "modules", "parameters", "size")
    row = ("text_encoder", "lora", 72, "859.52 M", "1.5 GB")
    monkeypatch.setenv("COLUMNS", "40")
    Output().table("", columns, [row], numbers=3)
    shown = capsys.readouterr().out.split()
    assert {*columns, "text_encoder", "lora", "72", "859.52", "1.5"} <= {*shown}


def test_an_unforeseen_error_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("unforeseen")

    monkeypatch.setattr("lcmmerge.refs.weights._weight_files", fail)
    done = cli("inspect", tmp_path)
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines()[0] == "Error: a bug of lcmmerge: ZeroDivisionError: unforeseen"
    with pytest.raises(ZeroDivisionError):
        cli("inspect", tmp_path, "-v")


def test_the_doctor_of_a_home_that_is_not_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/proc/1/root/none/hub")
    assert next(place.what for place in _places()) == "downloads"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_stdout() -> None:
    command = [sys.executable, "-m", "lcmmerge", "accelerators"]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.stderr.splitlines()[0] == "Error: standard output: No space left on device"
    assert ended.returncode == 1


@pytest.mark.parametrize("name", ["state.json", "optimizer.pt", "trained.safetensors"])
def test_a_pipe_in_place_of_a_checkpoints_file(name: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(TrainingState(2, {"w": torch.ones(2)}, {}, {"base": "a"}))
    assert checkpoints.load(2, {"base": "a"}).step == 2
    (tmp_path / "step-000002" / name).unlink()
    os.mkfifo(tmp_path / "step-000002" / name)
    with pytest.raises(FormatError, match="step-000002: not a whole checkpoint"):
        checkpoints.load(2)


def test_a_users_folder_is_no_checkpoint(tmp_path: Path) -> None:
    for name in ("step-notes", "step-7", "step-000003"):
        (tmp_path / name).mkdir()
    assert Checkpoints(tmp_path).steps() == []
    (tmp_path / "step-000003" / STATE).touch()
    assert Checkpoints(tmp_path).steps() == [3]
    Checkpoints(tmp_path).clear()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-7", "step-notes"]


@pytest.mark.parametrize("value", ["[1]", "null", "{a: 1}"])
def test_a_matrix_of_what_is_no_value(value: str, files: Callable[[str], Files], tmp_path: Path) -> None:
    with pytest.raises(RecipeError):
        load(recipe(tmp_path, files("sd1"), more=f"matrix: {{lambda.style: [{value}]}}\n"))


def test_a_shard_whose_name_is_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library webdataset, which read shards once, runs what stands behind ``pipe:``."""
    monkeypatch.chdir(tmp_path)
    Path("pipe:touch ran; echo .tar").touch()
    with pytest.raises(FormatError):
        list(open_data("*.tar"))
    assert not Path("ran").exists()


def test_closed_streams() -> None:
    command = "import os, sys; from lcmmerge.cli import main; sys.argv = ['lcmmerge', 'accelerators', '--json']; main()"
    ended = subprocess.run(["sh", "-c", '"$0" -c "$1" <&- >&-', sys.executable, command], stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (0, b"")
