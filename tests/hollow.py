"""Real-size files that take no room on the disk: true headers before holes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path

from published import shapes

from lcmmerge.archs import architectures, lora_targets


def hollow(path: Path, tensors: Mapping[str, tuple[int, ...]]) -> Path:
    """A safetensors file of fp16 tensors whose data are a hole: it takes no room on the disk."""
    header: dict[str, object] = {}
    position = 0
    for name, shape in tensors.items():
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [position, position + 2 * prod(shape)]}
        position += 2 * prod(shape)
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + position)
    return path


def hollow_model(path: Path, name: str) -> Path:
    """A checkpoint of the real size, as single files are."""
    stored = {}
    real = shapes(name)
    for key, slots in architectures()[name].keymap("single-file").stored.items():
        present = [slot for slot in slots if slot.parameter in real]
        if present:
            stored[key] = present[0].view.stored_shape(real[present[0].parameter])
    return hollow(path, stored)


def hollow_lora(path: Path, name: str, rank: int) -> Path:
    """An LCM-LoRA of the real size, as the official ones are."""
    tensors: dict[str, tuple[int, ...]] = {}
    for module, (out, *rest) in lora_targets(shapes(name)).items():
        key = "lora_unet_" + module.removeprefix("unet.").replace(".", "_")
        tensors |= {
            f"{key}.lora_down.weight": (rank, *rest),
            f"{key}.lora_up.weight": (out, rank, *(1 for _ in rest[1:])),
            f"{key}.alpha": (),
        }
    return hollow(path, tensors)
