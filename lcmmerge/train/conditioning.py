"""Captions to what the U-Net is told, as diffusers' pipelines encode prompts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lcmmerge.draw.sampling import token_ids
from lcmmerge.train.batch import Conditioning

REMEMBERED = 256  # captions; one of SDXL's takes 0.6 MB in float32


class TextEncoders:
    """The text encoders of Stable Diffusion (``sd``: one) or SDXL (``sdxl``: two), in any precision they have.

    ``clip_skip`` as in diffusers: how many of the last layers are left out; SD 2's checkpoints come without the last.
    """

    def __init__(
        self,
        kind: Literal["sd", "sdxl"],
        tokenizers: Sequence[Any],
        text_encoders: Sequence[nn.Module],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        clip_skip: int | None = None,
    ) -> None:
        self.kind, self.clip_skip = kind, clip_skip
        self._parts: tuple[tuple[Any, Any], ...] = tuple(zip(tokenizers, text_encoders, strict=True))
        self._placed: dict[str, Any] = {"device": device, "dtype": dtype}
        # One caption at a time: in a batch, its last bits would depend on its neighbours, and so on the cache.
        self._encoded = lru_cache(REMEMBERED)(self._encode_sd if kind == "sd" else self._encode_sdxl)

    def __call__(self, captions: Sequence[str], sizes: Tensor | None = None) -> Conditioning:
        """``sizes`` [B, 6] become ``time_ids`` where the U-Net takes them."""
        rows = [self._encoded(caption, self.clip_skip or 0) for caption in captions]
        return self._told(torch.cat([hidden for hidden, _ in rows]), [pooled for _, pooled in rows], sizes)

    def blank(self, count: int, sizes: Tensor | None = None) -> Conditioning:
        """∅ as the pipelines have it by default: the encoded "" for SD, whatever is skipped; zeros for SDXL."""
        hidden, pooled = self._encoded("", 0)
        if self.kind == "sdxl":
            hidden = torch.zeros_like(hidden)
        empty = [None if pooled is None else torch.zeros_like(pooled)] * count
        return self._told(hidden.repeat(count, 1, 1), empty, sizes)

    def _told(self, hidden: Tensor, pooled: Sequence[Tensor | None], sizes: Tensor | None) -> Conditioning:
        if self.kind == "sd":
            return Conditioning(hidden)
        rows = [row for row in pooled if row is not None]
        if sizes is not None:  # float32 whatever the rest is: bfloat16 holds no side of 1023
            sizes = sizes.to(self._placed["device"]).float()
        return Conditioning(hidden, torch.cat(rows), sizes)

    @torch.no_grad()
    def _encode_sd(self, caption: str, skip: int) -> tuple[Tensor, Tensor | None]:
        """[1, tokens, width]."""
        encoder, output = self._run(0, caption)
        if not skip:
            return output[0].to(**self._placed), None
        norm = getattr(encoder, "text_model", encoder).final_layer_norm  # transformers 5 has no text_model
        return norm(output.hidden_states[-1 - skip]).to(**self._placed), None

    @torch.no_grad()
    def _encode_sdxl(self, caption: str, skip: int) -> tuple[Tensor, Tensor | None]:
        """[1, tokens, both widths] and the second encoder's [1, projection]."""
        outputs = [self._run(index, caption)[1] for index in range(len(self._parts))]
        hidden = torch.cat([output.hidden_states[-2 - skip] for output in outputs], dim=-1)
        return hidden.to(**self._placed), outputs[-1][0].to(**self._placed)

    def _run(self, index: int, caption: str) -> tuple[Any, Any]:
        tokenizer, encoder = self._parts[index]
        return encoder, encoder(token_ids(tokenizer, caption).to(encoder.device), output_hidden_states=True)
