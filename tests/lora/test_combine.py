"""Σ λᵢτᵢ as one LoRA must do what its terms do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapterfile import assert_near, write
from fusing import Files, fuse, load, metadata
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiers import of_each
from torch import Tensor, nn

from lcmmerge.archs import identify
from lcmmerge.errors import (
    FormatError,
    IncompatibleError,
    NoEffectError,
    NumericError,
    OutputError,
    ShapeMismatchError,
    UnmatchedKeysError,
)
from lcmmerge.history import older
from lcmmerge.lora.alignment import term_of
from lcmmerge.lora.combine import Combined, CombineSettings, combine
from lcmmerge.lora.lorafile import balanced
from lcmmerge.tensors import DTYPES, open_source

FP32 = CombineSettings(dtype=DTYPES["F32"])
QUERY = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def run(
    terms: list[tuple[Path, float]],
    target: Path,
    chosen: CombineSettings = FP32,
    base: Path | None = None,
    force: bool = False,
) -> Combined:
    model = identify(open_source(base)) if base else None
    opened = [term_of(open_source(path), strength) for path, strength in terms]
    return combine(opened, target, chosen, model, force=force)


def lora(path: Path, key: str = QUERY, rank: int = 2, width: int = 8, **extra: Tensor) -> Path:
    generator = torch.Generator().manual_seed(rank)
    tensors = {
        f"{key}.lora_A.weight": torch.randn(rank, width, generator=generator),
        f"{key}.lora_B.weight": torch.randn(width, rank, generator=generator),
    }
    write(path, tensors | {f"{key}.{role}": tensor for role, tensor in extra.items()})
    return path


@pytest.mark.parametrize("name", of_each(["sd1", "sdxl"]))
@pytest.mark.parametrize(("dtype", "tolerance"), [("F32", 1e-6), ("F16", 1e-3)])
def test_fused_alone_it_does_what_both_do(
    name: str, dtype: str, tolerance: float, files: Callable[[str], Files], tmp_path: Path
) -> None:
    """The style has LDM block names in SDXL, the LCM-LoRA diffusers'; their modules overlap in part."""
    inputs = files(name)
    fuse(inputs.base("fp32"), tmp_path / "both.safetensors", inputs.style, inputs.lcm, (0.8, -0.5))
    terms = [(inputs.style, 0.8), (inputs.lcm, -0.5)]
    found = run(terms, tmp_path / "one.safetensors", CombineSettings(dtype=DTYPES[dtype]))
    assert found.energy == 1
    fuse(inputs.base("fp32"), tmp_path / "alone.safetensors", tmp_path / "one.safetensors", strengths=(1.0, 0.0))
    base, alone = load(inputs.base("fp32")), load(tmp_path / "alone.safetensors")
    for key, tensor in load(tmp_path / "both.safetensors").items():
        assert_near(alone[key] - base[key], tensor - base[key], tolerance * 10)
        assert_near(alone[key], tensor, tolerance)


def test_as_peft_concatenates(tmp_path: Path) -> None:
    """Oracle: PEFT's ``add_weighted_adapter(combination_type="cat")``."""
    torch.manual_seed(0)
    layer = nn.ModuleDict({"to_q": nn.Linear(8, 6)})
    model = get_peft_model(layer, LoraConfig(r=2, lora_alpha=5, target_modules=["to_q"], init_lora_weights=False), "a")
    model.add_adapter("b", LoraConfig(r=3, lora_alpha=2, target_modules=["to_q"], init_lora_weights=False))
    model.add_weighted_adapter(["a", "b"], [0.7, 1.2], "c", combination_type="cat")
    peft = model.base_model.model["to_q"]
    for name, alpha in (("a", 5.0), ("b", 2.0)):
        tensors = {
            f"{QUERY}.lora_down.weight": peft.lora_A[name].weight,
            f"{QUERY}.lora_up.weight": peft.lora_B[name].weight,
            f"{QUERY}.alpha": torch.tensor(alpha),
        }
        write(tmp_path / f"{name}.safetensors", tensors)
    run([(tmp_path / "a.safetensors", 0.7), (tmp_path / "b.safetensors", 1.2)], tmp_path / "c.safetensors")
    (up, down, alpha) = sorted(load_file(tmp_path / "c.safetensors").items(), reverse=True)
    assert (down[1].shape, alpha[1]) == ((5, 8), 5)
    assert_near(up[1] @ down[1], peft.get_delta_weight("c"))


