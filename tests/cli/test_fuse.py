"""``lcmmerge fuse`` as a person and a program meet it."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from flux import wide
from fusing import load, metadata
from pico import pico
from safetensors.torch import load_file, save_file


@pytest.fixture
def inputs(files):
    return files("sd1")


@pytest.fixture
def target(tmp_path):
    return tmp_path / "fused.safetensors"


def rows(text):
    """The cells of a table's lines."""
    return [line.split() for line in text.splitlines()]


def test_the_table_says_what_landed_where(inputs, target, cli):
    done = cli("fuse", inputs.base(), inputs.style, "--lcm", inputs.lcm, "--lambda", "0.8", "1.0", "-o", target)
    assert (done.code, done.err) == (0, "")
    assert [row[:6] for row in rows(done.out) if row and row[0] in ("style", "lcm")] == [
        ["style", "unet", "0.8", "192", "of", "686"],
        ["style", "text_encoder", "0.8", "72", "of", "196"],
        ["lcm", "unet", "1", "278", "of", "686"],
    ]
    assert done.out.splitlines()[-1] == f"{target}  1.33 MB"
    assert len(load(target)) == 1130


def test_relative_norm_is_that_of_the_written_change(inputs, target, cli):
    done = cli("fuse", inputs.base("fp32"), "--lcm", inputs.lcm, "-o", target, "--json")
    (row,) = json.loads(done.out)["coverage"]
    before, after = load(inputs.base("fp32")), load(target)
    changed = [name for name in after if not torch.equal(after[name], before[name])]
    change = sum(float((after[name] - before[name]).square().sum()) for name in changed)
    base = sum(float(before[name].square().sum()) for name in changed)
    assert row["parameters"] == len(changed) == 278
    assert row["relative"] == pytest.approx((change / base) ** 0.5, rel=1e-3)
    assert row["signal"] is None  # nothing was lost


def test_signal_is_what_rounding_left(inputs, target, cli):
    done = cli("fuse", inputs.base("fp32"), "--lcm", inputs.lcm, "-o", target, "--json", "--dtype", "bf16")
    (row,) = json.loads(done.out)["coverage"]
    cli("fuse", inputs.base("fp32"), "--lcm", inputs.lcm, "-o", target.with_name("exact.safetensors"))
    before, exact, found = load(inputs.base("fp32")), load(target.with_name("exact.safetensors")), load(target)
    changed = [name for name in exact if not torch.equal(exact[name], before[name])]
    change = sum(float((exact[name] - before[name]).square().sum()) for name in changed)
    error = sum(float((found[name].float() - exact[name]).square().sum()) for name in changed)
    assert row["signal"] == pytest.approx((change / error) ** 0.5, rel=0.05)


def test_json_is_one_document_on_stdout(inputs, target, cli):
    done = cli("fuse", inputs.base(), inputs.style, "--lcm", inputs.lcm, "-o", target, "--json")
    assert done.err == ""
    report = json.loads(done.out)
    assert report["output"] == str(target)
    assert report["bytes"] == sum(tensor.nbytes for tensor in load(target).values())
    assert report["sha256"] == {target.name: metadata(target)["modelspec.hash_sha256"].removeprefix("0x")}
    assert [(row["term"], row["component"]) for row in report["coverage"]] == [
        ("style", "unet"), ("style", "text_encoder"), ("lcm", "unet"),
    ]  # fmt: skip


def test_dry_run_prints_the_plan_and_writes_nothing(inputs, target, cli):
    done = cli(
        "fuse", inputs.base(), inputs.style, "--lcm", inputs.lcm, "-o", target, "--dry-run", "--max-shard-size", "500kB"
    )
    assert done.code == 0
    assert "Stable Diffusion 1, base, single-file" in done.out
    assert "fused-00003-of-00003.safetensors" in done.out
    assert ["style", "text_encoder", "sd1-style.safetensors", "1", "72"] in rows(done.out)
    assert list(target.parent.iterdir()) == []
    as_json = cli("fuse", inputs.base(), inputs.style, "--lcm", inputs.lcm, "-o", target, "--dry-run", "--json")
    plan = json.loads(as_json.out)
    assert plan["output"] == str(target)
    assert plan["files"] == [{"path": target.name, "tensors": 1130, "bytes": plan["bytes"]}]
    assert [(term["name"], term["parameters"]) for term in plan["terms"]] == [
        ("style", {"text_encoder": 72, "unet": 192}), ("lcm", {"unet": 278}),
    ]  # fmt: skip


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_is_wrong_with_the_output_is_said_by_a_dry_run_too(dry, inputs, target, cli):
    target.write_text("precious")
    done = cli("fuse", inputs.base(), "--lcm", inputs.lcm, "-o", target, *dry)
    assert done.code == 1
    assert "exists already" in done.err


