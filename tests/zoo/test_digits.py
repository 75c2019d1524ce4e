"""The embedded model as it ships: it loads, is recognised, and draws the right digit in the right style."""

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from embedded.claim import GUIDANCE
from embedded.folder import SHIPPED, Folder, classic, prompts
from embedded.judge import LOOKS, judged
from embedded.merging import merged, task_vector
from embedded.sampling import Method, sample
from embedded.scenes import STYLES, caption
from embedded.vae import decoded
from safetensors.torch import load_file, save_file

from lcmmerge.history import RECIPE, record_of
from lcmmerge.refs.tokenizers import older_files
from lcmmerge.tensors import open_source
from lcmmerge.tensors.digest import sha256_of

FOLDER = Folder(SHIPPED)
DIGITS = torch.arange(30) % 10
MODULES = 277  # SD 1 has 278: two levels of the same width need one shortcut less


@pytest.fixture(scope="module")
def pipeline():
    pipeline = DiffusionPipeline.from_pretrained(FOLDER.base, torch_dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def unet():
    return FOLDER.load_unet()


@pytest.fixture(scope="module")
def vectors(unet):
    return {name: task_vector(FOLDER.lora(name), unet) for name in FOLDER.loras}


def test_files_are_small_and_half_precision() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 12e6
    for path in SHIPPED.rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}, path


def test_inspect_recognises_the_base(cli) -> None:
    facts = json.loads(cli("inspect", FOLDER.base, "--json").out)
    assert (facts["kind"], facts["architecture"], facts["purpose"]) == ("checkpoint", "sd1", "base")
    assert facts["lcm_lora"]["modules"] == MODULES


@pytest.mark.parametrize("name", FOLDER.loras)
def test_inspect_recognises_the_loras(name, cli) -> None:
    facts = json.loads(cli("inspect", FOLDER.lora(name), "--json").out)
    assert facts["kind"] == "adapter"
    assert facts["parts"][-1]["modules"] == MODULES


@pytest.mark.parametrize("style", STYLES)
def test_a_styles_card_asks_for_the_guidance_of_the_claim(style) -> None:
    card = FOLDER.lora(style).with_suffix(".md").read_text("utf-8")
    assert f"- guidance: {GUIDANCE:g}\n" in card
    assert f"guidance_scale={GUIDANCE:g})" in card


def test_the_pipeline_draws(pipeline) -> None:
    image = pipeline(caption(7), num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert image.size == (64, 64)


def test_the_shipped_text_encoder_is_that_of_the_claim(pipeline) -> None:
    captions = [*(caption(digit) for digit in range(10)), ""]
    ids = pipeline.tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        states = pipeline.text_encoder(ids)[0]
    torch.testing.assert_close(states, prompts())


def test_diffusers_takes_the_lcm_lora(pipeline, unet, vectors) -> None:
    pipeline.load_lora_weights(FOLDER.path, weight_name="lcm.safetensors", adapter_name="lcm")
    pipeline.fuse_lora(adapter_names=["lcm"])
    expected = merged(unet, {"lcm": 1.0}, vectors).state_dict()
    pipeline.unload_lora_weights()
    for name, tensor in pipeline.unet.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-3, rtol=1e-3)


def test_fuse_writes_the_weights_of_the_claim(cli, tmp_path, unet, vectors) -> None:
    style, target = next(iter(STYLES)), tmp_path / "fused"
    terms = (FOLDER.base, FOLDER.lora(style), "--lcm", FOLDER.lora("lcm"), "--lambda", 0.8, 1.0)
    ran = cli("fuse", *terms, "--dtype", "fp32", "-o", target)
    assert ran.code == 0, ran.err
    written = load_file(target / "unet" / "diffusion_pytorch_model.safetensors")
    expected = merged(unet, {style: 0.8, "lcm": 1.0}, vectors).state_dict()
    for name, tensor in written.items():
        torch.testing.assert_close(tensor, expected[name].contiguous(), atol=1e-6, rtol=1e-5)


def hits(unet, method: Method, look: str) -> float:
    pictures = decoded(FOLDER.load_vae(), sample(unet, prompts(), DIGITS, method, seed=7))
    verdict = judged(FOLDER.load_judge(), pictures)
    return float(((verdict.digits == DIGITS) & (verdict.looks == list(LOOKS).index(look))).float().mean())


@pytest.mark.parametrize("style", STYLES)
def test_four_evaluations_draw_the_right_digit_in_the_right_style(style, unet, vectors) -> None:
    found = json.loads(FOLDER.claim.read_text("utf-8"))[style]["found"]
    assert hits(merged(unet, found, vectors), Method("LCM", 4), style) >= 0.6


def test_transformers_4_finds_the_text_s_files() -> None:
    """It reads vocab.json and merges.txt, and names with ``text_model.``; transformers 5 saves neither."""
    folder = FOLDER.base / "tokenizer"
    written = older_files((folder / "tokenizer.json").read_text("utf-8"), "tokenizer.json")
    assert written.keys() == {"vocab.json", "merges.txt"}
    assert all((folder / name).read_text("utf-8") == text for name, text in written.items())
    names = load_file(FOLDER.base / "text_encoder/model.safetensors")
    assert len(names) == 196
    assert all(name.startswith("text_model.") for name in names)


def test_the_makers_leave_them_so(tmp_path) -> None:
    base = shutil.copytree(FOLDER.base, tmp_path / "base")
    for name in ("vocab.json", "merges.txt"):
        (base / "tokenizer" / name).unlink()
    file = base / "text_encoder/model.safetensors"
    shipped = file.read_bytes()
    save_file({name.removeprefix("text_model."): tensor for name, tensor in load_file(file).items()}, file)
    classic(base)
    assert file.read_bytes() == shipped
    assert (base / "tokenizer/vocab.json").is_file()


def test_the_loras_record_the_base_that_ships() -> None:
    base = open_source(FOLDER.base)
    for name in FOLDER.loras:
        recorded = record_of(open_source(FOLDER.lora(name)), RECIPE)["base"]
        assert recorded == {"name": "base", "sha256": sha256_of(base.files)}
