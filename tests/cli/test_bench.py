"""``lcmmerge bench``, and ``lcmmerge generate`` of an export."""

import json

import numpy as np
import pytest
from PIL import Image
from running import exact
from sampling import assert_alike

pytestmark = pytest.mark.e2e

DRAW = ("--prompt", "the thing", "--size", "64x64", "--steps", 2, "--seed", 3)


@pytest.fixture(scope="module")
def export(files, tmp_path_factory):
    return exact(tmp_path_factory, files("sd1"))


def test_bench(export, cli):
    quick = ("--component", "vae_encoder", "--repeats", 1, "--warmup", 1, "--no-compile", "--size", "32x40")
    done = cli("bench", export, "--provider", "cpu", *quick)
    assert (done.code, done.err) == (0, "running on cpu by ONNX Runtime's CPUExecutionProvider\n")
    assert "ONNX Runtime cpu, plain" in done.out
    assert done.out.splitlines()[-1].startswith("1 calls each in turns, after 1; batch 1; cpu, ")
    report = json.loads(cli("bench", export, *quick, "--json").out)
    assert [row["by"] for row in report["rows"]] == ["torch eager", "ONNX Runtime cpu, plain"]
    assert report["versions"]["torch"]


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_generate_with_an_export_is_generate_with_its_model(export, files, cli, tmp_path):
    done = cli("generate", export, *DRAW, "-o", tmp_path / "ours", "--json", "--provider", "cpu")
    assert (done.code, done.err) == (0, "running on cpu by ONNX Runtime's CPUExecutionProvider\n")
    report = json.loads(done.out)
    assert (report["device"], report["dtype"], report["preset"]) == ("cpu", "float32", "recorded")
    assert report["model"]["provider"] == "cpu"
    expected = cli("generate", files("sd1").folder("fp32"), *DRAW, "-o", tmp_path / "torch")
    assert expected.code == 0
    assert_alike(pixels(tmp_path / "ours" / "0000-3.png"), pixels(tmp_path / "torch" / "0000-3.png"))
    with Image.open(tmp_path / "ours" / "0000-3.png") as image:
        assert json.loads(image.text["lcmmerge"])["model"]["graph"] == "fused"


@pytest.mark.parametrize("option", ["--device", "--dtype", "--variant", "--config-from"])
def test_what_is_no_option_of_an_export(option, export, cli, tmp_path):
    done = cli("generate", export, *DRAW, "-o", tmp_path / "images", option, "fp16")
    assert (done.code, done.out) == (2, "")
    assert f"{option} is not of an export" in done.err
    assert not (tmp_path / "images").exists()


def test_a_provider_is_of_an_export(files, cli, tmp_path):
    done = cli("generate", files("sd1").folder(), *DRAW, "-o", tmp_path / "images", "--provider", "cpu")
    assert done.code == 2
    assert "--provider is of an export" in done.err


def test_a_live_merge_into_an_exports_weights(export, files, cli, tmp_path):
    """They are a diffusers folder's."""
    done = cli(
        "generate", export, *DRAW, "-o", tmp_path / "images", "--lcm", files("sd1").lcm, "--accelerator", "lcm",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