@pytest.mark.parametrize("rank", [3, 6])
def test_recompression_is_the_best_of_its_rank(rank: int, files: Callable[[str], Files], tmp_path: Path) -> None:
    """Oracle: the exact SVD of the dense sum."""
    terms = [(files("sd1").style, 1.0), (files("sd1").lcm, 1.0)]
    run(terms, tmp_path / "exact.safetensors")
    found = run(terms, tmp_path / "small.safetensors", CombineSettings(rank, DTYPES["F32"]))
    exact, small = (deltas(tmp_path / f"{name}.safetensors") for name in ("exact", "small"))
    assert exact.keys() == small.keys()
    squares = [float(delta.square().sum()) for delta in exact.values()]
    kept = [float((torch.linalg.svdvals(delta)[:rank] ** 2).sum()) for delta in exact.values()]
    assert found.energy == pytest.approx(sum(kept) / sum(squares), rel=1e-5)
    for key, delta in exact.items():
        lost = float((delta - small[key]).square().sum())
        best = float((torch.linalg.svdvals(delta)[rank:] ** 2).sum())
        assert lost == pytest.approx(best, rel=1e-3, abs=1e-6)
    assert all(layer.rank is not None and layer.rank <= rank for layer in found.layers)


def deltas(path: Path) -> dict[str, Tensor]:
    """Module → up @ down, at scale 1."""
    tensors = load_file(path)
    return {
        key: (tensors[f"{key}.lora_up.weight"].flatten(1) @ tensors[f"{key}.lora_down.weight"].flatten(1)).double()
        for key in (name.removesuffix(".alpha") for name in tensors if name.endswith(".alpha"))
    }


def test_dense_terms_need_a_rank_and_full_rank_is_exact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    difference = torch.randn(8, 8)
    write(tmp_path / "dense.safetensors", {f"{QUERY}.diff": difference})
    terms = [(lora(tmp_path / "lora.safetensors"), 0.5), (tmp_path / "dense.safetensors", 2.0)]
    with pytest.raises(IncompatibleError, match="not a product") as caught:
        run(terms, tmp_path / "one.safetensors")
    assert "--rank" in caught.value.hint
    assert not (tmp_path / "one.safetensors").exists()
    run(terms, tmp_path / "one.safetensors", CombineSettings(8, DTYPES["F32"]))
    tensors = load_file(tmp_path / "lora.safetensors")
    expected = 0.5 * tensors[f"{QUERY}.lora_B.weight"] @ tensors[f"{QUERY}.lora_A.weight"] + 2 * difference
    (found,) = deltas(tmp_path / "one.safetensors").values()
    assert_near(found.float(), expected)


def test_loha_needs_the_base(files: Callable[[str], Files], tmp_path: Path) -> None:
    base = files("sd1").base("fp32")
    torch.manual_seed(0)
    halves = {f"{QUERY}.hada_w{half}_{side}": torch.randn(shape) for half in "12" for side, shape in FACTORS.items()}
    write(tmp_path / "loha.safetensors", halves)
    terms = [(tmp_path / "loha.safetensors", 1.0)]
    with pytest.raises(IncompatibleError, match="LoHa") as caught:
        run(terms, tmp_path / "one.safetensors", CombineSettings(8))
    assert "--base" in caught.value.hint
    run(terms, tmp_path / "one.safetensors", CombineSettings(8, DTYPES["F32"]), base)
    products = [halves[f"{QUERY}.hada_w{half}_a"] @ halves[f"{QUERY}.hada_w{half}_b"] for half in "12"]
    (found,) = deltas(tmp_path / "one.safetensors").values()
    assert_near(found.float(), products[0] * products[1])


def test_of_sdxl_in_kohyas_names(files: Callable[[str], Files], tmp_path: Path) -> None:
    """The LCM-LoRA has diffusers' block names, which kohya's own merge passes over, and the style kohya's."""
    terms = [(files("sdxl").style, 1.0), (files("sdxl").lcm, 1.0)]
    run(terms, tmp_path / "one.safetensors")
    found = {name.partition(".")[0] for name in load_file(tmp_path / "one.safetensors")}
    unet = {name for name in found if name.startswith("lora_unet_")}
    assert len(unet) == 788
    assert all(name.startswith(("lora_unet_input_", "lora_unet_middle_", "lora_unet_output_")) for name in unet)
    styled = {name.partition(".")[0] for name in load_file(files("sdxl").style)}
    assert styled <= found


