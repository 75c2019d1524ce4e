"""Hostile quantised safetensors: what they say of a layer, and what lies beside its weight."""

from __future__ import annotations

import json
from random import Random

import torch
from damage import Mutation
from safetensors.torch import load, save
from torch import Tensor

LAYER = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
FORM = {"format": "float8_e4m3fn"}
FORMS = (
    b"", b"null", b"[]", b"{}", b"[" * 4000, b'{"a":' * 600 + b"0" + b"}" * 600, b"{" + b" " * 10**6 + b"}",
    b'{"format": null}', b'{"format": ["float8_e4m3fn"]}', b'{"format": "nvfp4"}', b'{"format": "\x1b[31m"}',
    b'{"format": "float8_e4m3fn", "format": "int8_tensorwise"}', b'{"format": NaN}', b"\xff\xfe", b'"\\ud800"',
)  # fmt: skip


def quantised(tensors: dict[str, Tensor]) -> bytes:
    """A checkpoint of which one layer is in scaled fp8."""
    weight = tensors[f"{LAYER}.weight"].float()
    scale = weight.abs().max() / 448
    layer = {
        f"{LAYER}.weight": (weight / scale).to(torch.float8_e4m3fn),
        f"{LAYER}.weight_scale": scale,
        f"{LAYER}.comfy_quant": _bytes(json.dumps(FORM).encode()),
    }
    return save(tensors | layer)


def _bytes(content: bytes) -> Tensor:
    return torch.tensor(list(content), dtype=torch.uint8)


def quantised_form(data: bytes, random: Random) -> bytes:
    return save(load(data) | {f"{LAYER}.comfy_quant": _bytes(random.choice(FORMS))})


def quantised_header(data: bytes, random: Random) -> bytes:
    """Of layers that are not there, in forms that are none, or no JSON."""
    tensors = load(data)
    if random.random() < 0.5:
        del tensors[f"{LAYER}.comfy_quant"]
    form = random.choice((FORM, {}, [], None, "float8_e4m3fn", 8, {"format": {"a": []}}))
    layers = random.choice(({LAYER: form}, {"nowhere": form}, {"": FORM}, [LAYER], LAYER, None))
    said = random.choice((json.dumps({"layers": layers}), json.dumps(layers), "[" * 10**5, "", "\0", "NaN"))
    return save(tensors, {"_quantization_metadata": said})


def quantised_beside(data: bytes, random: Random) -> bytes:
    """Companions and weights of other dtypes, shapes and values, or missing."""
    tensors = load(data)
    rows, columns = tensors[f"{LAYER}.weight"].shape
    fp8 = torch.float8_e4m3fn
    scale = random.choice(
        (None, *(torch.tensor(value) for value in (0.0, -1.0, torch.nan, torch.inf, 1e-45, 3e38)), torch.ones(rows, 1),
         torch.ones(0), torch.ones((), dtype=torch.float16), torch.ones(1, dtype=torch.int64), torch.ones(1, 1, 1))
    )  # fmt: skip
    shape = random.choice(((rows, columns), (0, columns), (rows, 0), (columns * rows,), (), (rows, columns, 1)))
    weight = random.choice((None, torch.full(shape, torch.nan).to(fp8), torch.ones(shape).to(fp8), torch.ones(shape)))
    changed = random.choice(({"weight_scale": scale}, {"weight": weight}, {"weight_scale": scale, "weight": weight}))
    tensors |= {f"{LAYER}.{suffix}": tensor for suffix, tensor in changed.items()}
    return save({name: tensor for name, tensor in tensors.items() if tensor is not None})


QUANTISED: dict[str, Mutation] = {
    "form": quantised_form, "header": quantised_header, "beside": quantised_beside,
}  # fmt: skip
