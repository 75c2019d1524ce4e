"""What goes wrong ends in one line with cause and cure and the right exit code, and leaves the disk as it was."""

import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
import torch
from fusing import edited, fuse, load
from pico import pico
from safetensors.torch import save_file

from lcmmerge.errors import OutputError
from lcmmerge.tensors.blockio import BlockWriter, Buffer
from lcmmerge.tensors.staging import Staging

BIG = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
QUERY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"


def digests(folder):
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def place(files, tmp_path):
    """A folder with a base and two LoRAs, and an empty one for outputs."""
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    shutil.copy(files("sd1").base(), inputs / "base.safetensors")
    shutil.copy(files("sd1").style, inputs / "style.safetensors")
    shutil.copy(files("sd1").lcm, inputs / "lcm.safetensors")
    (tmp_path / "out").mkdir()
    return tmp_path


def arguments(place, **instead):
    """A whole command line; ``base``, ``style``, ``lcm`` and ``output`` may be others."""
    chosen = {name: place / "inputs" / f"{name}.safetensors" for name in ("base", "style", "lcm")}
    chosen |= {"output": place / "out" / "fused.safetensors"} | instead
    return "fuse", chosen["base"], chosen["style"], "--lcm", chosen["lcm"], "-o", chosen["output"]


def limited(size, *words):
    """The command line, where no file may grow beyond ``size``; for a process of its own."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    forked.command(*words)


def check(done, code, *words):
    """One line with the cause, one with the cure, no traceback, no data."""
    lines = done.err.splitlines()
    assert done.code == code, done.err
    assert done.out == ""
    assert len(lines) == 2, done.err
    assert lines[0].startswith("Error: ")
    assert lines[1].startswith("Hint: ")
    assert all(word in done.err for word in words), done.err


def rewritten(path, change):
    path.write_bytes(change(path.read_bytes()))


def with_header(data, old, new):
    assert data.count(old) == 1
    assert len(old) == len(new)
    return data.replace(old, new)


def key(name, shape):
    return f'"{name}":{{"dtype":"F16","shape":{shape}'.encode()


def cut(name, end):
    return lambda inputs: rewritten(inputs / name, lambda data: data[:end])


def changed(name, tensors_of):
    """``tensors_of`` the old ones gives those that are replaced, added, or removed (None)."""
    return lambda inputs: edited(inputs / name, inputs / name, **tensors_of(load(inputs / name)))


def silent(tensors):
    return {name: torch.zeros_like(up) for name, up in tensors.items() if "lora_up" in name}


STRANGER = {
    "lora_unet_stranger.lora_up.weight": torch.ones(8, 4), "lora_unet_stranger.lora_down.weight": torch.ones(4, 8),
}  # fmt: skip
BASE, STYLE = "base.safetensors", "style.safetensors"
LIE = key(CONV_IN, "[8,4,3,3]"), key(CONV_IN, "[9,4,3,3]")
# Exit code, words of the message, and how the inputs are spoilt.
FAULTS = {
    "truncated base": (1, [BASE, "truncated"], cut(BASE, -1)),
    "truncated header": (1, [BASE, "truncated"], cut(BASE, 999)),
    "empty base": (1, [BASE, "is empty"], cut(BASE, 0)),
    "truncated adapter": (1, [STYLE, "truncated"], cut(STYLE, -1)),
    "lying header": (
        1, [BASE, CONV_IN, "contradict"],
        lambda inputs: rewritten(inputs / BASE, lambda data: with_header(data, *LIE)),
    ),
    "base is text": (
        1, [BASE, "a web page"], lambda inputs: (inputs / BASE).write_text("<!doctype html>" * 99),
    ),
    "no base": (1, [BASE, "no such file"], lambda inputs: (inputs / BASE).unlink()),
    "no adapter": (1, ["lcm.safetensors", "no such file"], lambda inputs: (inputs / "lcm.safetensors").unlink()),
    "a malicious pickle": (
        1, ["style.ckpt", "nothing in it was run"],
        lambda inputs: torch.save(Malicious(inputs), inputs / "style.ckpt"),
    ),
    "missing up": (1, [STYLE, QUERY, "down without up"], changed(STYLE, lambda _: {f"{QUERY}.lora_up.weight": None})),
    "missing down": (
        1, [STYLE, QUERY, "up without down"], changed(STYLE, lambda _: {f"{QUERY}.lora_down.weight": None}),
    ),
    "another shape": (
        3, [STYLE, QUERY, "down is 4×9, not 4×8"],
        changed(STYLE, lambda _: {f"{QUERY}.lora_down.weight": torch.zeros(4, 9)}),
    ),
    "a stranger": (3, [STYLE, "lora_unet_stranger", "--allow-unmatched"], changed(STYLE, lambda _: STRANGER)),
    "NaN in the base": (
        1, [BASE, "unet.conv_in.weight", "NaN or Inf"],
        changed(BASE, lambda tensors: {CONV_IN: tensors[CONV_IN] * torch.nan}),
    ),
    "no effect": (3, [STYLE, "changes nothing"], changed(STYLE, silent)),
}  # fmt: skip


class Malicious:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place / "hacked"),)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_input(fault, place, cli):
    code, words, spoil = FAULTS[fault]
    inputs = place / "inputs"
    spoil(inputs)
    before = digests(inputs)
    style = next(inputs.glob("style.ckpt"), inputs / "style.safetensors")
    check(cli(*arguments(place, style=style)), code, *words)
    assert list((place / "out").iterdir()) == []
    assert digests(inputs) == before
    assert not (inputs / "hacked").exists()


def test_a_lora_of_another_architecture(files, place, cli):
    done = cli(*arguments(place, style=files("sdxl").style))
    check(done, 3, "looks made for Stable Diffusion XL, the base is Stable Diffusion 1")
    assert list((place / "out").iterdir()) == []


# The target


def test_an_existing_output_stays_without_force(place, cli):
    target = place / "out" / "fused.safetensors"
    target.write_text("precious")
    check(cli(*arguments(place)), 1, "exists already", "--force")
    assert target.read_text() == "precious"
    assert cli(*arguments(place), "--force").code == 0
    assert len(load(target)) == 1130


def test_existing_shards_stay_without_force(place, cli):
    """The files' own names count, not the one that was asked for."""
    precious = place / "out" / "fused-00002-of-00003.safetensors"
    precious.write_text("precious")
    check(cli(*arguments(place), "--max-shard-size", "500kB"), 1, precious.name, "exists already", "--force")
    assert list((place / "out").iterdir()) == [precious]
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("name", ["base", "style", "lcm"])
@pytest.mark.parametrize("way", ["itself", "symlink", "relative"])
def test_an_input_is_never_replaced(way, name, place, cli):
    target = place / "inputs" / f"{name}.safetensors"
    if way == "symlink":
        target = place / "out" / "link.safetensors"
        target.symlink_to(place / "inputs" / f"{name}.safetensors")
    elif way == "relative":
        target = place / "out" / ".." / "inputs" / f"{name}.safetensors"
    before = digests(place)
    check(cli(*arguments(place, output=target), "--force"), 1, "is an input of this run", "-o")
    assert digests(place) == before


