"""What other programs that merge into diffusion transformers leave out without an error: here it counts, or is refused.

Oracle: sums in float64, with the rows of each tensor written out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from families import folder, single_file, state_of, stored
from fusing import load
from safetensors.torch import load_file, save_file
from torch import Tensor

Cli = Callable[..., object]
State = dict[str, Tensor]
RANK, ALPHA, STRENGTH = 3, 1.5, 0.8
LAYOUTS = ("single-file", "folder")


def random(*shape: int, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lora(key: str, out: int, width: int, alpha: float | None = ALPHA) -> tuple[State, Tensor]:
    """The tensors of a module, and ΔW."""
    up, down = random(out, RANK, seed=1), random(RANK, width, seed=2)
    file = {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
    file |= {f"{key}.alpha": torch.tensor(alpha)} if alpha is not None else {}
    return file, (1.0 if alpha is None else alpha / RANK) * up.double() @ down.double()


class Base:
    """A family's tiny model in one layout, and what is merged into it."""

    def __init__(self, family: str, layout: str, root: Path, cli: Cli) -> None:
        self.family, self.root, self.cli = family, root, cli
        self.single = layout == "single-file"
        make = single_file if self.single else folder
        self.path = make(root / ("base.safetensors" if self.single else "base"), family, state_of(family))

    def fuse(self, file: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> object:
        save_file({key: tensor.contiguous() for key, tensor in file.items()}, self.root / "style.safetensors", metadata)
        style, self.target = self.root / "style.safetensors", self.root / f"out{self.path.suffix}"
        return self.cli("fuse", self.path, style, "--lambda", STRENGTH, "0", "-o", self.target)

    def moved(self, file: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> State:
        """What was added to each tensor that changed, by λ; the file's own names."""
        done = self.fuse(file, metadata)
        assert done.code == 0, done.err
        found, before = load(self.target), load(self.path)
        assert found.keys() == before.keys()
        begin = "model.diffusion_model." if self.single else "transformer."
        changes = {name: (found[name].double() - before[name].double()) / STRENGTH for name in found}
        return {name.removeprefix(begin): change for name, change in changes.items() if change.any()}


def assert_moved(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, delta in wanted.items():
        torch.testing.assert_close(found[name], delta.double(), rtol=1e-5, atol=1e-6, msg=name)


@pytest.fixture(params=LAYOUTS)
def flux(request: pytest.FixtureRequest, tmp_path: Path, cli: Cli) -> Base:
    return Base("flux1", request.param, tmp_path, cli)


@pytest.mark.parametrize(
    "key",
    [
        "lora_unet_double_blocks_0_img_attn_qkv.diff_b",
        "diffusion_model.double_blocks.0.img_attn.qkv.diff_b",
        "diffusion_model.double_blocks.0.img_attn.qkv.bias.diff",  # ComfyUI: of what is called no weight
    ],
)
def test_a_bias_of_a_fused_tensor(key: str, flux: Base) -> None:
    delta = random(48)
    single = {"double_blocks.0.img_attn.qkv.bias": delta}
    split = {f"transformer_blocks.0.attn.to_{x}.bias": delta[16 * i : 16 * (i + 1)] for i, x in enumerate("qkv")}
    assert_moved(flux.moved({key: delta}), single if flux.single else split)


@pytest.mark.parametrize(
    "key",
    [
        "lora_unet_double_blocks_0_img_attn_norm_query_norm.diff",
        "lora_unet_double_blocks_0_img_attn_norm_query_norm.w_norm",
        "diffusion_model.double_blocks.0.img_attn.norm.query_norm.diff",
        "diffusion_model.double_blocks.0.img_attn.norm.query_norm.scale.diff",  # ComfyUI's
        "transformer.transformer_blocks.0.attn.norm_q.diff",
        "transformer.transformer_blocks.0.attn.norm_q.weight.diff",
    ],
)
def test_a_norm(key: str, flux: Base) -> None:
    delta = random(8)
    single, canonical = "double_blocks.0.img_attn.norm.query_norm.scale", "transformer_blocks.0.attn.norm_q.weight"
    assert_moved(flux.moved({key: delta}), {single if flux.single else canonical: delta})


def test_alphas_of_the_final_layer(flux: Base) -> None:
    """And the halves of its modulation, which diffusers has the other way round: rows of the update, not of A."""
    modulation, swapped = lora("lora_unet_final_layer_adaLN_modulation_1", 32, 16)
    linear, delta = lora("lora_unet_final_layer_linear", 4, 16, alpha=0.5)
    if flux.single:
        wanted = {"final_layer.adaLN_modulation.1.weight": swapped, "final_layer.linear.weight": delta}
    else:
        wanted = {"norm_out.linear.weight": torch.cat([swapped[16:], swapped[:16]]), "proj_out.weight": delta}
    assert_moved(flux.moved(modulation | linear), wanted)


@pytest.mark.parametrize("family", ["flux2", "flux3", "hunyuan_video", "sd3", "auraflow"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("made", LAYOUTS)
def test_halves_of_the_last_modulation(family: str, layout: str, made: str, tmp_path: Path, cli: Cli) -> None:
    others = {"auraflow": "modF.1.weight", "flux3": "final_layer.image.adaLN_modulation.1.weight"}
    single = others.get(family, "final_layer.adaLN_modulation.1.weight")
    canonical = "norm_out.linear.weight"
    out, width = state_of(family)[f"transformer.{canonical}"].shape
    key = (single if made == "single-file" else canonical).removesuffix(".weight")
    begin = "diffusion_model." if made == "single-file" else "transformer."
    file, delta = lora(begin + key, out, width)
    if layout != made:
        delta = torch.cat([delta[out // 2 :], delta[: out // 2]])
    name = single if layout == "single-file" else canonical
    assert_moved(Base(family, layout, tmp_path, cli).moved(file), {name: delta})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_differences_of_wan(layout: str, tmp_path: Path, cli: Cli) -> None:
    """LightX2V's and Kroma's: of norms, biases, modulations and the head, beside a LoRA."""
    shapes = {name: tensor.shape for name, tensor in stored("wan", state_of("wan")).items()}
    parts = {
        "blocks.0.norm3.weight": ("blocks.0.norm3.diff", "blocks.0.norm2.weight"),
        "blocks.0.norm3.bias": ("blocks.0.norm3.diff_b", "blocks.0.norm2.bias"),
        "blocks.0.self_attn.norm_q.weight": ("blocks.0.self_attn.norm_q.diff", "blocks.0.attn1.norm_q.weight"),
        "blocks.0.self_attn.o.bias": ("blocks.0.self_attn.o.diff_b", "blocks.0.attn1.to_out.0.bias"),
        "blocks.1.modulation": ("blocks.1.diff_m", "blocks.1.scale_shift_table"),
        "head.modulation": ("head.diff_m", "scale_shift_table"),
        "head.head.weight": ("head.head.diff", "proj_out.weight"),
        "patch_embedding.weight": ("patch_embedding.diff", "patch_embedding.weight"),
        "time_projection.1.bias": ("time_projection.1.diff_b", "condition_embedder.time_proj.bias"),
    }
    file, delta = lora("diffusion_model.blocks.0.self_attn.o", 24, 24)
    wanted = {"blocks.0.self_attn.o.weight" if layout == "single-file" else "blocks.0.attn1.to_out.0.weight": delta}
    for seed, (name, (key, canonical)) in enumerate(parts.items()):
        whole = random(*shapes[name], seed=seed)
        file[f"diffusion_model.{key}"] = whole
        wanted[name if layout == "single-file" else canonical] = whole
    assert_moved(Base("wan", layout, tmp_path, cli).moved(file), wanted)


@pytest.mark.parametrize("number", [0, 1])
def test_each_block(number: int, flux: Base) -> None:
    """Whose table of names is one block short, loses the last."""
    key = f"transformer.transformer_blocks.{number}.attn.to_q"
    file, delta = lora(key, 16, 16)
    whole = torch.cat([delta, torch.zeros(32, 16)])
    single, canonical = (f"{name}.weight" for name in (f"double_blocks.{number}.img_attn.qkv", key.split(".", 1)[1]))
    assert_moved(flux.moved(file), {single: whole} if flux.single else {canonical: delta})


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("lora_unet_double_blocks_2_img_attn_qkv", "is it the right one, and whole"),  # the base has blocks 0 and 1
        ("lora_unet_double_blocks_0_img_attn_gate", "is it the right one, and whole"),
        ("lora_te3_encoder_block_0_layer_0_SelfAttention_q", "is it the right one, and whole"),  # a base without T5
        ("lora_te1_text_projection", "named as those of FLUX.1, and of"),
        ("diffusion_model.t_embedder_2.mlp.0", "is it the right one, and whole"),  # π-Flow's
    ],
)
def test_a_key_without_a_home(key: str, hint: str, flux: Base) -> None:
    known, _ = lora("transformer.transformer_blocks.0.attn.to_q", 16, 16)
    done = flux.fuse(known | lora(key, 16, 16)[0])
    done.assert_fault(3, f"1 of its 2 keys have no home in {flux.path.name}: {key}")
    assert "looks made for" not in done.err
    assert not flux.target.exists()


@pytest.mark.parametrize("begin", ["transformer.", "diffusion_model.", "base_model.model.", ""])
@pytest.mark.parametrize(
    ("told", "scale"),
    [
        ({"r": RANK, "lora_alpha": 6}, 2),
        ({"r": RANK, "lora_alpha": 6, "use_rslora": True}, 6 / RANK**0.5),
        ({"r": RANK, "lora_alpha": 6, "alpha_pattern": {"transformer_blocks.0.attn.to_q": 12}}, 4),
        ({"r": RANK, "lora_alpha": 6, "alpha_pattern": {"single_transformer_blocks.0.attn.to_q": 12}}, 2),
        ({"r": 64, "lora_alpha": 6, "rank_pattern": {"to_q": RANK}}, 2),
    ],
)
def test_alpha_of_diffusers_metadata(told: dict[str, object], scale: float, begin: str, flux: Base) -> None:
    """Also where other names took the place of diffusers'. A text encoder's is no denoiser's."""
    fields = {f"transformer.{field}": value for field, value in told.items()}
    fields |= {"text_encoder.r": RANK, "text_encoder.lora_alpha": 300}
    up, down = random(16, RANK, seed=1), random(RANK, 16, seed=2)
    key = f"{begin}transformer_blocks.0.attn.to_q"
    file = {f"{key}.lora_B.weight": up, f"{key}.lora_A.weight": down}
    (found,) = flux.moved(file, {"lora_adapter_metadata": json.dumps(fields)}).values()
    torch.testing.assert_close(found[:16], scale * up.double() @ down.double(), rtol=1e-5, atol=1e-5)


def test_three_trained_apart_and_saved_as_one(flux: Base) -> None:
    """sd-scripts' ``split_qkv``: up is block-diagonal, of three times the rank, and alpha what it was."""
    ups, downs = [random(16, RANK, seed=i) for i in range(3)], [random(RANK, 16, seed=i) for i in range(3, 6)]
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    file = {f"{key}.lora_up.weight": torch.block_diag(*ups), f"{key}.lora_down.weight": torch.cat(downs)}
    file[f"{key}.alpha"] = torch.tensor(ALPHA)
    parts = [ALPHA / (3 * RANK) * up.double() @ down.double() for up, down in zip(ups, downs, strict=True)]
    split = {f"transformer_blocks.0.attn.to_{x}.weight": part for x, part in zip("qkv", parts, strict=True)}
    assert_moved(flux.moved(file), {"double_blocks.0.img_attn.qkv.weight": torch.cat(parts)} if flux.single else split)


@pytest.mark.parametrize("kept", ["qk", "v", "qkv"])
def test_some_of_three(kept: str, flux: Base) -> None:
    """Of a fused tensor's parts an adapter may have any."""
    file: State = {}
    split: State = {}
    whole = torch.zeros(48, 16, dtype=torch.float64)
    for i, x in enumerate("qkv"):
        if x in kept:
            added, delta = lora(f"lora_transformer_transformer_blocks_0_attn_to_{x}", 16, 16)
            file |= added
            split[f"transformer_blocks.0.attn.to_{x}.weight"] = whole[16 * i : 16 * (i + 1)] = delta
    assert_moved(flux.moved(file), {"double_blocks.0.img_attn.qkv.weight": whole} if flux.single else split)


def test_the_first_three_of_linear1(flux: Base) -> None:
    """ComfyUI's ``linear1_qkv``."""
    file, delta = lora("diffusion_model.single_blocks.0.linear1_qkv", 48, 16)
    split = {
        f"single_transformer_blocks.0.attn.to_{x}.weight": delta[16 * i : 16 * (i + 1)] for i, x in enumerate("qkv")
    }
    whole = torch.cat([delta, torch.zeros(64, 16)])
    assert_moved(flux.moved(file), {"single_blocks.0.linear1.weight": whole} if flux.single else split)


@pytest.mark.parametrize(
    ("begin", "module", "shape"),
    [
        ("lora_te3_", "encoder_block_0_layer_0_SelfAttention_q", (6, 4)),
        ("lora_te1_", "text_projection", (5, 4)),
        ("text_encoder.", "text_projection", (5, 4)),
    ],
)
def test_text_encoders(begin: str, module: str, shape: tuple[int, int], tmp_path: Path, cli: Cli) -> None:
    base = Base("flux1", "folder", tmp_path, cli)
    names = {"text_encoder": "text_projection", "text_encoder_2": "encoder.block.0.layer.0.SelfAttention.q"}
    component = "text_encoder_2" if begin == "lora_te3_" else "text_encoder"
    index = json.loads((base.path / "model_index.json").read_text())
    kinds = {"text_encoder": "CLIPTextModelWithProjection", "text_encoder_2": "T5EncoderModel"}
    index[component] = ["transformers", kinds[component]]
    (base.path / "model_index.json").write_text(json.dumps(index))
    (base.path / component).mkdir()
    save_file({f"{names[component]}.weight": random(*shape)}, base.path / component / "model.safetensors")
    file, delta = lora(begin + module, *shape)
    done = base.fuse(file)
    assert done.code == 0, done.err
    found = load_file(base.target / component / "model.safetensors")[f"{names[component]}.weight"]
    torch.testing.assert_close(found.double(), random(*shape) + STRENGTH * delta, rtol=1e-5, atol=1e-6)
