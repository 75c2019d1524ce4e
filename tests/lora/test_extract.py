"""τ → LoRA: what a merge put in must come out again, and nothing better is possible at that rank."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from adapterfile import assert_near
from fusing import Files, canonical, edited, fuse, load, metadata
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiers import of_each

from lcmmerge.archs import identify
from lcmmerge.errors import (
    IncompatibleError,
    NoEffectError,
    NumericError,
    OutputError,
    ShapeMismatchError,
    UnmatchedKeysError,
)
from lcmmerge.lora.extract import Extracted, ExtractSettings, extract, tuned_of
from lcmmerge.lora.lowrank import product_spectrum, spectrum
from lcmmerge.tensors import DTYPES, open_source

FP32 = ExtractSettings(8, dtype=DTYPES["F32"])


def run(tuned: Path, base: Path, target: Path, chosen: ExtractSettings = FP32, force: bool = False) -> Extracted:
    model = identify(open_source(base))
    return extract(tuned_of(open_source(tuned), model), model, target, chosen, force=force)


def tuned(files: Files, target: Path) -> Path:
    """A low-rank change of every LoRA target: ranks 4 + 4."""
    fuse(files.base("fp32"), target, files.style, files.lcm, (1.0, 1.0))
    return target


@pytest.mark.parametrize("name", of_each(["sd1", "sdxl"]))
def test_a_low_rank_change_comes_back_whole(name: str, files: Callable[[str], Files], tmp_path: Path) -> None:
    base = files(name).base("fp32")
    wanted = tuned(files(name), tmp_path / "tuned.safetensors")
    found = run(wanted, base, tmp_path / "lora.safetensors")
    assert found.energy == pytest.approx(1, abs=1e-6)
    assert not found.left_out
    fuse(base, tmp_path / "again.safetensors", tmp_path / "lora.safetensors", strengths=(1.0, 0.0))
    before, again = load(base), load(tmp_path / "again.safetensors")
    for key, tensor in load(wanted).items():
        assert_near(again[key] - before[key], tensor - before[key], 1e-3)


@pytest.mark.e2e
def test_the_file_is_a_kohya_lora(files: Callable[[str], Files], tmp_path: Path) -> None:
    wanted = tuned(files("sdxl"), tmp_path / "tuned.safetensors")
    run(wanted, files("sdxl").base("fp32"), tmp_path / "lora.safetensors", ExtractSettings(3))
    tensors = load_file(tmp_path / "lora.safetensors")
    assert {name.partition("_")[0] for name in tensors} == {"lora"}
    assert {name.split("_")[1] for name in tensors} == {"unet", "te1", "te2"}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    conv = "lora_unet_input_blocks_1_0_in_layers_2"  # kohya's blocks of SDXL are LDM's
    assert tensors[f"{conv}.lora_up.weight"].shape == (8, 3, 1, 1)
    assert tensors[f"{conv}.lora_down.weight"].shape == (3, 8, 3, 3)
    assert tensors[f"{conv}.alpha"] == 3
    linear = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    assert tensors[f"{linear}.lora_up.weight"].shape == (16, 3)
    stored = metadata(tmp_path / "lora.safetensors")
    assert stored["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert (stored["ss_base_model_version"], stored["ss_network_dim"]) == ("sdxl_base_v1-0", "3")
    assert stored["modelspec.resolution"] == "1024x1024"
    source = open_source(tmp_path / "lora.safetensors")
    data = (tmp_path / "lora.safetensors").read_bytes()[next(iter(source)).offset :]
    assert stored["modelspec.hash_sha256"] == f"0x{hashlib.sha256(data).hexdigest()}"


def test_energy_per_layer_is_what_numpy_says(files: Callable[[str], Files], tmp_path: Path) -> None:
    """Oracle: numpy's SVD in float64 of the same difference."""
    base = files("sd1").base("fp32")
    wanted = tuned(files("sd1"), tmp_path / "tuned.safetensors")
    found = run(wanted, base, tmp_path / "lora.safetensors", replace(FP32, rank=2))
    before, after = canonical(base), canonical(wanted)
    assert len(found.layers) > 300
    for layer in found.layers[::10]:
        difference = (after[layer.name].double() - before[layer.name].double()).flatten(1).numpy()
        squares = np.linalg.svd(difference, compute_uv=False) ** 2
        assert layer.energy == pytest.approx(squares[:2].sum() / squares.sum(), rel=1e-3)
        assert layer.square == pytest.approx(squares.sum(), rel=1e-3)


