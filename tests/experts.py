"""A tiny Wan 2.2 A14B, which is two experts, and adapters of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import UniPCMultistepScheduler
from families import folder, state_of
from safetensors.torch import save_file

MODULES = ("self_attn.q", "self_attn.o", "cross_attn.k", "ffn.0")  # as Wan's own files call them
RANK = 3


def two_experts(path: Path) -> Path:
    """A diffusers folder, whose experts begin as the same weights."""
    folder(path, "wan", state_of("wan"))
    shutil.copytree(path / "transformer", path / "transformer_2")
    index = json.loads((path / "model_index.json").read_text())
    more = {"transformer_2": index["transformer"], "scheduler": ["diffusers", "UniPCMultistepScheduler"]}
    (path / "model_index.json").write_text(json.dumps(index | more))
    UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True).save_pretrained(path / "scheduler")
    return path


def lora_of_wan(path: Path, begin: str, seed: int) -> Path:
    """As LightX2V saves it: factors, and a difference of the modulation."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in MODULES:
        out, width = (20, 24) if module == "ffn.0" else (24, 24)
        key = f"{begin}blocks.1.{module}"
        tensors[f"{key}.lora_up.weight"] = 0.3 * torch.randn(out, RANK, generator=generator)
        tensors[f"{key}.lora_down.weight"] = 0.3 * torch.randn(RANK, width, generator=generator)
    tensors[f"{begin}blocks.0.diff_m"] = 0.3 * torch.randn(1, 6, 24, generator=generator)
    tensors[f"{begin}head.diff_m"] = 0.3 * torch.randn(1, 2, 24, generator=generator)
    save_file(tensors, path)
    return path
