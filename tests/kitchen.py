"""ComfyUI's own kernels as oracle: what they make of a matrix, and of the tensors of a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from comfy_kitchen.tensor import QuantizedTensor, get_layout_class
from flux import wide
from fusing import fuse, metadata
from safetensors.torch import load_file
from torch import Tensor

from lcmmerge.bake.verify import verify
from lcmmerge.tensors import open_source
from lcmmerge.tensors.encodings import MAIN, encodings

LAYOUTS = {
    "float8_e4m3fn": "TensorCoreFP8Layout",
    "int8_tensorwise": "TensorWiseINT8Layout",
    "mxfp8": "TensorCoreMXFP8Layout",
    "nvfp4": "TensorCoreNVFP4Layout",
}
VIEWS = {"mxfp8": torch.float8_e8m0fnu, "nvfp4": torch.float8_e4m3fn}  # as which ComfyUI takes a scale's bytes
SHAPES = ((128, 256), (144, 512), (320, 768), (64, 1280))  # rows of tiles, and between them
MAGNITUDES = (1.0, 2.0**-60, 2.0**60)


def normal(shape: tuple[int, int], magnitude: float = 1.0) -> Tensor:
    """Random, with a number far above the others, a group of zeros and a row of them."""
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * magnitude
    rows[1, 5] *= 30
    rows[2, :32] = 0
    rows[3] = 0
    return rows


def ours(name: str, rows: Tensor) -> dict[str, Tensor]:
    encoding = encodings()[name]
    parts = encoding.allocate(tuple(rows.shape))
    encoding.encode(rows, parts, None, float(rows.abs().max()))
    return parts


def theirs(format: str, rows: Tensor, **options: bool) -> dict[str, Tensor]:
    layout = get_layout_class(LAYOUTS[format])
    tensors = layout.state_dict_tensors(*layout.quantize(rows, **options))
    return {f"weight{suffix}" if suffix else MAIN: tensor for suffix, tensor in tensors.items()}


def assert_same_bytes(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """All but the marker, which the kernels do not write."""
    assert found.keys() - {"comfy_quant"} == expected.keys()
    for suffix, tensor in expected.items():
        assert found[suffix].shape == tensor.shape, suffix
        assert raw(found[suffix]).equal(raw(tensor)), suffix


def raw(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@dataclass(frozen=True)
class Layer:
    """An encoded layer of a file: what ComfyUI makes of it, what it should be, and the numbers of its scales."""

    name: str
    given: Tensor
    exact: Tensor
    scale: Tensor


def fused_layers(name: str, folder: Path) -> list[Layer]:
    """A fuse of a small FLUX.1 in an encoding, verified; each layer as ComfyUI reads it beside θ′ in float32."""
    base, lora = wide(folder, 0.1)
    fuse(base, folder / "exact.safetensors", lora, dtype="fp32")
    fuse(base, folder / "merged.safetensors", lora, dtype=name)
    result = verify(open_source(folder / "merged.safetensors"), [str(folder)])
    assert (result.different, result.stale) == ((), ())
    exact, tensors = load_file(folder / "exact.safetensors"), load_file(folder / "merged.safetensors")
    told = json.loads(metadata(folder / "merged.safetensors")["_quantization_metadata"])
    assert told["format_version"] == "1.0"
    layers = [_layer(module, facts, tensors, exact) for module, facts in told["layers"].items()]
    assert tensors.keys() == exact.keys() - {f"{layer.name}.weight" for layer in layers}  # what is left of it
    return layers


def _layer(module: str, facts: dict, tensors: dict[str, Tensor], exact: dict[str, Tensor]) -> Layer:
    """Takes it out of ``tensors``, as ComfyUI's loader does."""
    assert json.loads(tensors.pop(f"{module}.comfy_quant").numpy().tobytes()) == facts
    wanted, kind = exact[f"{module}.weight"], facts["format"]
    scale = tensors.pop(f"{module}.weight_scale")
    scales = {"scale": scale.view(VIEWS.get(kind, scale.dtype))}
    if kind == "nvfp4":
        scales = {"scale": tensors.pop(f"{module}.weight_scale_2"), "block_scale": scales["scale"]}
    scales |= {key: value for key, value in facts.items() if key != "format"}
    layout = get_layout_class(LAYOUTS[kind])
    params = layout.Params(**scales, orig_dtype=torch.float32, orig_shape=tuple(wanted.shape))
    stored = QuantizedTensor(tensors.pop(f"{module}.weight"), LAYOUTS[kind], params)
    return Layer(module, stored.dequantize(), wanted, scale)
