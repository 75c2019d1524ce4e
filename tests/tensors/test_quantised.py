"""Quantised files of other programs: what is read of them, merged into them, and refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from flux import REACHED, folder_of, wide
from fusing import fuse, metadata
from merging import merge_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from lcmmerge.bake.loss import estimated
from lcmmerge.bake.verify import verify
from lcmmerge.errors import FormatError, QualityError
from lcmmerge.inspection import inspect
from lcmmerge.merge.plan import plan
from lcmmerge.tensors import open_source
from lcmmerge.tensors.encodings import MAIN, encodings

FORMATS = ("fp8_scaled", "int8_convrot", "mxfp8", "nvfp4")
PREFIX = "model.diffusion_model."
SPLIT = PREFIX + "double_blocks.0.img_attn.qkv"  # which holds it in a single file
OTHER = PREFIX + "double_blocks.0.txt_attn.qkv"


@dataclass(frozen=True)
class Inputs:
    """A FLUX.1 with linears of 256 columns in bfloat16, and a LoRA of some of them."""

    folder: Path
    base: Path
    lora: Path

    def quantised(self, name: str) -> Path:
        target = self.folder / f"{name}.safetensors"
        if not target.exists():
            fuse(self.base, target, self.lora, strengths=(0.0, 0.0), dtype=name)
        return target


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    folder = tmp_path_factory.mktemp("quantised")
    return Inputs(folder, *wide(folder))


def decoded(path: Path, module: str, name: str) -> Tensor:
    """A layer's numbers from the file's tensors, by the encoding alone."""
    tensors, encoding = load_file(path), encodings()[name]
    parts = {item.suffix: tensors[f"{module}.{item.suffix}"] for item in encoding.companions}
    return encoding.decode({MAIN: tensors[f"{module}.weight"], **parts})


def old_dialect(path: Path, target: Path) -> Path:
    """Scaled fp8 as it was written before ComfyUI told the format of each layer."""
    tensors = load_file(path)
    for name in [*tensors]:
        if name.endswith(".comfy_quant"):
            del tensors[name]
        elif name.endswith(".weight_scale"):
            tensors[name.replace(".weight_scale", ".scale_weight")] = tensors.pop(name).reshape(1)
    save_file(tensors | {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}, target)
    return target


@pytest.mark.parametrize("name", FORMATS)
def test_a_quantised_tensor_is_its_numbers(name, inputs):
    source = open_source(inputs.quantised(name))
    info = source[f"{SPLIT}.weight"]
    assert (info.encoding, info.dtype.name, info.shape) == (encodings()[name], "BF16", (768, 256))
    assert torch.equal(info.read().float(), decoded(inputs.quantised(name), SPLIT, name))
    assert not any("scale" in each or "comfy_quant" in each for each in source.tensors if "norm" not in each)
    assert {each.name for each in source.stored} == load_file(inputs.quantised(name)).keys()


@pytest.mark.parametrize("name", FORMATS)
def test_what_no_term_reaches_stays_byte_for_byte_and_the_rest_is_rounded_once_more(name, inputs, tmp_path):
    base, target = inputs.quantised(name), tmp_path / "merged.safetensors"
    fuse(base, target, inputs.lora, strengths=(1.0, 0.0), accept_loss=True)
    before, after = load_file(base), load_file(target)
    assert before.keys() == after.keys()
    reached = (SPLIT, PREFIX + "single_blocks.0.linear1", PREFIX + "final_layer.linear")
    for key, tensor in before.items():
        same = raw(tensor).equal(raw(after[key]))
        assert same != (key.startswith(reached) and key.endswith(".weight")) or "scale" in key, key
    lora = load_file(inputs.lora)
    delta = lora[f"transformer.{REACHED[0]}.lora_B.weight"] @ lora[f"transformer.{REACHED[0]}.lora_A.weight"]
    exact = decoded(base, SPLIT, name)
    exact[256:512] += delta
    error = (decoded(target, SPLIT, name) - exact).norm() / exact.norm()
    assert error < (0.12 if name == "nvfp4" else 0.03)
    result = verify(open_source(target), [str(inputs.folder)])
    assert (result.different, result.stale) == ((), ())


@pytest.mark.parametrize("name", FORMATS)
def test_none_gives_bf16_back(name, inputs, tmp_path):
    fuse(inputs.quantised(name), tmp_path / "back.safetensors", inputs.lora, strengths=(0.0, 0.0), dtype="none")
    found, was = load_file(tmp_path / "back.safetensors"), load_file(inputs.base)
    assert {key: tensor.dtype for key, tensor in found.items()} == {key: tensor.dtype for key, tensor in was.items()}
    assert torch.equal(found[f"{SPLIT}.weight"], decoded(inputs.quantised(name), SPLIT, name).bfloat16())


def test_from_one_encoding_to_another(inputs, tmp_path):
    fuse(inputs.quantised("int8_convrot"), tmp_path / "fp8.safetensors", inputs.lora, dtype="fp8_scaled")
    assert open_source(tmp_path / "fp8.safetensors")[f"{SPLIT}.weight"].encoding == encodings()["fp8_scaled"]


def test_the_older_dialect_is_read_and_the_newer_one_written(inputs, tmp_path):
    new = inputs.quantised("fp8_scaled")
    old = old_dialect(new, tmp_path / "old.safetensors")
    assert torch.equal(open_source(old)[f"{SPLIT}.weight"].read(), open_source(new)[f"{SPLIT}.weight"].read())
    fuse(old, tmp_path / "from-old.safetensors", inputs.lora, accept_loss=True)
    fuse(new, tmp_path / "from-new.safetensors", inputs.lora, accept_loss=True)
    found, wanted = load_file(tmp_path / "from-old.safetensors"), load_file(tmp_path / "from-new.safetensors")
    assert found.keys() == wanted.keys()
    assert all(raw(found[key]).equal(raw(wanted[key])) for key in wanted)


def test_the_header_alone_may_tell_the_formats(inputs, tmp_path):
    tensors = load_file(inputs.quantised("int8_convrot"))
    layers = {key.removesuffix(".comfy_quant"): json.loads(bytes(tensor.tolist()))
              for key, tensor in tensors.items() if key.endswith(".comfy_quant")}  # fmt: skip
    kept = {key: tensor for key, tensor in tensors.items() if not key.endswith(".comfy_quant")}
    said = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    save_file(kept, tmp_path / "headed.safetensors", said)
    found = open_source(tmp_path / "headed.safetensors")[f"{SPLIT}.weight"]
    assert torch.equal(found.read(), open_source(inputs.quantised("int8_convrot"))[f"{SPLIT}.weight"].read())


def test_an_encoding_that_takes_no_tensor_is_said(files, tmp_path):
    """The smallest models have no linear that is large enough."""
    style, target = files("sd1").style, tmp_path / "merged.safetensors"
    merge = merge_of(files("sd1").base(), target, style, (1.0, 0.0), encoding="nvfp4")
    assert any("nothing is stored in nvfp4" in doubt for doubt in plan(merge).doubts)


def test_what_a_layer_says_may_be_of_any_length(inputs, tmp_path):
    """ComfyUI's own is not filled up with spaces."""
    tensors = load_file(inputs.quantised("fp8_scaled"))
    for key in [key for key in tensors if key.endswith(".comfy_quant")]:
        tensors[key] = torch.tensor(list(bytes(tensors[key].tolist()).strip()), dtype=torch.uint8)
    assert tensors[f"{SPLIT}.comfy_quant"].numel() % 4
    save_file(tensors, tmp_path / "base.safetensors")
    fuse(tmp_path / "base.safetensors", tmp_path / "found.safetensors", inputs.lora, accept_loss=True)
    fuse(inputs.quantised("fp8_scaled"), tmp_path / "wanted.safetensors", inputs.lora, accept_loss=True)
    found, wanted = load_file(tmp_path / "found.safetensors"), load_file(tmp_path / "wanted.safetensors")
    assert found.keys() == wanted.keys()
    assert all(raw(found[key]).equal(raw(wanted[key])) for key in wanted)