def test_shards_that_are_inputs_are_never_replaced(files, place, cli):
    fuse(files("sd1").base(), place / "inputs" / "cut.safetensors", lcm=files("sd1").lcm, shard=500_000)
    before = digests(place)
    line = arguments(place, base=place / "inputs/cut.safetensors.index.json", output=place / "inputs/cut.safetensors")
    check(cli(*line, "--force", "--max-shard-size", "500kB"), 1, "is an input of this run", "-o")
    assert digests(place) == before


@pytest.mark.parametrize("target", [".", "unet", "unet/diffusion_pytorch_model.safetensors"])
def test_a_folder_that_holds_inputs_is_never_replaced(target, files, place, cli):
    base = place / "model"
    shutil.copytree(files("sd1").folder(), base)
    before = digests(place)
    check(cli(*arguments(place, base=base, output=base / target), "--force"), 1, "is an input of this run", "-o")
    assert digests(place) == before


def test_the_configs_are_never_replaced(files, place, cli):
    configs = place / "configs"
    shutil.copytree(files("sd1").folder(), configs)
    before = digests(place)
    line = arguments(place, output=configs)
    check(cli(*line, "--layout", "diffusers", "--config-from", configs, "--force"), 1, "is an input of this run", "-o")
    assert digests(place) == before


