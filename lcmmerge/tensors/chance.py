"""Chance that depends on a name alone: the same in every run, and whatever else is computed beside it."""

from __future__ import annotations

import hashlib

import torch


def generator_of(name: str) -> torch.Generator:
    """On the CPU, seeded by the first seven bytes of the name's BLAKE2b digest."""
    digest = hashlib.blake2b(name.encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))
