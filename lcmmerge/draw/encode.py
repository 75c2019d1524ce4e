"""Prompts as the U-Net meets them, each text encoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lcmmerge.draw.jobs import Job
from lcmmerge.draw.load import Pipeline


@dataclass(frozen=True, slots=True)
class Embedding:
    """A prompt as the U-Net takes it.

    ``hidden``: [1, tokens, width]; ``pooled``: [1, width], of SDXL and its relatives only.
    """

    hidden: Tensor
    pooled: Tensor | None


class Encoder:
    """Encodes texts with a pipeline's text encoders, and keeps what it encoded: of the last ``remembered``, or of all.

    Valid as long as the text encoders' weights are. ``say`` is told of a text that is longer than CLIP reads. One text
    at a time: in a batch, its last bits would depend on its neighbours.
    """

    def __init__(
        self, pipeline: Pipeline, say: Callable[[str], None] = lambda text: None, remembered: int | None = None
    ) -> None:
        self._pipeline, self._say = pipeline, say
        self._known = lru_cache(remembered)(self._encode)

    def __call__(self, text: str) -> Embedding:
        return self._known(text)

    def negative(self, text: str) -> Embedding:
        """∅ is the text "" for SD, and zeros for SDXL where its pipeline's config says so."""
        found = self(text)
        if text or found.pooled is None or not self._pipeline.config.force_zeros_for_empty_prompt:
            return found
        return Embedding(torch.zeros_like(found.hidden), torch.zeros_like(found.pooled))

    def arguments(self, jobs: Sequence[Job], *, guided: bool) -> dict[str, Any]:
        """A pipeline call's embeddings for a batch."""
        kinds = {"": [self(job.prompt) for job in jobs]}
        if guided:
            kinds["negative_"] = [self.negative(job.negative) for job in jobs]
        found = {}
        for kind, embeddings in kinds.items():
            found[f"{kind}prompt_embeds"] = torch.cat([embedding.hidden for embedding in embeddings])
            pooled = [embedding.pooled for embedding in embeddings if embedding.pooled is not None]
            if pooled:
                found[f"{kind}pooled_prompt_embeds"] = torch.cat(pooled)
        return found

    @torch.no_grad()
    def _encode(self, text: str) -> Embedding:
        tokenizer = self._pipeline.tokenizer
        if (length := len(tokenizer(text).input_ids)) > tokenizer.model_max_length:
            self._say(f"CLIP reads {tokenizer.model_max_length} tokens; of {length} the last are ignored: {text}")
        hidden, _, *pooled = self._pipeline.encode_prompt(
            prompt=text,
            device=self._pipeline.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        return Embedding(hidden, pooled[0] if pooled else None)