FACTORS = {"a": (8, 2), "b": (2, 8)}


def test_vectors_add_up_without_a_rank(tmp_path: Path) -> None:
    key = "lora_unet_down_blocks_0_attentions_0_norm"  # which SDXL and its relatives lack
    first = write(tmp_path / "a.safetensors", {f"{key}.w_norm": torch.arange(8.0), f"{key}.b_norm": torch.ones(8)})
    second = write(tmp_path / "b.safetensors", {f"{key}.w_norm": torch.ones(8)})
    run([(first.path, 0.5), (second.path, -2.0)], tmp_path / "c.safetensors")
    found = load_file(tmp_path / "c.safetensors")
    assert found.keys() == {f"{key}.w_norm", f"{key}.b_norm"}
    assert torch.equal(found[f"{key}.w_norm"], 0.5 * torch.arange(8.0) - 2)
    assert torch.equal(found[f"{key}.b_norm"], torch.full((8,), 0.5))


def test_a_convolution_and_a_linear_layer_are_the_same_projection(tmp_path: Path) -> None:
    key = "lora_unet_down_blocks_0_attentions_0_proj_in"
    torch.manual_seed(0)
    up, down = torch.randn(8, 2), torch.randn(2, 8)
    write(tmp_path / "linear.safetensors", {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down})
    convolution = {f"{key}.lora_up.weight": up[..., None, None], f"{key}.lora_down.weight": down[..., None, None]}
    write(tmp_path / "conv.safetensors", convolution)
    for order in (("linear", "conv"), ("conv", "linear")):
        terms = [(tmp_path / f"{name}.safetensors", 1.0) for name in order]
        run(terms, tmp_path / "sum.safetensors", force=True)
        found = load_file(tmp_path / "sum.safetensors")
        assert found[f"{key}.lora_down.weight"].ndim == (2 if order[0] == "linear" else 4)
        assert_near(deltas(tmp_path / "sum.safetensors")[key].float(), 2 * up @ down)


@given(st.integers(1, 6), st.floats(1e-12, 1e12), st.floats(1e-12, 1e12), st.integers(0, 99))
def test_balancing_rounds_nothing(rank: int, large: float, small: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    up = large * torch.randn(5, rank, generator=generator)
    down = small * torch.randn(rank, 7, generator=generator)
    down[0] = 0
    new_up, new_down = balanced(up, down)
    for index in range(1, rank):
        ratio = (new_up[:, index].norm() / 5**0.5) / (new_down[index].norm() / 7**0.5)
        assert 0.49 < ratio < 2.01
    assert torch.equal(new_up[:, :, None] * new_down[None], up[:, :, None] * down[None])


def test_small_alphas_survive_fp16(tmp_path: Path) -> None:
    """alpha/rank = 1/64 on factors of fp16's lower end: folded into one side, they would fall below it."""
    torch.manual_seed(0)
    up, down = 1e-3 * torch.randn(8, 64), torch.randn(64, 8)
    tensors = {"lora_up.weight": up.half(), "lora_down.weight": down.half(), "alpha": torch.tensor(1.0).half()}
    write(tmp_path / "a.safetensors", {f"{QUERY}.{role}": tensor for role, tensor in tensors.items()})
    run([(tmp_path / "a.safetensors", 0.3)], tmp_path / "b.safetensors", CombineSettings())
    (found,) = deltas(tmp_path / "b.safetensors").values()
    assert_near(found, 0.3 / 64 * up.half().double() @ down.half().double(), 1e-3)


def test_bf16_has_no_rank_of_257(tmp_path: Path) -> None:
    path = lora(tmp_path / "a.safetensors", rank=257)
    run([(path, 1.0)], tmp_path / "b.safetensors", CombineSettings(dtype=DTYPES["BF16"]))
    fused = term_of(open_source(tmp_path / "b.safetensors"), 1.0).file.patches[0]
    assert fused.alpha == 256
    tensors, stored = load_file(path), load_file(tmp_path / "b.safetensors")
    expected = tensors[f"{QUERY}.lora_B.weight"] @ tensors[f"{QUERY}.lora_A.weight"]
    (found,) = deltas(tmp_path / "b.safetensors").values()
    assert_near(found.float() * 256 / 257, expected, 1e-2)
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("dtypes", "widest"),
    [("half half", "F16"), ("bfloat16 bfloat16", "BF16"), ("half bfloat16", "F32"), ("half float", "F32")],
)
def test_the_dtype_is_the_widest(dtypes: str, widest: str, tmp_path: Path) -> None:
    terms = []
    for number, dtype in enumerate(dtypes.split()):
        path = lora(tmp_path / f"{number}.safetensors")
        save_file({name: getattr(tensor, dtype)() for name, tensor in load_file(path).items()}, path)
        terms.append((path, 1.0))
    run(terms, tmp_path / "sum.safetensors", CombineSettings())
    assert {info.dtype.name for info in open_source(tmp_path / "sum.safetensors")} == {widest}