def test_a_folder_of_other_things_is_never_replaced(files, place, cli):
    target = place / "out" / "home.safetensors"
    target.mkdir()
    (target / "thesis.tex").write_text("precious")
    line = arguments(place, output=target)
    folder = ("--layout", "diffusers", "--config-from", files("sd1").folder(), "--force")
    check(cli(*line, *folder), 1, "is a folder", "-o")
    assert cli(*line).code == 0  # a file goes into it, under the name that it has where none is given
    (made,) = target.glob("*.safetensors")
    assert made.stem == "-".join([Path(BASE).stem, Path(STYLE).stem, "lcm"])
    assert (target / "thesis.tex").read_text() == "precious"
    check(cli(*line), 1, made.name, "exists already")


def test_a_pipelines_folder_is_replaced_with_force(files, place, cli):
    target = place / "out" / "model"
    shutil.copytree(files("sd1").folder("fp32"), target)
    (target / "old.txt").write_text("of the old model")
    line = (*arguments(place, output=target), "--layout", "diffusers", "--config-from", files("sd1").folder())
    check(cli(*line), 1, "exists already", "--force")
    assert cli(*line, "--force").code == 0
    assert not (target / "old.txt").exists()
    assert {tensor.dtype for tensor in load(target).values()} == {torch.float16}
    assert list((place / "out").iterdir()) == [target]


def test_no_such_folder(place, cli):
    check(cli(*arguments(place, output=place / "nowhere" / "fused.safetensors")), 1, "no such folder", "create it")


def test_a_file_where_a_folder_should_be(place, cli):
    file = place / "out" / "file"
    file.write_text("precious")
    check(cli(*arguments(place, output=file / "fused.safetensors")), 1, "no such folder")
    assert list((place / "out").iterdir()) == [file]


def test_a_folder_that_may_not_be_written(place, cli):
    """/proc refuses everyone, root too."""
    if not Path("/proc/self").is_dir():
        pytest.skip("no /proc here")
    before = digests(place)
    done = cli(*arguments(place, output=Path("/proc/fused.safetensors")))
    lines = done.err.splitlines()
    assert (done.code, len(lines)) == (1, 2)
    assert lines[0].startswith("Error: /proc")
    assert lines[1].startswith("Hint: ")
    assert digests(place) == before


def test_a_name_that_is_too_long(place, cli):
    check(cli(*arguments(place, output=place / "out" / ("x" * 250))), 1, "File name too long")
    check(cli(*arguments(place, output=place / "out" / ("x" * 240))), 1, "File name too long")


def test_two_runs_to_the_same_target(place, cli):
    target = place / "out" / "fused.safetensors"
    with Staging(target):
        check(cli(*arguments(place)), 1, "another run is writing it", "wait")
    assert list((place / "out").iterdir()) == []
    assert cli(*arguments(place)).code == 0
    assert list((place / "out").iterdir()) == [target]


# Device and numbers


@pytest.mark.parametrize("device", ["cuda:99", "quantum"])
def test_no_such_device(device, place, cli):
    check(cli(*arguments(place), "--device", device), 1, f"device '{device}'", "--device")
    assert list((place / "out").iterdir()) == []


@pytest.mark.parametrize("strengths", [("nan", "1"), ("1", "inf")])
def test_lambda_must_be_finite(strengths, place, cli):
    ran = cli(*arguments(place), "--lambda", *strengths)
    assert ran.code == 2
    assert "is not a finite number of float32: give a λ such as 0.8" in ran.err


# The disk


