"""Fuses for tests: picos' files, the merge through the package's API, and outputs read by the reference library."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from merging import merge_of
from pico import lcm_lora, pico, style_lora
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lcmmerge.archs import identify
from lcmmerge.bake import fuse as merge
from lcmmerge.bake.outcome import Settings
from lcmmerge.bake.report import Report
from lcmmerge.merge.plan import plan
from lcmmerge.tensors import open_source


@dataclass(frozen=True, slots=True)
class Files:
    """A pico's inputs; they are made once per process, so tests must leave them as they are."""

    root: Path
    name: str

    def base(self, dtype: str = "fp16") -> Path:
        return _base(self.root, self.name, dtype)

    def folder(self, dtype: str = "fp16") -> Path:
        return _folder(self.root, self.name, dtype)

    @property
    def style(self) -> Path:
        return _lora(self.root, self.name, "style")

    @property
    def lcm(self) -> Path:
        return _lora(self.root, self.name, "lcm")


@cache
def _base(root: Path, name: str, dtype: str) -> Path:
    return pico(name).single_file(root / f"{name}-{dtype}.safetensors", dtype)


@cache
def _folder(root: Path, name: str, dtype: str) -> Path:
    return pico(name).folder(root / f"{name}-{dtype}", dtype)


@cache
def _lora(root: Path, name: str, kind: str) -> Path:
    return {"style": style_lora, "lcm": lcm_lora}[kind](root / f"{name}-{kind}.safetensors", name)


def without_alpha(lora: Path, target: Path) -> Path:
    """A LoRA as programs write it that leave its alpha to be told."""
    save_file({name: tensor for name, tensor in load_file(lora).items() if not name.endswith(".alpha")}, target)
    return target


def fuse(
    base: Path,
    target: Path,
    style: Path | None = None,
    lcm: Path | None = None,
    strengths: tuple[float, float] = (0.8, 1.0),
    *,
    adapters: tuple[tuple[Path, float], ...] = (),
    settings: Settings = Settings(threads=1),  # noqa: B008 - frozen
    force: bool = False,
    accept_loss: bool = False,
    dtype: str | None = None,
    layout: str | None = None,
    drop_ema: bool = False,
    shard: int | None = None,
    allow_unmatched: bool = False,
    rounding_seed: int | None = None,
    **fields: Any,
) -> Report:
    """What ``lcmmerge fuse`` does; without ``lcm`` there is no such term."""
    asked = merge_of(
        base,
        target,
        style,
        strengths if lcm else (strengths[0], 0.0),
        lcm,
        adapters,
        layout=layout,
        encoding=dtype,
        max_shard_bytes=shard,
        drop_ema=drop_ema,
        rounding_seed=rounding_seed,
        allow_unmatched=allow_unmatched,
        **fields,
    )
    return merge.fuse(plan(asked), settings=settings, force=force, accept_loss=accept_loss)


def load(path: Path) -> dict[str, Tensor]:
    """Stored name → tensor; in a diffusers folder with the component in front. Shards are put together."""
    if path.is_file():
        return load_file(path)
    found: dict[str, Tensor] = {}
    for file in sorted(path.rglob("*.safetensors")):
        prefix = "" if file.parent == path else f"{file.parent.name}."
        found |= {f"{prefix}{name}": tensor for name, tensor in load_file(file).items()}
    return found


def canonical(path: Path) -> dict[str, Tensor]:
    """Canonical name → tensor of a checkpoint in any layout, through the key map."""
    stored = load(path)
    found = {}
    for name, parameter in identify(open_source(path)).parameters.items():
        found[name] = parameter.slot.view.take(stored[parameter.info.name])
    return found


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def edited(path: Path, target: Path, **changed: Tensor | None) -> Path:
    """A copy of a safetensors file with some tensors replaced, or removed (None); dots are written as they are."""
    tensors = load_file(path) | changed
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, target)
    return target


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Names, shapes, dtypes and bytes."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(raw(found[name]), raw(tensor)), name


def raw(tensor: Tensor) -> Tensor:
    """The bytes of a tensor."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)
