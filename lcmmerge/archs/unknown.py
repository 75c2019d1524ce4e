"""A denoiser of diffusers of no family that we know: names as they are, which adapters by diffusers' names share.

Nothing is known of its blocks, of other programs' names, or of how it is drawn.
"""

from __future__ import annotations

import re
from contextlib import suppress

from lcmmerge.archs.base import Architecture, Family, architectures
from lcmmerge.archs.component import Component
from lcmmerge.archs.foreign import ADAPTER, foreign_kind
from lcmmerge.archs.prediction import UNKNOWN
from lcmmerge.refs.files import read_object
from lcmmerge.refs.weights import DENOISERS, DIFFUSERS
from lcmmerge.tensors import TensorSource

NAME = "unknown"
CLASS = re.compile(r"(?!.*(?:ControlNet|Adapter|Motion))\w*(?:Transformer|UNet|DiT|UVit)\w*")


def unknown_architecture(source: TensorSource) -> Architecture | None:
    """That of a diffusers folder, or of a denoiser's own, whose config.json names a class that no family has."""
    folders = {name.partition(".")[0] for name in source.tensors} if source.layout == DIFFUSERS else set()
    name = next((each for each in DENOISERS if each in folders), "")
    if bool(folders) != bool(name) or not source.path.is_dir():
        return None
    config = {}
    with suppress(OSError, ValueError):
        config = read_object(source.path / name / "config.json")
    module = str(config.get("_class_name"))
    known = {arch.denoiser.module for arch in architectures().values()}
    adapts = foreign_kind(source) or any(part in each for each in source.tensors for part in ADAPTER)
    if module in known or not CLASS.fullmatch(module) or adapts:
        return None
    denoiser = Component(name=name or DENOISERS["UNet" not in module], module=module, kind="denoiser")
    others = tuple(Component(name=each) for each in sorted(folders - {name}))
    return Architecture(
        title=f"unknown family, names as they are ({module})",
        hub="",
        modelspec=module,
        parts=(denoiser, *others),
        family=Family(prediction=UNKNOWN),
        name=NAME,
    )
