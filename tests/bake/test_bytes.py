"""The tensor bytes of a merge of each old family, as they were before architectures had components and views.

Weights and factors are small whole numbers over powers of two, so that every sum is exact: the hashes are the same on
any machine, in whatever order it adds.
"""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import pytest
import torch
from fusing import fuse
from pico import PICOS, PicoModel, pico
from safetensors.torch import save_file
from torch import Tensor

SINGLE, FOLDER = "single-file", "diffusers"
LAYOUTS = [(SINGLE, SINGLE), (SINGLE, FOLDER), (FOLDER, FOLDER), (FOLDER, SINGLE)]
# Of lcmmerge 0.1 at 2ea624b; of Segmind-Vega, when it came.
EXPECTED = {
    "sd1": ["be06f2b2c2294da9", "ad27cdc4f8a62973", "7108880d095399b3", "76de8e5eecfe7458"],
    "sd2": ["3e7c80c9b032936d", "aa1673d5629f2193", "677ccbe5725e1d40", "2ce6bdc807ae69f8"],
    "sdxl": ["0d879303d7d7f77b", "0541f35bf937d97b", "58ee06dd029e6ab7", "4455ef7b4eda28f5"],
    "sdxl_refiner": ["6d6910d016b17dd7", "b8ca094219c8e715", "fb03186834df9edf", "23b4f34553ad2285"],
    "ssd1b": ["367eedf1fc78f748", "cdc4974d67d431f3", "7ed5593f1e9a8765", "230c0b263c371f61"],
    "segmind_vega": ["d868b1d42f40e458", "c2f8726de8c7cce0", "895af5b3d1911c5a", "963269e33dcffcc0"],
    "sd1-inpainting": ["4f1b6958e7bb9e89", "eedca16f7e269fe3", "2df9f56c528f2090", "7d688b7cf6e35244"],
}


def numbers(name: str, shape: torch.Size, most: int, over: int) -> Tensor:
    """Whole numbers from −most to most, by the tensor's name, divided by ``over``."""
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    mixed = (torch.arange(shape.numel()) + start) * 2654435761 % 2**32 // 65536
    return (mixed % (2 * most + 1) - most).reshape(shape).float() / over


def exact(name: str) -> PicoModel:
    model = PicoModel(pico(name).arch, copy.deepcopy(pico(name).pipeline))
    for parameter, tensor in model.state().items():
        tensor.copy_(numbers(parameter, tensor.shape, 64, 64))
    return model


def lora(path: Path, model: PicoModel) -> Path:
    """Of every matrix of the U-Net and the text encoders, by their canonical names."""
    tensors = {}
    for parameter, tensor in model.state().items():
        if tensor.dim() > 1 and not parameter.startswith("vae.") and "embedding." not in parameter:
            key, kernel = parameter.removesuffix(".weight"), [1] * (tensor.dim() - 2)
            up, down = (tensor.shape[0], 2, *kernel), (2, *tensor.shape[1:])
            tensors[f"{key}.lora_up.weight"] = numbers(f"{key} up", torch.Size(up), 4, 8).half()
            tensors[f"{key}.lora_down.weight"] = numbers(f"{key} down", torch.Size(down), 4, 8).half()
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("name", PICOS)
def test_the_bytes_stay(name: str, tmp_path: Path) -> None:
    model = exact(name)
    style = lora(tmp_path / "style.safetensors", model)
    single, folder = model.single_file(tmp_path / "base.safetensors"), model.folder(tmp_path / "base")
    found = []
    for number, (layout, to) in enumerate(LAYOUTS):
        target = tmp_path / (f"{number}.safetensors" if to == SINGLE else f"{number}")
        base, configs = (single, str(folder)) if layout == SINGLE else (folder, None)
        report = fuse(base, target, style, strengths=(0.5, 0.0), layout=to, config_from=configs)
        digests = [digest for _, digest in sorted(report.sha256.items())]
        found.append(hashlib.sha256("".join(digests).encode()).hexdigest()[:16])
    assert found == EXPECTED[name]