def test_the_same_inputs_give_the_same_bytes_and_say_which_they_were(tmp_path: Path) -> None:
    terms = [(lora(tmp_path / "a.safetensors"), 0.5), (lora(tmp_path / "b.safetensors", rank=3), 1.0)]
    for name in ("c", "d"):
        run(terms, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "c.safetensors").read_bytes() == (tmp_path / "d.safetensors").read_bytes()
    recipe = metadata(tmp_path / "c.safetensors")["sd_merge_recipe"]
    assert '"lambda":0.5,"name":"a.safetensors","sha256":"' in recipe
    assert str(tmp_path) not in recipe


def tagged(path: Path, source: Path, **said: str) -> Path:
    save_file(load_file(source), path, {key.replace("__", "."): text for key, text in said.items()})
    return path


def test_what_programs_read_of_it(files: Callable[[str], Files], tmp_path: Path) -> None:
    """Web UIs sort a LoRA by ss_base_model_version; ModelSpec's keys that must be there."""
    a = tagged(tmp_path / "a.safetensors", files("sdxl").style, modelspec__trigger_phrase="ohwx",
               ss_tag_frequency='{"10_cat": {"a cat": 3}}', modelspec__author="somebody")  # fmt: skip
    b = tagged(tmp_path / "b.safetensors", files("sdxl").lcm, ss_tag_frequency="[")
    run([(a, 0.5), (b, 1.0)], tmp_path / "c.safetensors")
    found = metadata(tmp_path / "c.safetensors")
    assert (found["ss_base_model_version"], found["ss_v2"]) == ("sdxl_base_v1-0", "False")
    assert found["ss_network_module"] == "networks.lora"
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("Dynamic", "Dynamic")
    assert found["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert found["modelspec.implementation"] == "https://github.com/Stability-AI/generative-models"
    assert (found["modelspec.resolution"], found["modelspec.title"]) == ("1024x1024", "a + b")
    assert found["modelspec.trigger_phrase"] == "ohwx"
    assert found["ss_tag_frequency"] == '{"a/10_cat": {"a cat": 3}}'
    assert "modelspec.author" not in found
    run([(tmp_path / "c.safetensors", 1.0), (a, -1.0)], tmp_path / "d.safetensors", CombineSettings(3))
    found = metadata(tmp_path / "d.safetensors")
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("3", "3")
    assert list(older(open_source(tmp_path / "d.safetensors"))) == ["c.safetensors"]


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ({}, None),  # SD 1 and 2 have the same names
        ({"ss_base_model_version": "sd_v2"}, "sd_v2"),
        ({"modelspec__architecture": "stable-diffusion-v2-768-v/lora"}, "sd_v2_v"),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, None),
    ],
)
def test_a_version_is_never_guessed(
    said: dict[str, str], version: str | None, files: Callable[[str], Files], tmp_path: Path
) -> None:
    a = tagged(tmp_path / "a.safetensors", files("sd1").lcm, **said)
    run([(a, 0.5)], tmp_path / "b.safetensors")
    found = metadata(tmp_path / "b.safetensors")
    assert found.get("ss_base_model_version") == version
    assert found.get("ss_v2") == ("True" if version else None)
    run([(a, 0.5)], tmp_path / "c.safetensors", base=files("sd1").base())
    assert metadata(tmp_path / "c.safetensors")["ss_base_model_version"] == "sd_v1"


