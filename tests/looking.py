"""Networks that look at images, for tests: as small as their libraries allow, with random weights, in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from string import ascii_lowercase, digits

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

SIDE = 16  # pixels that they look at
LETTERS = [f"{letter}{end}" for letter in ascii_lowercase + digits for end in ("", "</w>")]  # </w>: a word's last
WORDS = [*LETTERS, "<|startoftext|>", "<|endoftext|>"]
VGG = [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512]  # 0: halved


def clip(folder: Path) -> str:
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": len(WORDS) - 2, "eos_token_id": len(WORDS) - 1, "pad_token_id": len(WORDS) - 1}
    text = small | ends | {"vocab_size": len(WORDS), "max_position_embeddings": 12}
    vision = small | {"image_size": SIDE, "patch_size": 4}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": WORDS[-2], "eos_token": WORDS[-1], "pad_token": WORDS[-1], "unk_token": WORDS[-1]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", **special}))
    _processor(folder, "CLIPImageProcessor")
    return str(folder)


def dino(folder: Path) -> str:
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=SIDE, patch_size=4)
    Dinov2Model(config).save_pretrained(folder)
    _processor(folder, "BitImageProcessor")
    return str(folder)


def vgg(path: Path) -> str:
    """The convolutions of VGG-16, as torchvision names them: each with its ReLU, and a halving, is numbered."""
    torch.manual_seed(0)
    tensors, number, channels = {}, 0, 3
    for width in VGG:
        if width:
            layer = nn.Conv2d(channels, width, 3)
            tensors |= {f"features.{number}.{name}": tensor.detach() for name, tensor in layer.named_parameters()}
            channels = width
        number += 2 if width else 1
    save_file(tensors, path)
    return str(path)


class _Features(nn.Module):
    """What FID's network is called as: uint8 images → features."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 4 * 4, 16)

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        small = nn.functional.adaptive_avg_pool2d(images.float() / 255, [4, 4])
        return self.layer(small.flatten(1)) if return_features else small.flatten(1)


def script(path: Path) -> str:
    torch.manual_seed(0)
    torch.jit.script(_Features()).save(str(path))
    return str(path)


def _processor(folder: Path, kind: str) -> None:
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}, "resample": 3}
    means = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "rescale_factor": 1 / 255}
    does = {f"do_{what}": True for what in ("resize", "center_crop", "rescale", "normalize", "convert_rgb")}
    config = {"image_processor_type": kind, **size, **means, **does}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
