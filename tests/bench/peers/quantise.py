"""Quantising alone, as programs for it do: ``python quantise.py ENCODING BASE OUT`` (no merge, no loss told).

``gguf:…``: the gguf package's own quantize, one tensor after another. Else comfy-kitchen's kernels, as ComfyUI calls
them, and safetensors' ``save_file``: all of it in memory. Which tensors: those that lcmmerge takes.
"""

import json
import sys

import gguf
import numpy as np
import torch
from comfy_kitchen.tensor import get_layout_class
from safetensors import safe_open
from safetensors.torch import save_file

LAYOUTS = {
    "fp8_scaled": "TensorCoreFP8Layout",
    "int8_convrot": "TensorWiseINT8Layout",
    "mxfp8": "TensorCoreMXFP8Layout",
    "nvfp4": "TensorCoreNVFP4Layout",
}
OPTIONS = {"int8_convrot": {"is_weight": True, "per_channel": True, "convrot": True}}


def taken(name: str, shape: list[int]) -> bool:
    """Large linears of the blocks."""
    inner = name.removeprefix("model.diffusion_model.").lower()
    inside = inner.startswith(("layers.", "double_blocks.", "single_blocks.")) and "mod" not in inner
    return name.endswith(".weight") and len(shape) == 2 and min(shape) >= 256 and inside


def to_gguf(kind: str, base: str, out: str) -> None:
    writer = gguf.GGUFWriter(out, "flux")
    wanted = gguf.GGMLQuantizationType[kind.upper()]
    types = gguf.GGMLQuantizationType
    with safe_open(base, "pt") as file:
        chosen = {key: taken(key, file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        for key, inside in chosen.items():
            shape, kept = tuple(file.get_slice(key).get_shape()), wanted if inside else types.F32
            nbytes = gguf.quant_shape_to_byte_shape(shape, kept) if inside else None
            size = int(torch.tensor(nbytes or shape).prod()) * (1 if inside else 4)
            dtype = np.dtype(np.uint8 if inside else np.float32)
            writer.add_tensor_info(key, nbytes or shape, dtype, size, kept)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for key, inside in chosen.items():
            numbers = file.get_tensor(key).float().numpy()
            writer.write_tensor_data(gguf.quants.quantize(numbers, wanted) if inside else numbers)
    writer.close()


def to_comfy(name: str, base: str, out: str) -> None:
    layout, found = get_layout_class(LAYOUTS[name]), {}
    with safe_open(base, "pt") as file:
        for key in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(key)
            if not taken(key, list(tensor.shape)):
                found[key] = tensor
                continue
            data, params = layout.quantize(tensor, **OPTIONS.get(name, {}))
            for suffix, part in layout.state_dict_tensors(data, params).items():
                found[key + suffix] = part
            form = json.dumps({"format": name}).encode()
            found[key.removesuffix("weight") + "comfy_quant"] = torch.frombuffer(bytearray(form), dtype=torch.uint8)
    save_file(found, out)


if __name__ == "__main__":
    encoding, base, out = sys.argv[1:]
    container, _, kind = encoding.partition(":")
    to_gguf(kind, base, out) if container == "gguf" else to_comfy(encoding, base, out)
