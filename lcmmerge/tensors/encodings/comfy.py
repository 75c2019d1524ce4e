"""What ComfyUI's quantised files have in common: how they tell a tensor's format, and where scales of blocks lie.

Facts of https://github.com/Comfy-Org/ComfyUI, QUANTIZATION.md, comfy/ops.py and comfy/utils.py: a tensor's format is
JSON in a tensor beside it, or in the file's header. ComfyUI takes either, others one of the two: both are written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from lcmmerge.tensors.dtypes import DTYPES
from lcmmerge.tensors.encodings.base import Companion, Shape

if TYPE_CHECKING:
    from torch import Tensor

SCALE = "weight_scale"
TINY = 2.0**-126  # the least scale: what is smaller has no finite reciprocal
ROWS, GROUPS = 128, 4  # of scales that lie together, as cuBLAS wants them
QUARTER = 32  # rows
ALIGNMENT = 4  # of what follows the JSON, which spaces fill up


def described(form: Mapping[str, object]) -> Companion:
    """The tensor that says how the one beside it is stored."""
    text = json.dumps(form)
    content = text.ljust(-(-len(text) // ALIGNMENT) * ALIGNMENT).encode()
    return Companion("comfy_quant", DTYPES["U8"], lambda rows, columns: (len(content),), constant=content)


def tensor_scale(peak: float, largest: float) -> Tensor:
    """What makes ``peak`` the ``largest`` number of a format, in float32."""
    import torch

    return torch.tensor(peak, dtype=torch.float32).div(largest).clamp(min=TINY)


def blocked_shape(group: int) -> Callable[[int, int], Shape]:
    """Of the scales of groups of so many numbers: whole tiles of 128 rows and 4 groups."""
    return lambda rows, columns: (-(-rows // ROWS) * ROWS, -(-columns // group // GROUPS) * GROUPS)


def write_blocked(scales: Tensor, into: Tensor) -> None:
    """Put [rows, groups] into tiles, in which the rows r, r + 32, r + 64 and r + 96 lie together; others are zeros."""
    import torch

    padded = torch.zeros(into.shape, dtype=torch.uint8, device=scales.device)
    padded[: scales.shape[0], : scales.shape[1]] = scales.view(torch.uint8)
    tiles = padded.view(-1, ROWS // QUARTER, QUARTER, into.shape[1] // GROUPS, GROUPS).permute(0, 3, 2, 1, 4)
    into.view(torch.uint8).copy_(tiles.reshape(into.shape))


def read_blocked(blocked: Tensor, rows: int, groups: int) -> Tensor:
    """[rows, groups] of what ``write_blocked`` has put there."""
    import torch

    tiles = blocked.view(torch.uint8).view(-1, blocked.shape[1] // GROUPS, QUARTER, ROWS // QUARTER, GROUPS)
    scales = tiles.permute(0, 3, 2, 1, 4).reshape(blocked.shape)[:rows, :groups]
    return scales.contiguous().view(blocked.dtype)
