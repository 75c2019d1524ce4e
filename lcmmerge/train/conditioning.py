"""Captions to what the U-Net is told."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from lcmmerge.draw.encode import Embedding, Encoder
from lcmmerge.draw.load import Pipeline
from lcmmerge.train.batch import Conditioning

REMEMBERED = 256  # captions; one of SDXL's takes 0.6 MB in float32


class TextEncoders:
    """The text encoders of a pipeline of Stable Diffusion (``sd``: one) or SDXL (``sdxl``: two), told in float32."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.kind = "sdxl" if isinstance(pipeline, StableDiffusionXLPipeline) else "sd"
        self._encoder = Encoder(pipeline, remembered=REMEMBERED)

    def __call__(self, captions: Sequence[str], sizes: Tensor | None = None) -> Conditioning:
        """``sizes`` [B, 6] become ``time_ids`` where the U-Net takes them."""
        return _told([self._encoder(caption) for caption in captions], sizes)

    def blank(self, count: int, sizes: Tensor | None = None) -> Conditioning:
        """∅ as the pipeline has it."""
        return _told([self._encoder.negative("")] * count, sizes)


def _told(embeddings: Sequence[Embedding], sizes: Tensor | None) -> Conditioning:
    hidden = torch.cat([embedding.hidden for embedding in embeddings]).float()
    pooled = [embedding.pooled for embedding in embeddings if embedding.pooled is not None]
    if not pooled:
        return Conditioning(hidden)
    if sizes is not None:  # float32 whatever the rest is: bfloat16 holds no side of 1023
        sizes = sizes.to(hidden.device).float()
    return Conditioning(hidden, torch.cat(pooled).float(), sizes)