def test_the_output_is_named_after_the_inputs(inputs, tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli("fuse", inputs.base(), inputs.style, "--lcm", inputs.lcm).code == 0
    assert cli("fuse", inputs.base(), "--lcm", inputs.lcm).code == 0
    assert cli("fuse", inputs.folder(), "--lcm", inputs.lcm).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "sd1-fp16-lcm", "sd1-fp16-lcm.safetensors", "sd1-fp16-sd1-style-lcm.safetensors",
    ]  # fmt: skip


def test_a_suffix_is_added_where_there_is_none(inputs, tmp_path, cli):
    assert cli("fuse", inputs.base(), "--lcm", inputs.lcm, "-o", tmp_path / "v1.5-fast").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["v1.5-fast.safetensors"]


def test_shards_are_reported_by_their_index(inputs, target, cli):
    done = cli("fuse", inputs.base(), "--lcm", inputs.lcm, "-o", target, "--max-shard-size", "500kB")
    assert done.out.splitlines()[-1] == f"{target}.index.json  1.33 MB"


def test_lambda_of_a_style_that_is_not_there_is_noted(inputs, target, cli):
    done = cli("fuse", inputs.base(), "--lcm", inputs.lcm, "-o", target, "--lambda", "0.8", "1")
    assert (done.code, done.err) == (0, "No STYLE is given, so λ1 = 0.8 has no term.\n")
    quiet = cli("fuse", inputs.base(), "--lcm", inputs.lcm, "-o", target, "--lambda", "0.8", "1", "-q", "--force")
    assert (quiet.code, quiet.err) == (0, "")


def test_lambda_zero_is_warned_of(inputs, target, cli):
    done = cli("fuse", inputs.base(), inputs.style, "-o", target, "--lambda", "0", "0")
    assert (done.code, done.err) == (0, "Warning: every λ is 0: the weights stay the base's\n")


def test_extra_adapters_and_block_weights(inputs, target, cli):
    done = cli(
        "fuse", inputs.base(), inputs.style, "--lcm", inputs.lcm, "--adapter", inputs.style, "-0.25",
        "--block-weights", "style", "BASE=0", "--block-weights", "sd1-style", "IN00-OUT11=0", "-o", target, "--json",
    )  # fmt: skip
    assert [(row["term"], row["component"], row["strength"]) for row in json.loads(done.out)["coverage"]] == [
        ("style", "unet", 1.0), ("lcm", "unet", 1.0), ("sd1-style", "text_encoder", -0.25),
    ]  # fmt: skip


def test_what_is_left_out_is_warned_of(files, target, cli):
    done = cli("fuse", files("ssd1b").base(), "--lcm", files("sdxl").lcm, "--allow-unmatched", "-o", target)
    assert done.code == 0
    assert "Warning: lcm looks made for Stable Diffusion XL" in done.err
    assert "Warning: 365 keys of lcm have no home and are left out: lora_unet_" in done.err
    assert "(all with -v)" in done.err
    verbose = cli(
        "fuse", files("ssd1b").base(), "--lcm", files("sdxl").lcm, "--allow-unmatched", "-o", target, "-v", "--force"
    )
    assert verbose.err.count("lora_unet_") == 365


def test_a_lora_that_fits_by_accident_is_warned_of(files, target, cli):
    """Everything of SSD-1B's has a home in SDXL."""
    done = cli("fuse", files("sdxl").base(), "--lcm", files("ssd1b").lcm, "-o", target)
    assert (done.code, done.err) == (
        0,
        "Warning: lcm looks made for SSD-1B, by its modules; the base is Stable Diffusion XL\n",
    )


def test_dropped_tensors_are_noted(files, target, cli, tmp_path):
    base = pico("sd1").single_file(tmp_path / "base.safetensors", extras=True)
    done = cli("fuse", base, "--lcm", files("sd1").lcm, "--drop-ema", "-o", target)
    assert "Left out of the base: 687 tensors: model_ema." in done.err


def test_a_dtype_that_swallows_a_term_is_warned_of(inputs, target, cli):
    done = cli("fuse", inputs.base(), "--lcm", inputs.lcm, "--lambda", "1", "0.05", "--dtype", "fp8_e5m2", "-o", target)
    assert done.code == 0
    assert "Warning: rounding drowns much of lcm in unet (weakest layer: unet." in done.err
    assert "--rounding stochastic" in done.err
    full = cli("fuse", inputs.base(), "--lcm", inputs.lcm, "--dtype", "fp32", "-o", target, "--force", "-q")
    assert "drowns" not in full.err


