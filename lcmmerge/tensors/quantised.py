"""Quantised tensors in safetensors files: each with what belongs to it, as one tensor of the numbers it stands for.

Two dialects are ComfyUI's. The newer one says of each layer how it is stored, in a tensor ``comfy_quant`` beside it or
in the header's ``_quantization_metadata``. The older one is of scaled fp8 alone: a tensor ``scaled_fp8`` marks the
file, and beside a weight lies ``scale_weight``. What a layer's input is scaled by (``input_scale``, ``scale_input``) is
no part of the weight. The third is bitsandbytes', as diffusers and transformers write it: ``SCB`` beside a weight in
int8, and ``weight.quant_state.bitsandbytes__nf4`` and more beside one in 4 bits.
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
from lcmmerge.tensors.encodings import Encoding, Parts, bnb, encodings
from lcmmerge.tensors.encodings.base import MAIN, Shape
from lcmmerge.tensors.info import TensorInfo

METADATA = "_quantization_metadata"
LAYER = ".comfy_quant"
LARGEST_FORM = 4096  # bytes of one
OLD_MARK, OLD_SCALE = "scaled_fp8", ".scale_weight"
ROW_SCALE = f".{bnb.ROW_SCALE}"
SMOOTHED = ".pre_quant_scale"
INPUTS = (".input_scale", ".scale_input")  # of activations
HARMLESS = ("full_precision_matrix_mult",)  # how a layer is computed, and not how it is stored
CURE = "take the checkpoint from before it was quantised"
Tensors = Mapping[str, TensorInfo]


def assembled(tensors: Tensors, layers: Mapping[str, object], path: Path) -> Tensors:
    """The tensors of a file or folder, the quantised ones with their companions in them.

    ``layers``: what headers say of them. Raises FormatError: an unknown format, companions that are missing or of
    another shape.
    """
    states = _states(tensors, path)
    formats = _formats(tensors, layers, path) | {module: encoding for module, (encoding, _) in states.items()}
    if not formats:
        return tensors
    used: set[str] = set()
    whole: dict[str, TensorInfo] = {}
    for module, encoding in formats.items():
        info = tensors.get(f"{module}.weight")
        if info is None:
            raise FormatError(f"{path}: {module} is said to be quantised, and has no weight", "download it again")
        if module + SMOOTHED in tensors:
            raise FormatError(f"{path}: {module} has {SMOOTHED[1:]}, which its inputs are scaled by: not read", CURE)
        companions = _companions(info, encoding, module, tensors)
        shape = states[module][1] if module in states else encoding.shape_of(info.shape)
        _check(info, encoding, shape, companions)
        whole[info.name] = replace(info, dtype=DTYPES["BF16"], shape=shape, encoded=encoding, companions=companions)
        used |= {each.name for each in companions.values()}
        used |= {module + LAYER, *(module + suffix for suffix in INPUTS)}
    left = {name: info for name, info in tensors.items() if name not in used and name.rpartition(".")[2] != OLD_MARK}
    return {name: whole.get(name, info) for name, info in left.items()}


def layers_in(metadata: Mapping[str, str], path: Path) -> dict[str, object]:
    """Module → how it is stored, as a file's header says it, nothing where it does not. Raises FormatError."""
    layers = _json(metadata[METADATA], path).get("layers", {}) if METADATA in metadata else {}
    if not isinstance(layers, dict):
        raise _no_json(path)
    return layers


def _formats(tensors: Tensors, layers: Mapping[str, object], path: Path) -> dict[str, Encoding]:
    """Module → its encoding."""
    said = dict(layers)
    for name, info in tensors.items():
        if name.endswith(LAYER) and (module := name.removesuffix(LAYER)) not in said:
            said[module] = _json(info.data() if info.nbytes <= LARGEST_FORM else b"", path)
        elif name.endswith(OLD_SCALE):
            said.setdefault(name.removesuffix(OLD_SCALE), {"format": "float8_e4m3fn"})
    return {module: _encoding(module, form, path) for module, form in said.items()} | _by_rows(tensors, path)


def _by_rows(tensors: Tensors, path: Path) -> dict[str, Encoding]:
    """bitsandbytes' modules in int8."""
    modules = [name.removesuffix(ROW_SCALE) for name in tensors if name.endswith(ROW_SCALE)]
    for module in modules:
        told = tensors.get(f"{module}.{bnb.ROW_FORMAT}")
        if told and (told.nbytes != 1 or told.data() != bnb.BY_ROWS):
            raise FormatError(f"{path}: {module} is in an order of its numbers that is not known", CURE)
    return dict.fromkeys(modules, bnb.INT8)


def _states(tensors: Tensors, path: Path) -> dict[str, tuple[Encoding, Shape]]:
    """bitsandbytes' modules in 4 bits: encoding and shape."""
    found = {}
    for name, info in tensors.items():
        module, state, kind = name.partition(f".{bnb.STATE}")
        if state:
            content = info.data() if info.nbytes <= LARGEST_FORM else b""
            form = _json(content, path)
            try:
                found[module] = bnb.four_bit(kind, form, content)
            except ValueError:
                raise _unknown(module, form, path) from None
    return found


def tells(name: str) -> bool:
    """Whether a tensor of that name says how another is stored."""
    return name.endswith((LAYER, f".{bnb.ROW_FORMAT}")) or f".{bnb.STATE}" in name


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
        raise _no_json(path)
    return found


def _no_json(path: Path) -> FormatError:
    return FormatError(f"{path}: what it says of its quantised layers is not JSON", "download it again")


def _encoding(module: str, form: object, path: Path) -> Encoding:
    if isinstance(form, dict):
        plain = {key: value for key, value in form.items() if key not in HARMLESS}
        for encoding in encodings().values():
            if encoding.form and dict(encoding.form) == plain:
                return encoding
    raise _unknown(module, form, path)


def _unknown(module: str, form: object, path: Path) -> FormatError:
    shown = json.dumps(form)[:80]
    return FormatError(f"{path}: {module} is quantised in a way that is not known: {shown}", CURE)


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
    """The companions of an encoded tensor, unpacked, but for those that are the same for every tensor.

    Raises FormatError for a scale that is NaN, infinite or 0.
    """
    specs = info.encoding.specs(info.name, info.shape)
    zeros = {item.suffix: item.zeros for item in info.encoding.companions}
    varying = {item.suffix for item in info.encoding.companions if item.constant is None}
    parts = {}
    for suffix, there in info.companions.items():
        if suffix not in varying:
            continue
        tensor = parts[suffix] = there.read().reshape(specs[suffix].shape)
        numbers = tensor.float() if tensor.is_floating_point() else None
        if numbers is None:
            continue
        zero = there.dtype.itemsize == 4 and not zeros[suffix] and not bool(numbers.all())
        if zero or not bool(numbers.isfinite().all()):
            what = f"{there.path}: {there.name} holds a scale that is 0, NaN or infinite"
            raise FormatError(what, "the file is damaged: download it again")
    return info.encoding.unpacked(parts, info.shape)
