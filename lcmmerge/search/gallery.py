"""The samples of drawings as objectives see them, kept for as long as the study runs: images are decoded once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from lcmmerge.history import canonical_json
from lcmmerge.search.drawing import Sampled
from lcmmerge.search.objectives import Samples
from lcmmerge.search.order import Cell


def tensor_of(image: Image) -> Tensor:
    """[3, H, W] uint8."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


class Gallery:
    """The images of a study, decoded when they are first asked for.

    ``decode``: a cell and latents → images, as ``Samples`` has them.
    """

    def __init__(self, decode: Callable[[Cell, Tensor], Tensor] | None = None) -> None:
        self._decode = decode
        self._known: dict[str, Samples] = {}

    def __call__(self, drawn: Sampled) -> Samples | None:
        """None where there are none."""
        if drawn.latents is None:
            return None
        key = f"{drawn.drawing.kind}: {canonical_json(drawn.drawing.as_dict())}"
        if key not in self._known:
            decode = partial(self._decode, drawn.drawing.cell) if self._decode else None
            prompts = tuple(job.prompt for job in drawn.drawing.jobs)
            self._known[key] = Samples(drawn.latents, prompts, decode)
        return self._known[key]