def test_a_disk_that_is_full_beforehand(place):
    """On a file system of 8 MB, in a mount namespace of its own."""
    mount = 'mount -t tmpfs -o size=8m none "$0" && '
    may = ["unshare", "-rm", "sh", "-c", f"{mount} true", place / "out"]
    if not shutil.which("unshare") or subprocess.run(may, check=False, capture_output=True).returncode:
        pytest.skip("no mounting here")
    inside = f'{mount}"$@"; code=$?; ls -A "$0"; exit $code'
    command = ["unshare", "-rm", "sh", "-c", inside, place / "out", sys.executable, "-m", "lcmmerge", *arguments(place)]
    done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    error, hint = done.stderr.splitlines()
    assert "GB, and the disk has 0.01 GB free" in error
    assert "free some space" in hint


@pytest.mark.parametrize("layout", ["single-file", "diffusers"])
def test_a_file_that_grows_too_large_midway(layout, files, place):
    """A limit on the size of files, which no look at the disk shows."""
    before = digests(place)
    line = [*arguments(place), "--layout", layout, "--config-from", files("sd1").folder()]
    done = forked.run(limited, 500_000, *map(str, line))
    assert done.returncode == 1
    assert done.stdout == ""
    error, hint = done.stderr.splitlines()
    assert error.endswith("cannot be written (File too large)")
    assert "--max-shard-size" in hint
    assert list((place / "out").iterdir()) == []
    assert digests(place) == before


def test_a_device_that_fills_up_midway():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with BlockWriter(Path("/dev/full"), 1 << 16) as writer, pytest.raises(OutputError, match="No space left") as caught:
        writer.write(Buffer(1 << 16), 0, 1 << 16)
    assert "free some space" in caught.value.hint


# Interrupted


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A U-Net with one parameter of 160 MB and a LoRA for it: half a second of work, and time to interrupt it."""
    folder = tmp_path_factory.mktemp("large")
    unet = {name: tensor.half() for name, tensor in pico("sd1").pipeline.unet.state_dict().items()}
    save_file(unet | {f"{BIG}.weight": torch.full((10_000, 8_000), 0.5).half()}, folder / "base.safetensors")
    save_file(
        {f"unet.{BIG}.lora_A.weight": torch.ones(64, 8_000), f"unet.{BIG}.lora_B.weight": torch.ones(10_000, 64)},
        folder / "lora.safetensors",
    )
    yield folder
    shutil.rmtree(folder)


def interrupted(start, large, target, with_signal):
    """Send the signal as soon as the output begins to grow."""
    staged = Staging(target).folder / target.name
    given = ("fuse", large / "base.safetensors", "--lcm", large / "lora.safetensors", "-o", target, "--threads", 1)
    for _ in range(20):
        child = start(*given)
        with child:
            while not staged.exists():
                assert child.poll() is None, child.communicate()
                time.sleep(0.001)
            child.send_signal(with_signal)
            out, err = child.communicate(timeout=60)
        if child.returncode:
            assert not target.exists()
            return child.returncode, out, err
        target.unlink()  # it was done before the signal came, as may happen on a busy machine
    pytest.fail("it was always done before the signal came")


def test_ctrl_c(start, large, tmp_path):
    before = digests(large)
    code, out, err = interrupted(start, large, tmp_path / "fused.safetensors", signal.SIGINT)
    assert (code, out) == (130, "")
    assert err.strip() == "Interrupted; nothing was written."
    assert list(tmp_path.iterdir()) == []
    assert digests(large) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_a_closed_terminal_are_as_ctrl_c(number, start, large, tmp_path):
    code, out, err = interrupted(start, large, tmp_path / "fused.safetensors", number)
    assert (code, out, err.strip()) == (130, "", "Interrupted; nothing was written.")
    assert list(tmp_path.iterdir()) == []


def test_kill_9_leaves_no_target_and_the_next_run_tidies_up(start, large, tmp_path):
    target = tmp_path / "fused.safetensors"
    code, _, _ = interrupted(start, large, target, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".fused.safetensors.lcmmerge.partial"]
    fuse(large / "base.safetensors", target, lcm=large / "lora.safetensors")
    assert list(tmp_path.iterdir()) == [target]
    assert load(target)[f"{BIG}.weight"][-1, -1] == 64.5