def test_dora_depends_on_its_base(tmp_path: Path) -> None:
    path = lora(tmp_path / "dora.safetensors", dora_scale=torch.ones(8, 1))
    with pytest.raises(IncompatibleError, match="DoRA, whose ΔW depends on the base"):
        run([(path, 1.0)], tmp_path / "one.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["dora.safetensors"]


def test_other_architectures(files: Callable[[str], Files], tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match=r"looks made for Stable Diffusion XL, .* for Stable Diffusion 1"):
        run([(files("sd1").style, 1.0), (files("sdxl").style, 1.0)], tmp_path / "one.safetensors")
    other = lora(tmp_path / "other.safetensors", "blocks.0.attn1.Wqkv")
    with pytest.raises(IncompatibleError, match="looks made for Hunyuan-DiT"):
        run([(other, 1.0)], tmp_path / "one.safetensors")


def test_a_base_decides_what_names_leave_open(files: Callable[[str], Files], tmp_path: Path) -> None:
    path = lora(tmp_path / "a.safetensors", width=9)
    run([(path, 1.0)], tmp_path / "one.safetensors")
    with pytest.raises(ShapeMismatchError, match="9"):
        run([(path, 1.0)], tmp_path / "two.safetensors", base=files("sd1").base())
    with pytest.raises(UnmatchedKeysError, match="is not a module of Stable Diffusion XL"):
        run([(path, 1.0)], tmp_path / "two.safetensors", base=files("sdxl").base())


def test_shapes_that_do_not_meet(tmp_path: Path) -> None:
    terms = [(lora(tmp_path / "a.safetensors"), 1.0), (lora(tmp_path / "b.safetensors", width=16), 1.0)]
    with pytest.raises(ShapeMismatchError, match=r"b\.safetensors.*16"):
        run(terms, tmp_path / "one.safetensors")


def test_nothing_is_lost_silently(files: Callable[[str], Files], tmp_path: Path) -> None:
    tensors = load_file(lora(tmp_path / "a.safetensors"))
    write(tmp_path / "bundle.safetensors", tensors | {"bundle_emb.word.string_to_param.*": torch.ones(2)})
    with pytest.raises(UnmatchedKeysError, match="bundle_emb"):
        term_of(open_source(tmp_path / "bundle.safetensors"), 1.0)
    write(tmp_path / "odd.safetensors", tensors | {"unet.nowhere.lora_A.weight": torch.ones(2, 8)} | {
        "unet.nowhere.lora_B.weight": torch.ones(8, 2)})  # fmt: skip
    with pytest.raises(UnmatchedKeysError, match=r"unet\.nowhere is not a module"):
        run([(tmp_path / "odd.safetensors", 1.0)], tmp_path / "one.safetensors")
    with pytest.raises(FormatError, match="is not an adapter"):
        term_of(open_source(files("sd1").base()), 1.0)


def test_two_spellings_of_one_module(tmp_path: Path) -> None:
    tensors = load_file(lora(tmp_path / "a.safetensors"))
    kohya = f"lora_unet_{QUERY.removeprefix('unet.').replace('.', '_')}"
    write(tmp_path / "a.safetensors", tensors | {
        f"{kohya}.lora_down.weight": torch.ones(2, 8), f"{kohya}.lora_up.weight": torch.ones(8, 2)})  # fmt: skip
    with pytest.raises(FormatError, match="two of its keys patch"):
        run([(tmp_path / "a.safetensors", 1.0)], tmp_path / "one.safetensors")


def test_no_effect_no_number_no_replacement(tmp_path: Path) -> None:
    path = lora(tmp_path / "a.safetensors")
    with pytest.raises(NoEffectError, match="every λ is 0"):
        run([(path, 0.0)], tmp_path / "one.safetensors")
    tensors = load_file(path)
    untrained = write(tmp_path / "zero.safetensors", {name: 0 * tensor for name, tensor in tensors.items()})
    with pytest.raises(NoEffectError, match="no change at all"):
        run([(untrained.path, 1.0)], tmp_path / "one.safetensors")
    damaged = write(tmp_path / "nan.safetensors", {name: torch.nan * tensor for name, tensor in tensors.items()})
    with pytest.raises(NumericError, match="NaN or Inf"):
        run([(damaged.path, 1.0)], tmp_path / "one.safetensors")
    with pytest.raises(NumericError, match="overflows float16"):
        run([(path, 1e12)], tmp_path / "one.safetensors", CombineSettings(dtype=DTYPES["F16"]))
    assert not (tmp_path / "one.safetensors").exists()
    with pytest.raises(OutputError, match="exists already"):
        run([(path, 1.0)], untrained.path)
    with pytest.raises(OutputError, match="is an input"):
        run([(path, 1.0)], path, force=True)
