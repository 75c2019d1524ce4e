"""What the VAE's two halves share."""

from __future__ import annotations

from pathlib import Path

from lcmmerge.errors import IncompatibleError


def check_vae(folder: Path, source_class: str) -> None:
    if source_class != "AutoencoderKL":
        raise IncompatibleError(f"{folder}: is a {source_class}", "give a model with diffusers' AutoencoderKL")