def test_an_encoding_of_few_bits_that_is_asked_for_is_told_what_it_kept(cli, tmp_path):
    base, lora = wide(tmp_path)
    for how in (("--encoding", "gguf:q4_0"), ("--like", tmp_path / "first.gguf")):
        name = "second" if how[0] == "--like" else "first"
        done = cli("fuse", base, lora, "--lambda", "1", "0", *how, "-o", tmp_path / f"{name}.gguf")
        assert (done.code, "drowns" in done.err) == (0, False)
        assert "Rounding kept " in done.out


def test_verbose_shows_every_layer(inputs, target, cli):
    done = cli("fuse", inputs.base(), "--lcm", inputs.lcm, "-o", target, "-v")
    assert done.out.count("conv1.weight") == 22


def test_a_unet_alone_and_a_pickle_need_no_more(inputs, target, cli, tmp_path):
    torch.save(
        {"state_dict": load_file(inputs.folder() / "unet/diffusion_pytorch_model.safetensors")}, tmp_path / "unet.ckpt"
    )
    done = cli("fuse", tmp_path / "unet.ckpt", "--lcm", inputs.lcm, "-o", target)
    assert done.code == 0
    assert len(load(target)) == 686


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["base.safetensors", "--bogus"],
        ["base.safetensors", "--lambda", "1"],
        ["base.safetensors", "--lambda", "strong", "1"],
        ["base.safetensors", "--dtype", "fp12"],
        ["base.safetensors", "--layout", "gguf"],
        ["base.safetensors", "--rounding", "up"],
        ["base.safetensors", "--max-shard-size", "big"],
        ["base.safetensors", "--max-shard-size", "0"],
        ["base.safetensors", "--threads", "-1"],
        ["base.safetensors", "style.safetensors", "surplus"],
    ],
)
def test_usage_errors(wrong, cli):
    done = cli("fuse", *wrong)
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1].startswith("Error: ")


def test_help_names_every_option(cli):
    done = cli("fuse", "--help")
    assert done.code == 0
    for option in (
        "--lambda",
        "--lcm",
        "--block-weights",
        "--config-from",
        "--rounding",
        "--allow-unmatched",
        "--dry-run",
    ):
        assert option in done.out


def test_stdout_that_closes_early_is_no_traceback(inputs, target):
    """lcmmerge fuse … | head -0."""
    line = [sys.executable, "-m", "lcmmerge", "fuse", inputs.base(), "--lcm", inputs.lcm, "-o", target, "-v"]
    child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    child.stdout.close()
    err = child.stderr.read()
    child.wait(timeout=60)
    assert "Traceback" not in err
    assert "Exception ignored" not in err


def test_old_files_keep_their_place_when_a_run_fails(inputs, target, cli, tmp_path):
    shutil.copy(inputs.base(), target)
    before = target.read_bytes()
    save_file(
        {name: tensor * torch.nan for name, tensor in load_file(inputs.lcm).items()}, tmp_path / "lcm.safetensors"
    )
    done = cli("fuse", inputs.base(), "--lcm", tmp_path / "lcm.safetensors", "-o", target, "--force")
    assert done.code == 1
    assert target.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_what_the_base_predicts_is_said(files, tmp_path, cli):
    """In the plan; and where it is a guess, or the accelerator is for something else, as a warning."""
    sd2, sdxl = files("sd2"), files("sdxl")
    line = ("fuse", sd2.base(), "--lcm", sd2.lcm, "--dry-run")
    done = cli(*line)
    assert "The base predicts v (as usual)." in done.out
    assert "v_prediction is assumed" in done.err and "--prediction" in done.err
    done = cli(*line, "--prediction", "epsilon")
    assert "The base predicts ε (as asked)." in done.out
    assert "assumed" not in done.err
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file(load(sdxl.base()) | marks, tmp_path / "v.safetensors")
    line = ("fuse", tmp_path / "v.safetensors", "--lcm", sdxl.lcm, "--dry-run")
    done = cli(*line, "--accelerator", "lcm")
    assert "Warning: lcm is made for models that predict epsilon; the base predicts v, with zero" in done.err
    done = cli(*line, "--json")
    assert json.loads(done.out)["prediction"] == {
        "type": "v_prediction", "zero_terminal_snr": True, "told_by": "by v_pred, ztsnr",
    }  # fmt: skip
    assert "made for" not in done.err


def test_an_output_named_sft(inputs, tmp_path, cli):
    done = cli("fuse", inputs.base(), inputs.style, "--lambda", 1, 0, "-o", tmp_path / "out.SFT")
    assert done.code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.SFT"]
