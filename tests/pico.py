"""Pico models: the real architectures' whole structure at tiny widths, with seeded random weights.

A pico has every name of its big sister: key maps, merges and conversions meet what they meet in real files.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lcmmerge.archs import Architecture, architectures
from lcmmerge.archs.clip import TextEncoder
from lcmmerge.archs.targets import lora_targets
from lcmmerge.archs.unet import UNet

TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

TINY = {"norm_num_groups": 4, "attention_head_dim": 2, "sample_size": 8}
HIDDEN = {"clip_l": 16, "clip_h": 32, "clip_g": 24}  # SDXL's context is the two side by side
PROJECTION = 20  # not the hidden size, so that a transposition shows in the shape
TIME_IDS = 8

DOWN, CROSS_DOWN = "DownBlock2D", "CrossAttnDownBlock2D"
UP, CROSS_UP = "UpBlock2D", "CrossAttnUpBlock2D"


def unet_config(arch: Architecture) -> dict[str, object]:
    """Of a UNet2DConditionModel with the structure that the architecture tells."""
    unet = arch.denoiser
    assert isinstance(unet, UNet)
    down, up, mid = unet.down, unet.up, unet.mid
    depths = [level[0] for level in down]
    depths[-1] = depths[-1] or mid
    config: dict[str, object] = {
        "block_out_channels": (8, 16, 32, 32)[: len(down)],
        "layers_per_block": len(down[0]),
        "down_block_types": tuple(CROSS_DOWN if level[0] else DOWN for level in down),
        "mid_block_type": "UNetMidBlock2DCrossAttn" if mid else "UNetMidBlock2D",
        "up_block_types": tuple(CROSS_UP if level[0] else UP for level in up),
        "transformer_layers_per_block": tuple(depth or 1 for depth in depths),
        "use_linear_projection": unet.linear_projection,
        "cross_attention_dim": sum(HIDDEN[encoder.comfy] for encoder in text_encoders(arch)),
    }
    if any(set(level) - {0, depth} for level, depth in zip(up, reversed(depths), strict=True)):
        config["reverse_transformer_layers_per_block"] = tuple(level if level[0] else 1 for level in up)
    if arch.family.micro_conditioning:  # the sizes, and the refiner's one score in the place of two of them
        numbers = 6 if len(arch.text_encoders) > 1 else 5
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": TIME_IDS,
            "projection_class_embeddings_input_dim": numbers * TIME_IDS + PROJECTION,
        }
    return config


def text_encoders(arch: Architecture) -> list[TextEncoder]:
    return [part for part in arch.parts if isinstance(part, TextEncoder)]


def pipeline_class(arch: Architecture) -> type[DiffusionPipeline]:
    if not arch.family.micro_conditioning:
        return StableDiffusionPipeline
    return StableDiffusionXLPipeline if len(arch.text_encoders) > 1 else StableDiffusionXLImg2ImgPipeline


UNET_ARCHS = {name: arch for name, arch in architectures().items() if isinstance(arch.denoiser, UNet)}
UNETS = {name: unet_config(arch) for name, arch in UNET_ARCHS.items()}
UNETS["sd1-inpainting"] = UNETS["sd1"] | {"in_channels": 9}
PIPELINES = {name: pipeline_class(arch) for name, arch in UNET_ARCHS.items()}
PIPELINES["sd1-inpainting"] = StableDiffusionInpaintPipeline
PICOS = tuple(UNETS)
SHORT = {"block_out_channels": (8, 16), "layers_per_block": 1}
SHORT_SD = SHORT | {"down_block_types": (CROSS_DOWN, DOWN), "up_block_types": (UP, CROSS_UP)}
SHORT_XL = SHORT | {
    "down_block_types": (DOWN, CROSS_DOWN),
    "up_block_types": (CROSS_UP, UP),
    "transformer_layers_per_block": (1, 1),
}
ASYMMETRIC = {"reverse_transformer_layers_per_block": ((2, 1), 1)}  # as SSD-1B
STYLE_TARGETS = tuple(
    f".{leaf}.weight"
    for leaf in (
        *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
        *("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    )
)


@dataclass(frozen=True, slots=True)
class PicoModel:
    """``arch`` is the registered architecture; the pipeline is shared: copy it before changing it."""

    arch: Architecture
    pipeline: DiffusionPipeline

    def state(self) -> dict[str, Tensor]:
        """Canonical name → float32 weight."""
        return canonical_state({name: getattr(self.pipeline, name) for name in self.arch.components})

    def folder(self, path: Path, dtype: str = "fp16") -> Path:
        """A diffusers folder that ``DiffusionPipeline.from_pretrained`` loads offline."""
        pipeline = copy.deepcopy(self.pipeline)
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                nn.Module.to(part, dtype=TORCH[dtype])
        pipeline.save_pretrained(path)
        return path

    def single_file(self, path: Path, dtype: str = "fp16", extras: bool = False) -> Path:
        """An LDM/SGM safetensors file, with ``extras`` also what such files carry along."""
        tensors = self._stored()
        if extras:
            tensors |= self._extras(tensors)
        save_file({name: _cast(tensor, dtype) for name, tensor in tensors.items()}, path)
        return path

    def _stored(self) -> dict[str, Tensor]:
        state = self.state()
        stored = {}
        for name, slots in self.arch.keymap("single-file").stored.items():
            present = [slot for slot in slots if slot.parameter in state]
            if present:
                first = state[present[0].parameter]
                stored[name] = first.new_empty(present[0].view.stored_shape(tuple(first.shape)))
            for slot in present:
                slot.view.put(stored[name], state[slot.parameter])
        return stored

    def _extras(self, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        extras = {
            "alphas_cumprod": torch.linspace(0.999, 0.005, 1000),
            "model_ema.decay": torch.tensor(0.9999),
        }
        for name, tensor in stored.items():
            if name.startswith("model."):
                extras["model_ema." + name.removeprefix("model.").replace(".", "")] = tensor * 0.5
        for encoder in text_encoders(self.arch):
            width = HIDDEN[encoder.comfy]
            if not encoder.open_clip:
                extras[f"{encoder.stored}text_model.embeddings.position_ids"] = torch.arange(77)[None]
                continue
            extras[f"{encoder.stored}logit_scale"] = torch.tensor(4.6)
            if not encoder.projection:  # SD 2: the last layer and the projection are there, and unused
                extras[f"{encoder.stored}text_projection"] = torch.ones(width, width)
                last = f"{encoder.stored}transformer.resblocks.{encoder.layers - 1}."
                for name in [name for name in stored if name.startswith(last)]:
                    unused = name.replace(f".{encoder.layers - 1}.", f".{encoder.layers}.")
                    extras[unused] = stored[name] * 0.5
        return extras


def canonical_state(components: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The state of components, by canonical name."""
    state: dict[str, Tensor] = {}
    for component, module in components.items():
        for name, tensor in module.state_dict().items():
            if name.startswith(("embeddings.", "encoder.layers.", "final_layer_norm.")):  # transformers 5
                name = f"text_model.{name}"
            state[f"{component}.{name}"] = tensor
    return state


