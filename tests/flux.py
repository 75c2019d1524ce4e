"""One LoRA of the tiny FLUX.1, as each program spells it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from families import CASES, class_of, families, single_file, sized, state_of
from fusing import canonical
from safetensors.torch import save_file
from torch import Tensor

RANK, ALPHA = 4, 2.0  # their quotient is exact
WIDTH, BLOCKS = 16, 2
Factors = Mapping[str, tuple[Tensor, Tensor]]
DIALECTS = (
    *("kohya", "bfl", "diffusers", "peft", "lightning", "named", "onetrainer", "onetrainer-legacy", "lycoris"),
    "xlabs",
)
XLABS = {
    "img_attn.qkv": "qkv_lora1", "txt_attn.qkv": "qkv_lora2", "img_attn.proj": "proj_lora1",
    "txt_attn.proj": "proj_lora2", "linear1": "qkv_lora", "linear2": "proj_lora",
}  # fmt: skip


def lora(folder: Path, dialect: str) -> Path:
    """In a folder of its own: some have a sidecar."""
    folder.mkdir()
    path = folder / "lora.safetensors"
    if dialect in ("peft", "named"):
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA}))
    metadata = {}
    if dialect == "diffusers":
        told = {"transformer.r": RANK, "transformer.lora_alpha": ALPHA}
        metadata = {"lora_adapter_metadata": json.dumps(told)}
    save_file({key: tensor.clone() for key, tensor in tensors(dialect).items()}, path, metadata)
    return path


def tensors(dialect: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    factors = fused() if dialect in ("kohya", "bfl", "xlabs") else split(numbered=dialect == "onetrainer")
    for module, (up, down) in factors.items():
        flat, alpha = module.replace(".", "_"), torch.tensor(ALPHA)
        key, ends = {
            "kohya": (f"lora_unet_{flat}", "lora"),
            "bfl": (f"diffusion_model.{module}", "AB"),
            "diffusers": (f"transformer.{module}", "AB"),
            "peft": (f"base_model.model.{module}", "AB"),
            "lightning": (module, "lora"),
            "named": (module, "named"),
            "onetrainer": (module, "lora"),
            "onetrainer-legacy": (f"lora_transformer_{flat}", "lora"),
            "lycoris": (f"lycoris_{flat}", "lora"),
            "xlabs": (xlabs(module) if dialect == "xlabs" else "", "xlabs"),
        }[dialect]
        if dialect in ("bfl", "xlabs"):  # they have no alpha: it is in B
            up = up * (ALPHA / RANK)
        if dialect == "xlabs" and key.endswith("qkv_lora"):
            up = up[: 3 * WIDTH]  # it leaves out the MLP
        b, a = {
            "lora": (".lora_up.weight", ".lora_down.weight"),
            "AB": (".lora_B.weight", ".lora_A.weight"),
            "named": (".lora_B.default.weight", ".lora_A.default.weight"),
            "xlabs": (".up.weight", ".down.weight"),
        }[ends]
        found |= {key + b: up, key + a: down} | ({f"{key}.alpha": alpha} if ends == "lora" else {})
    return found


def xlabs(module: str) -> str:
    kind, number, name = module.split(".", 2)
    return f"{kind}.{number}.processor.{XLABS[name]}"


def fused() -> Factors:
    """Black Forest Labs' module → up and down, of what XLabs knows."""
    generator = torch.Generator().manual_seed(1)
    sizes = {"qkv": (3, 1), "proj": (1, 1), "linear1": (7, 1), "linear2": (1, 5)}
    attentions = [f"{x}_attn.{kind}" for x in ("img", "txt") for kind in ("qkv", "proj")]
    double = [f"double_blocks.{i}.{name}" for i in range(BLOCKS) for name in attentions]
    single = [f"single_blocks.{i}.{kind}" for i in range(BLOCKS) for kind in ("linear1", "linear2")]
    found = {}
    for module in (*double, *single):
        out, width = (WIDTH * times for times in sizes[module.rpartition(".")[2]])
        up, down = torch.randn(out, RANK, generator=generator), torch.randn(RANK, width, generator=generator)
        up[3 * WIDTH :] = 0  # linear1's MLP
        found[module] = (0.3 * up, 0.3 * down)
    return found


def split(*, numbered: bool) -> Factors:
    """The same by diffusers' modules, or as ``qkv.0``, ``qkv.1``, ``qkv.2``."""
    arch = sized(families()["flux1"], state_of("flux1"))
    found = {}
    for module, (up, down) in fused().items():
        slots = arch.keymap("single-file").stored[f"{arch.denoiser.stored}{module}.weight"]
        for i, slot in enumerate(slots):
            inner = slot.parameter.removeprefix("transformer.").removesuffix(".weight")
            name = inner if not numbered else f"{module}.{i}" if len(slots) > 1 else module
            found[name] = (slot.view.take(up) if len(slots) > 1 else up, down)
    return found


WIDE = {"attention_head_dim": 128, "num_attention_heads": 2, "axes_dims_rope": (32, 48, 48), "num_layers": 1,
        "num_single_layers": 1}  # fmt: skip
INDEX = '{"_class_name": "Pipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}'
REACHED = ("transformer_blocks.0.attn.to_k", "single_transformer_blocks.0.proj_mlp", "proj_out")


def wide(folder: Path, scale: float = 0.05) -> tuple[Path, Path]:
    """A single file whose linears have 256 columns, which quantised formats take, and a LoRA of a few of them."""
    generator = torch.Generator().manual_seed(0)
    state = class_of("flux1")(**CASES["flux1"].tiny | WIDE).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    base = {f"transformer.{name}": 0.1 * torch.randn(shape, generator=generator).bfloat16()
            for name, shape in shapes.items()}  # fmt: skip
    lora = {}
    for name in REACHED:
        out, into = shapes[f"{name}.weight"]
        lora[f"transformer.{name}.lora_B.weight"] = scale * torch.randn(out, 4, generator=generator)
        lora[f"transformer.{name}.lora_A.weight"] = scale * torch.randn(4, into, generator=generator)
    save_file(lora, folder / "lora.safetensors")
    return single_file(folder / "base.safetensors", "flux1", base), folder / "lora.safetensors"


def folder_of(base: Path, path: Path) -> Path:
    """The same transformer as a diffusers folder, in one file."""
    (path / "transformer").mkdir(parents=True)
    inner = {name.removeprefix("transformer."): tensor.contiguous() for name, tensor in canonical(base).items()}
    save_file(inner, path / "transformer" / "diffusion_pytorch_model.safetensors")
    (path / "model_index.json").write_text(INDEX)
    return path