def test_energy_chooses_the_least_rank(files: Callable[[str], Files], tmp_path: Path) -> None:
    base = files("sd1").base("fp32")
    wanted = tuned(files("sd1"), tmp_path / "tuned.safetensors")
    found = run(wanted, base, tmp_path / "lora.safetensors", replace(FP32, energy=0.8))
    before, after = canonical(base), canonical(wanted)
    ranks = set()
    for layer in found.layers:
        difference = (after[layer.name].double() - before[layer.name].double()).flatten(1)
        energies = (torch.linalg.svdvals(difference) ** 2).cumsum(0) / difference.square().sum()
        assert layer.rank == int((energies < 0.8).sum()) + 1
        ranks.add(layer.rank)
    assert len(ranks) > 2
    stored = open_source(tmp_path / "lora.safetensors")
    assert {info.shape[0] for info in stored if "lora_down" in info.name} == ranks


def test_norms_and_biases_only_when_asked_for(files: Callable[[str], Files], tmp_path: Path) -> None:
    base = files("sd1").base("fp32")
    norm, bias, query = (
        f"model.diffusion_model.input_blocks.1.{name}"
        for name in ("0.in_layers.0.weight", "1.proj_in.bias", "1.transformer_blocks.0.attn1.to_q.weight")
    )
    embedding = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    vae = "first_stage_model.decoder.conv_in.weight"
    changed = {name: load(base)[name] + 0.1 for name in (norm, bias, query, embedding, vae)}
    wanted = edited(base, tmp_path / "tuned.safetensors", **changed)
    plain = run(wanted, base, tmp_path / "plain.safetensors")
    assert [layer.name.rpartition(".")[0].rpartition(".")[2] for layer in plain.layers] == ["to_q"]
    assert len(plain.left_out) == 4
    full = run(wanted, base, tmp_path / "full.safetensors", replace(FP32, full=True))
    assert sorted(full.left_out) == [
        "text_encoder.text_model.embeddings.token_embedding.weight",
        "vae.decoder.conv_in.weight",
    ]
    endings = {name.partition(".")[2] for name in load_file(tmp_path / "full.safetensors")}
    assert endings == {"w_norm", "diff_b", "lora_up.weight", "lora_down.weight", "alpha"}
    fuse(base, tmp_path / "again.safetensors", tmp_path / "full.safetensors", strengths=(1.0, 0.0))
    for name in (norm, bias, query):
        assert_near(load(tmp_path / "again.safetensors")[name], changed[name])


@pytest.mark.parametrize("decay", [0.0, 0.5, 2.0])
def test_the_randomised_svd_is_as_good_as_the_exact_one(decay: float) -> None:
    """From a flat spectrum, the hardest, to one that falls fast; oracle: the exact SVD."""
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(300, 200, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(200, 200, generator=generator))
    matrix = left @ torch.diag(torch.arange(1, 201) ** -decay) @ right
    found = spectrum(matrix, 16, "seed")
    assert min(matrix.shape) > 2 * (16 + 16)  # so that it is the randomised one
    exact = torch.linalg.svdvals(matrix.double())[:16].square().sum() / matrix.double().square().sum()
    up, down = found.factors(16)
    error = (matrix - up @ down).double().square().sum() / matrix.double().square().sum()
    assert float(found.energies()[15]) == pytest.approx(float(exact), rel=0.01)
    assert float(1 - error) == pytest.approx(float(exact), rel=0.01)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 15), st.integers(0, 99))