def scheduler(prediction: str = "epsilon") -> DDIMScheduler:
    """Stable Diffusion's noise."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )


@cache
def pico(name: str, seed: int = 0) -> PicoModel:
    """The pico of an architecture (or ``sd1-inpainting``), built once per process."""
    arch = architectures()[name.partition("-")[0]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: dict[str, object] = {
            "unet": UNet2DConditionModel(**(TINY | UNETS[name])),
            "vae": AutoencoderKL(
                block_out_channels=(4, 8, 16, 16),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                latent_channels=4,
                norm_num_groups=4,
                sample_size=64,
            ),
            "text_encoder": None,
            "tokenizer": None,
            "scheduler": scheduler("v_prediction" if name == "sd2" else "epsilon"),
        }
        for encoder in text_encoders(arch):
            parts[encoder.name] = _text_encoder(HIDDEN[encoder.comfy], encoder.layers, encoder.projection)
            parts[encoder.name.replace("text_encoder", "tokenizer")] = tokenizer()
        _perturb(parts)
    if not arch.family.micro_conditioning:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = PIPELINES[name](**parts)
    pipeline.set_progress_bar_config(disable=True)
    return PicoModel(arch, pipeline)


def short_unet(name: str, **config: object) -> UNet2DConditionModel:
    """A U-Net of two levels, a layer each, with every kind of block that its pico has: for what needs no names."""
    short = {"sdxl": SHORT_XL, "ssd1b": SHORT_XL | ASYMMETRIC, "segmind_vega": SHORT_XL}.get(name, SHORT_SD)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**(TINY | UNETS[name] | short | config))
        _perturb({"unet": unet})
    return unet


@cache
def tokenizer() -> CLIPTokenizer:
    """A real CLIP tokenizer of single letters, the pairs "th" and "in", and the two special tokens."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    merges = [("t", "h"), ("i", "n</w>")]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocab, rules = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocab.write_text(json.dumps({word: number for number, word in enumerate(words)}), "utf-8")
        rules.write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), "utf-8")
        return CLIPTokenizer(str(vocab), str(rules), model_max_length=77)


