"""``lcmmerge generate`` as a person and a program meet it."""

import json
import signal
import time

import numpy as np
import pytest
from fusing import fuse, without_alpha
from PIL import Image
from sampling import assert_alike, by_diffusers, one

FAST = ("--size", "64x64", "--steps", 2)


@pytest.fixture
def inputs(files):
    return files("sd1")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "images"


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_images_and_what_is_said_of_them(inputs, out, cli, tmp_path):
    (tmp_path / "prompts.txt").write_text("a fox\n\nthe thing\n")
    done = cli(
        "generate", inputs.folder(), "--prompt", "a hat", "--prompts", tmp_path / "prompts.txt", "-o", out,
        "--seed", 3, "--count", 2, "--batch", 4, "--scheduler", "ddim", *FAST,
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    names = ["0000-3.png", "0001-4.png", "0002-3.png", "0003-4.png", "0004-3.png", "0005-4.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert done.out.splitlines()[-1] == (
        "ddim (DDIMScheduler), 2 steps, guidance 7.5; 4 evaluations of the U-Net per image; float32 on cpu"
    )
    with Image.open(out / "0004-3.png") as image:
        assert image.text["parameters"].startswith("the thing\nSteps: 2, Sampler: DDIM, CFG scale: 7.5, Seed: 3, ")
        assert json.loads(image.text["lcmmerge"])["model"]["name"] == inputs.folder().name


def test_the_image_is_diffusers_own(inputs, out, cli):
    done = cli("generate", inputs.folder(), "--prompt", one().prompt, "-o", out, "--seed", one().seed, *FAST)
    assert done.code == 0
    expected = by_diffusers(inputs.folder(), one(), num_inference_steps=2, guidance_scale=7.5)
    assert_alike(pixels(out / "0000-3.png"), expected[0])


def test_json_is_one_document_on_stdout(inputs, out, cli):
    done = cli(
        "generate", inputs.base(), "--config-from", inputs.folder(), "--prompt", "a fox", "-o", out, "--json",
        "--accelerator", "tcd", "--negative", "a hat", *FAST,
    )  # fmt: skip
    assert (done.code, done.err) == (0, "Warning: guidance is off, so --negative has no effect\n")
    report = json.loads(done.out)
    assert report["images"] == [
        {"file": str(out / "0000-0.png"), "prompt": "a fox", "negative": "a hat", "seed": 0, "width": 64, "height": 64}
    ]
    assert (report["preset"], report["scheduler"], report["evaluations"]) == ("tcd", "TCDScheduler", 2)
    assert report["arguments"] == {"eta": 0.3}


def test_a_live_merge_is_the_baked_one(inputs, out, cli, tmp_path):
    baked = tmp_path / "baked.safetensors"
    fuse(inputs.base(), baked, inputs.style, inputs.lcm, (0.8, 1.0), accelerator="lcm")
    common = ("--config-from", inputs.folder(), "--prompt", "a fox", "--size", "64x64", "--json")
    live = cli(
        "generate", inputs.base(), "--live", inputs.style, "--lcm", inputs.lcm, "--accelerator", "lcm",
        "--lambda", 0.8, 1.0, *common, "-o", out,
    )  # fmt: skip
    assert (live.code, live.err) == (0, "")
    done = cli("generate", baked, *common, "-o", tmp_path / "baked")
    assert np.array_equal(pixels(out / "0000-0.png"), pixels(tmp_path / "baked" / "0000-0.png"))
    for report in (json.loads(live.out), json.loads(done.out)):
        assert (report["scheduler"], report["steps"], report["evaluations"]) == ("LCMScheduler", 4, 4)


def test_an_alpha_that_is_told(inputs, out, cli, tmp_path):
    """As one in the file, 2; the images say it."""
    style = without_alpha(inputs.style, tmp_path / "style.safetensors")
    drawn = {}
    for name, words in {"own": [inputs.style], "told": [style, "--alpha", "style", 2], "none": [style]}.items():
        options = ("--lambda", 1, 0, "--scheduler", "ddim", "--prompt", "a fox", *FAST, "-o", out / name)
        out.mkdir(exist_ok=True)
        assert cli("generate", inputs.folder(), "--live", *words, *options).code == 0
        drawn[name] = pixels(out / name / "0000-0.png")
    assert np.array_equal(drawn["told"], drawn["own"])
    assert not np.array_equal(drawn["told"], drawn["none"])
    with Image.open(out / "told" / "0000-0.png") as image:
        assert json.loads(image.text["lcmmerge"])["model"]["terms"][0]["alpha"] == 2


@pytest.mark.parametrize("option", ["--lcm", "--accelerator"])
def test_an_accelerator_that_nobody_named_is_told(option, inputs, out, cli):
    done = cli("generate", inputs.folder(), option, inputs.lcm, "--prompt", "a", "-o", out, *FAST)
    assert done.code == 0
    assert done.err == (
        f"Warning: which accelerator {inputs.lcm} is cannot be told: name it by --accelerator, or a --scheduler\n"
    )


@pytest.mark.parametrize("given", [("--lcm", "tcd"), ("--lambda", 1, 1, "--accelerator", "tcd")])
def test_a_name_is_merged_where_a_merge_is_asked_for(given, files, out, cli):
    """And else it is what MODEL holds: ``test_json_is_one_document_on_stdout``."""
    done = cli("generate", files("ssd1b").folder(), *given, "--prompt", "a", "-o", out)
    done.assert_fault(1, "SSD-1B: the accelerator tcd has no file for it")


USAGE = {
    "no prompt": ((), "Give a --prompt"),
    "size": (("--prompt", "a", "--size", "100x64"), "multiples of 8"),
    "no size": (("--prompt", "a", "--size", "big"), "is not a size"),
    "steps": (("--prompt", "a", "--steps", 0), "--steps"),
    "guidance": (("--prompt", "a", "--guidance", -1), "--guidance"),
    "scheduler": (("--prompt", "a", "--scheduler", "k_euler"), "--scheduler"),
    "lambda": (("--prompt", "a", "--lambda", 1, 1), "--lambda is of a live merge"),
    "alpha": (("--prompt", "a", "--alpha", "style", 2), "--alpha is of a live merge"),
    "alpha twice": (("--prompt", "a", *2 * ("--alpha", "style", 2)), "--alpha is given twice"),
}


@pytest.mark.parametrize("case", USAGE)
def test_usage(case, inputs, out, cli):
    arguments, words = USAGE[case]
    done = cli("generate", inputs.folder(), "-o", out, *arguments)
    assert done.code == 2
    assert words in done.err
    assert not out.exists()


FAULTS = {
    "prompts": (("--prompts", "nowhere.txt"), 1, "prompts nowhere.txt: cannot be read"),
    "device": (("--prompt", "a", "--device", "cuda:7"), 1, "there is none here"),
    "steps": (("--prompt", "a", "--scheduler", "lcm", "--steps", 60), 1, "takes at most 50"),
    "accelerator": (("--prompt", "a", "--accelerator", "nitro"), 1, "nor the name of an accelerator"),
    "style": (("--prompt", "a", "--live", "nowhere"), 1, "no such file or folder"),
    "flow": (("--prompt", "a", "--accelerator", "hyperflux-8steps"), 3, "hyperflux-8steps: draws what predicts flow"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_are_one_line_and_its_cure(case, inputs, out, cli):
    arguments, code, words = FAULTS[case]
    cli("generate", inputs.folder(), "-o", out, *arguments).assert_fault(code, words)
    assert not out.exists()


def test_a_model_that_draws_nothing_is_incompatible(inputs, out, cli):
    done = cli("generate", inputs.folder() / "unet" / "diffusion_pytorch_model.safetensors", "--prompt", "a", "-o", out)
    assert done.code == 3
    assert "has no vae, text_encoder" in done.err


def test_images_are_not_replaced_unasked(inputs, out, cli):
    out.mkdir()
    (out / "0000-0.png").write_text("mine")
    arguments = ("generate", inputs.folder(), "--prompt", "a", "-o", out, *FAST)
    done = cli(*arguments)
    assert done.code == 1
    assert "exists already" in done.err
    assert (out / "0000-0.png").read_text() == "mine"
    assert cli(*arguments, "--force").code == 0
    assert pixels(out / "0000-0.png").shape == (64, 64, 3)


@pytest.mark.e2e
def test_interrupted_it_keeps_what_is_finished(inputs, out, start):
    child = start("generate", inputs.folder(), "--prompt", "a", "-o", out, "--count", 10_000, *FAST)
    deadline = time.monotonic() + 300
    while not list(out.glob("*.png")):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 130
    finished = sorted(out.iterdir())
    assert err.splitlines()[-1] == f"Interrupted; {len(finished)} of 10000 images are in {out}."
    assert all(pixels(path).shape == (64, 64, 3) for path in finished)


@pytest.mark.e2e
def test_a_pipeline_on_the_hub(inputs, out, hub, process, tmp_path):
    folder = inputs.folder()
    hub.add("owner/model", {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()})
    done = process(
        "generate", "hf://owner/model", "--prompt", "the thing", "--seed", 3, "-o", out, *FAST,
        **hub.environment(tmp_path / "home"),
    )  # fmt: skip
    assert done.code == 0, done.err
    expected = by_diffusers(folder, one(), num_inference_steps=2, guidance_scale=7.5)
    assert_alike(pixels(out / "0000-3.png"), expected[0])