def test_a_products_spectrum_is_the_products(rows: int, columns: int, rank: int, seed: int) -> None:
    """Oracle: the exact SVD of the dense product, at any shape, also where the rank exceeds it."""
    generator = torch.Generator().manual_seed(seed)
    up, down = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
    found = product_spectrum(up, down)
    exact = torch.linalg.svdvals(up @ down)
    most = min(rows, columns, rank)
    assert torch.allclose(found.values[:most], exact[:most], atol=1e-4 * float(exact[0]))
    restored_up, restored_down = found.factors(most)
    assert_near(restored_up @ restored_down, up @ down, 1e-4)


def test_nothing_was_tuned(files: Callable[[str], Files], tmp_path: Path) -> None:
    base = files("sd1").base()
    (tmp_path / "copy.safetensors").write_bytes(base.read_bytes())
    with pytest.raises(NoEffectError):
        run(tmp_path / "copy.safetensors", base, tmp_path / "lora.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["copy.safetensors"]


def test_another_architecture(files: Callable[[str], Files], tmp_path: Path) -> None:
    with pytest.raises((UnmatchedKeysError, ShapeMismatchError)) as caught:
        run(files("sdxl").base(), files("sd1").base(), tmp_path / "lora.safetensors")
    assert "the checkpoint is Stable Diffusion XL, the base Stable Diffusion 1" in caught.value.hint


def test_an_adapter_is_no_tuned_checkpoint(files: Callable[[str], Files], tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="is an adapter already"):
        run(files("sd1").style, files("sd1").base(), tmp_path / "lora.safetensors")


@pytest.mark.parametrize(("value", "what"), [(float("nan"), "NaN or Inf"), (1e12, "overflows float16")])
def test_numbers_that_cannot_be(value: float, what: str, files: Callable[[str], Files], tmp_path: Path) -> None:
    base = files("sd1").base("fp32")
    name = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    wanted = edited(base, tmp_path / "tuned.safetensors", **{name: torch.full_like(load(base)[name], value)})
    with pytest.raises(NumericError, match=what):
        run(wanted, base, tmp_path / "lora.safetensors", ExtractSettings(4))
    assert [path.name for path in tmp_path.iterdir()] == ["tuned.safetensors"]


def test_the_output_is_not_replaced_and_no_input_ever(files: Callable[[str], Files], tmp_path: Path) -> None:
    wanted, target = tuned(files("sd1"), tmp_path / "tuned.safetensors"), tmp_path / "lora.safetensors"
    save_file({"a": torch.ones(prod((1, 2)))}, target)
    with pytest.raises(OutputError, match="exists already"):
        run(wanted, files("sd1").base("fp32"), target)
    run(wanted, files("sd1").base("fp32"), target, force=True)
    with pytest.raises(OutputError, match="is an input"):
        run(wanted, files("sd1").base("fp32"), wanted, force=True)


def test_an_inpainting_model_against_the_plain_one_changes_the_channels_that_both_have(
    files: Callable[[str], Files], tmp_path: Path
) -> None:
    base, wanted = files("sd1").base("fp32"), files("sd1-inpainting").base("fp32")
    found = run(wanted, base, tmp_path / "lora.safetensors", replace(FP32, rank=40))
    assert found.doubts == ("tuned: made for 9 input channels, the base has 4: only the first 4 change",)
    stored = load_file(tmp_path / "lora.safetensors")
    up, down = (stored[f"lora_unet_conv_in.lora_{role}.weight"].flatten(1) for role in ("up", "down"))
    difference = canonical(wanted)["unet.conv_in.weight"][:, :4] - canonical(base)["unet.conv_in.weight"]
    assert_near((up @ down).reshape(difference.shape), difference, 1e-4)
