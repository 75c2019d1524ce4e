"""Quantised tensors in safetensors files: each with what belongs to it, as one tensor of the numbers it stands for.

Two dialects, both ComfyUI's. The newer one says of each layer how it is stored, in a tensor ``comfy_quant`` beside it
or in the header's ``_quantization_metadata``. The older one is of scaled fp8 alone: a tensor ``scaled_fp8`` marks the
file, and beside a weight lies ``scale_weight``. What a layer's input is scaled by (``input_scale``, ``scale_input``) is
no part of the weight.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from lcmmerge.errors import FormatError
from lcmmerge.tensors.dtypes import DTYPES
from lcmmerge.tensors.encodings import Encoding, Parts, encodings
from lcmmerge.tensors.encodings.base import MAIN
from lcmmerge.tensors.info import TensorInfo

METADATA = "_quantization_metadata"
LAYER = ".comfy_quant"
LARGEST_FORM = 4096  # bytes of one
OLD_MARK, OLD_SCALE = "scaled_fp8", ".scale_weight"
INPUTS = (".input_scale", ".scale_input")  # of activations
HARMLESS = ("full_precision_matrix_mult",)  # how a layer is computed, and not how it is stored
CURE = "take the checkpoint from before it was quantised"
Tensors = Mapping[str, TensorInfo]


def assembled(tensors: Tensors, metadata: Mapping[str, str], path: Path) -> Tensors:
    """The tensors of a file or folder, the quantised ones with their companions in them.

    Raises FormatError: an unknown format, companions that are missing or of another shape.
    """
    formats = _formats(tensors, metadata, path)
    if not formats:
        return tensors
    used: set[str] = set()
    whole: dict[str, TensorInfo] = {}
    for module, encoding in formats.items():
        info = tensors.get(f"{module}.weight")
        if info is None:
            raise FormatError(f"{path}: {module} is said to be quantised, and has no weight", "download it again")
        companions = _companions(info, encoding, module, tensors)
        shape = encoding.shape_of(info.shape)
        _check(info, encoding, shape, companions)
        whole[info.name] = replace(info, dtype=DTYPES["BF16"], shape=shape, encoded=encoding, companions=companions)
        used |= {each.name for each in companions.values()}
        used |= {module + LAYER, *(module + suffix for suffix in INPUTS)}
    left = {name: info for name, info in tensors.items() if name not in used and name.rpartition(".")[2] != OLD_MARK}
    return {name: whole.get(name, info) for name, info in left.items()}


def _formats(tensors: Tensors, metadata: Mapping[str, str], path: Path) -> dict[str, Encoding]:
    """Module → its encoding."""
    said: dict[str, Any] = {}
    if METADATA in metadata:
        said = _json(metadata[METADATA], path).get("layers", {})
    for name, info in tensors.items():
        if name.endswith(LAYER) and (module := name.removesuffix(LAYER)) not in said:
            said[module] = _json(info.data() if info.nbytes <= LARGEST_FORM else b"", path)
        elif name.endswith(OLD_SCALE):
            said.setdefault(name.removesuffix(OLD_SCALE), {"format": "float8_e4m3fn"})
    return {module: _encoding(module, form, path) for module, form in said.items()}


def layers_said(encodings: Mapping[str, Encoding]) -> dict[str, str]:
    """What a header says of tensors in these encodings; nothing where none is ComfyUI's."""
    layers = {name.rpartition(".")[0]: dict(each.form) for name, each in encodings.items() if each.form}
    return {METADATA: json.dumps({"format_version": "1.0", "layers": layers})} if layers else {}


def _json(text: str | bytes, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise FormatError(f"{path}: what it says of its quantised layers is not JSON", "download it again")
    return found


def _encoding(module: str, form: object, path: Path) -> Encoding:
    if isinstance(form, dict):
        plain = {key: value for key, value in form.items() if key not in HARMLESS}
        for encoding in encodings().values():
            if encoding.form and dict(encoding.form) == plain:
                return encoding
    shown = json.dumps(form)[:80]
    raise FormatError(f"{path}: {module} is quantised in a way that is not known: {shown}", CURE)


def _companions(info: TensorInfo, encoding: Encoding, module: str, tensors: Tensors) -> dict[str, TensorInfo]:
    """By suffix; one whose content is always the same may be missing."""
    found = {}
    for item in encoding.companions:
        names = [f"{module}.{item.suffix}", *([module + OLD_SCALE] if item.suffix == "weight_scale" else [])]
        there = next((tensors[name] for name in names if name in tensors), None)
        if there is None and item.constant is None:
            raise FormatError(f"{info.path}: {info.name} is quantised, and {names[0]} is missing", "download it again")
        if there is not None:
            found[item.suffix] = there
    return found


def _check(info: TensorInfo, encoding: Encoding, shape: tuple[int, ...], companions: Tensors) -> None:
    """Sizes and dtypes are the encoding's; a scalar may be [1]."""
    specs = encoding.specs(info.name, shape)
    for suffix, there in {MAIN: info, **companions}.items():
        spec = specs[suffix]
        constant = any(item.suffix == suffix and item.constant is not None for item in encoding.companions)
        if not constant and (there.dtype, prod(there.shape)) != (spec.dtype, prod(spec.shape)):
            is_what = f"{there.dtype.torch_name} of shape {list(there.shape)}"
            wanted = f"{spec.dtype.torch_name} of shape {list(spec.shape)}"
            raise FormatError(f"{info.path}: {there.name} is {is_what}; {encoding.title} has {wanted}", CURE)


def companions_of(info: TensorInfo) -> Parts:
    """The companions of an encoded tensor, read. Raises FormatError for a scale that is NaN, infinite or 0."""
    specs = info.encoding.specs(info.name, info.shape)
    parts = {}
    for suffix, there in info.companions.items():
        tensor = parts[suffix] = there.read().reshape(specs[suffix].shape)
        numbers = tensor.float() if tensor.is_floating_point() else None
        if numbers is None:
            continue
        if not bool(numbers.isfinite().all()) or (there.dtype.itemsize == 4 and not bool(numbers.all())):
            what = f"{there.path}: {there.name} holds a scale that is 0, NaN or infinite"
            raise FormatError(what, "the file is damaged: download it again")
    return parts
