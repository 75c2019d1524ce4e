"""What ``-o`` names."""

from __future__ import annotations

from pathlib import Path

import pytest

from lcmmerge.errors import OutputError
from lcmmerge.tensors.targets import safetensors_name, target_of


@pytest.mark.parametrize(
    ("text", "made", "name"),
    [
        ("there", True, "there/base-style.safetensors"),
        ("there/", True, "there/base-style.safetensors"),
        ("new", False, "new.safetensors"),
        ("new.safetensors", False, "new.safetensors"),
        ("new.safetensors/", False, None),
        ("new/", False, None),
    ],
)
def test_a_slash_says_that_it_is_a_folder(text, made, name, tmp_path, monkeypatch):
    """One that is not there is not made, as no other folder of a file is, and no file takes its name."""
    monkeypatch.chdir(tmp_path)
    if made:
        Path(text).mkdir()
    if name is None:
        with pytest.raises(OutputError, match=r"new.*/: no such folder") as caught:
            safetensors_name(target_of(text), "base-style")
        assert "create it first" in caught.value.hint
    else:
        assert safetensors_name(target_of(text), "base-style") == Path(name)


@pytest.mark.parametrize("command", ["fuse", "extract", "combine"])
def test_every_command_that_writes_a_file(command, files, tmp_path, cli):
    inputs = files("sd1")
    words = {
        "fuse": (inputs.base(), "--lcm", inputs.lcm),
        "extract": (inputs.base("fp32"), inputs.base()),
        "combine": (inputs.style, 0.5, inputs.lcm, 0.5),
    }[command]
    done = cli(command, *words, "-o", f"{tmp_path}/new/")
    assert (done.code, done.err.splitlines()[0]) == (1, f"Error: {tmp_path}/new/: no such folder")
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_writes_a_file(tmp_path, cli):
    data = tmp_path / "data"
    data.mkdir()
    done = cli("distill", "zoo:digits/base", "--data", data, "-o", f"{tmp_path}/new/")
    assert (done.code, done.err.splitlines()[0]) == (1, f"Error: {tmp_path}/new/: no such folder")


def test_a_pipeline_is_a_folder_itself(files, tmp_path, cli):
    inputs = files("sd1")
    done = cli("fuse", inputs.folder(), "--lcm", inputs.lcm, "-o", f"{tmp_path}/new/")
    assert done.code == 0
    assert (tmp_path / "new/model_index.json").is_file()