def test_a_folder_s_shards_tell_their_own_layers(inputs, tmp_path):
    """Even by each header alone."""
    base = folder_of(inputs.base, tmp_path / "base")
    merge = merge_of(base, tmp_path / "fp8", inputs.lora, (1.0, 0.0), encoding="fp8_scaled")
    assert any("diffusers does not read fp8_scaled" in doubt for doubt in plan(merge).doubts)
    fuse(base, tmp_path / "fp8", inputs.lora, dtype="fp8_scaled", shard=400_000)
    shards = sorted((tmp_path / "fp8" / "transformer").glob("*.safetensors"))
    for shard in shards:
        said = metadata(shard)
        kept = {key: tensor for key, tensor in load_file(shard).items() if not key.endswith(".comfy_quant")}
        save_file(kept, shard, said)
    source = open_source(tmp_path / "fp8")
    encoded = [info for info in source.tensors.values() if info.encoded]
    assert len({info.path for info in encoded}) > 1
    assert len(encoded) == sum("weight_scale" in key for shard in shards for key in load_file(shard))


def test_what_activations_are_scaled_by_is_no_part_of_the_weights(inputs, tmp_path):
    tensors = load_file(inputs.quantised("fp8_scaled")) | {f"{SPLIT}.input_scale": torch.ones(())}
    save_file(tensors, tmp_path / "scaled.safetensors")
    assert f"{SPLIT}.input_scale" not in open_source(tmp_path / "scaled.safetensors").tensors