def lcm_lora(path: Path, name: str, rank: int = 4, alpha: float = 2.0, seed: int = 1) -> Path:
    """A file in the official LCM-LoRA files' grammar: kohya prefix, diffusers names, the paper's targets."""
    shapes = {parameter: tuple(tensor.shape) for parameter, tensor in pico(name).state().items()}
    modules = {
        "lora_unet_" + module.removeprefix("unet.").replace(".", "_"): shape
        for module, shape in lora_targets(shapes).items()
    }
    save_file(_factors(modules, rank, alpha, seed), path)
    return path


def style_lora(path: Path, name: str, rank: int = 4, alpha: float = 2.0, seed: int = 2) -> Path:
    """A style LoRA as kohya writes it: attention and feed-forward of U-Net and text encoders.

    SDXL and its relatives get LDM block names, ``lora_te1_`` and ``lora_te2_``; the others ``lora_te_``.
    """
    model = pico(name)
    slots = model.arch.keymap("single-file").slots
    one = len(model.arch.text_encoders) == 1
    prefixes = {
        "unet": "lora_unet_",
        "text_encoder": "lora_te_" if one else "lora_te1_",
        "text_encoder_2": "lora_te_" if one else "lora_te2_",
    }
    modules: dict[str, tuple[int, ...]] = {}
    for parameter, tensor in model.state().items():
        component, _, module = parameter.removesuffix(".weight").partition(".")
        if component not in prefixes or not parameter.endswith(STYLE_TARGETS):
            continue
        if component == "unet" and model.arch.family.micro_conditioning:
            module = slots[parameter].stored.removeprefix("model.diffusion_model.").removesuffix(".weight")
        modules[prefixes[component] + module.replace(".", "_")] = tuple(tensor.shape)
    save_file(_factors(modules, rank, alpha, seed), path)
    return path


def _factors(modules: dict[str, tuple[int, ...]], rank: int, alpha: float, seed: int) -> dict[str, Tensor]:
    """Three fp16 tensors a module: alpha, down [r, in] or [r, in, kh, kw], up [out, r] or [out, r, 1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, (out, *rest) in modules.items():
        down, up = (rank, *rest), (out, rank, *(1 for _ in rest[1:]))
        tensors[f"{module}.lora_down.weight"] = (0.1 * torch.randn(down, generator=generator)).half()
        tensors[f"{module}.lora_up.weight"] = (0.1 * torch.randn(up, generator=generator)).half()
        tensors[f"{module}.alpha"] = torch.tensor(alpha).half()
    return tensors


def _text_encoder(hidden: int, layers: int, projection: bool) -> nn.Module:
    size = len(tokenizer())
    config = CLIPTextConfig(
        vocab_size=size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        projection_dim=PROJECTION,
        max_position_embeddings=77,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def _perturb(parts: dict[str, object]) -> None:
    """Fresh norms are all ones and biases all zeros, which would hide a wrong name."""
    for part in parts.values():
        if isinstance(part, nn.Module):
            for parameter in part.eval().requires_grad_(False).parameters():
                parameter += 0.02 * torch.randn_like(parameter)


def _cast(tensor: Tensor, dtype: str) -> Tensor:
    return (tensor.to(TORCH[dtype]) if tensor.is_floating_point() else tensor).contiguous().clone()


def main() -> None:
    """``python tests/pico.py sd1 FOLDER``: a base, a style LoRA and an LCM-LoRA to try lcmmerge on."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    pico(name).folder(folder / "base")
    style_lora(folder / "style.safetensors", name)
    lcm_lora(folder / "lcm.safetensors", name)


if __name__ == "__main__":
    main()