def test_a_difference_of_a_quantised_checkpoint(inputs, tmp_path):
    tuned = inputs.quantised("int8_convrot")
    merge = merge_of(inputs.base, tmp_path / "merged.safetensors", tuned, (1.0, 0.0))
    found = plan(merge)
    assert found.contributions[f"transformer.{REACHED[0]}.weight"]
    fuse(inputs.base, tmp_path / "merged.safetensors", tuned, strengths=(1.0, 0.0), dtype="fp32")
    merged = load_file(tmp_path / "merged.safetensors")[f"{SPLIT}.weight"]
    assert torch.allclose(merged, decoded(tuned, SPLIT, "int8_convrot"), atol=1e-6)


def test_a_small_change_is_refused_and_told_before(inputs, tmp_path):
    """One of a hundredth of W is lost in 4 bits, and in 8 kept on average."""
    lora = {key: tensor * 0.5 for key, tensor in load_file(inputs.lora).items()}
    save_file(lora, tmp_path / "small.safetensors")
    target = tmp_path / "merged.safetensors"
    planned = plan(merge_of(inputs.quantised("nvfp4"), target, tmp_path / "small.safetensors", (1.0, 0.0)))
    guess = estimated(planned)
    assert guess is not None and guess.gain < 0.5
    with pytest.raises(QualityError, match="is quantised already") as caught:
        fuse(inputs.quantised("nvfp4"), target, tmp_path / "small.safetensors")
    assert "--accept-loss" in caught.value.hint
    assert not target.exists()
    report = fuse(inputs.quantised("nvfp4"), target, tmp_path / "small.safetensors", accept_loss=True)
    assert report.rounding.gain == pytest.approx(guess.gain, abs=0.15)
    from_before = merge_of(inputs.base, target, tmp_path / "small.safetensors", (1.0, 0.0), encoding="nvfp4")
    assert estimated(plan(from_before)) is None


def test_the_report_says_what_was_kept(inputs, tmp_path):
    report = fuse(inputs.base, tmp_path / "merged.safetensors", inputs.lora, dtype="fp8_scaled")
    (row,) = report.rows
    assert row.kept == pytest.approx(1, abs=0.1)
    said = report.as_dict()["rounding"]
    assert said["gain"] == pytest.approx(1, abs=0.1)
    assert 0 < said["correlation"] < 0.9
    assert said["worst"][0]["gain"] == min(layer["gain"] for layer in said["worst"])
    exact = fuse(inputs.base, tmp_path / "exact.safetensors", inputs.lora, dtype="fp32")
    assert exact.rows[0].kept == pytest.approx(1, abs=1e-5)
    assert exact.rounding.correlation == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_inspect_counts_layers_by_encoding(name, inputs):
    found = inspect(open_source(inputs.quantised(name)))
    layers = sum(key.endswith(".comfy_quant") for key in load_file(inputs.quantised(name)))
    assert found.whole.dtypes == {name: layers, "BF16": len(load_file(inputs.base)) - layers}


def damaged(tensors: dict[str, Tensor]) -> dict[str, tuple[dict[str, Tensor], str]]:
    scale, mark = f"{SPLIT}.weight_scale", f"{SPLIT}.comfy_quant"
    strange = torch.tensor(list(b'{"format": "int3"}'), dtype=torch.uint8)
    return {
        "a scale that is missing": ({key: each for key, each in tensors.items() if key != scale}, "is missing"),
        "a scale of another shape": (tensors | {scale: torch.ones(7, 1)}, r"shape \[7, 1\]"),
        "a format that nobody knows": (tensors | {mark: strange}, "int3"),
        "a format that is no JSON": (tensors | {mark: torch.zeros(3, dtype=torch.uint8)}, "not JSON"),
        "a weight that is missing": (
            {key: each for key, each in tensors.items() if key != f"{SPLIT}.weight"}, "has no weight",
        ),
        "inputs that are scaled": (tensors | {f"{SPLIT}.pre_quant_scale": torch.ones(256)}, "pre_quant_scale"),
        "a weight of another dtype": (tensors | {f"{SPLIT}.weight": torch.zeros(768, 256)}, "float32"),
    }  # fmt: skip


@pytest.mark.parametrize("fault", [*damaged({})])
def test_damaged_headers_are_refused(fault, inputs, tmp_path):
    tensors, cause = damaged(load_file(inputs.quantised("int8_convrot")))[fault]
    save_file(tensors, tmp_path / "damaged.safetensors")
    with pytest.raises(FormatError, match=cause):
        open_source(tmp_path / "damaged.safetensors")


@pytest.mark.parametrize("number", [0.0, torch.nan, torch.inf])
@pytest.mark.parametrize("module", [SPLIT, OTHER])
def test_a_damaged_scale_is_refused(number, module, inputs, tmp_path):
    """Of a layer that a term reaches, and of one that is copied."""
    tensors = load_file(inputs.quantised("int8_convrot"))
    tensors[f"{module}.weight_scale"][3] = number
    save_file(tensors, tmp_path / "base.safetensors")
    with pytest.raises(FormatError, match=f"{module}.weight_scale holds a scale"):
        fuse(tmp_path / "base.safetensors", tmp_path / "merged.safetensors", inputs.lora, dtype="none")
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]


def raw(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
