"""A merge written as GGUF, and merges into GGUF: what the gguf package reads is θ′, and it verifies."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from flux import REACHED, folder_of, wide
from fusing import fuse
from gguf.quants import dequantize
from merging import merge_of
from safetensors.torch import load_file
from torch import Tensor

from lcmmerge.bake import block
from lcmmerge.bake.outcome import Settings
from lcmmerge.bake.tensors import merged
from lcmmerge.bake.verify import verify
from lcmmerge.errors import FormatError, IncompatibleError, OptionError, OutputError
from lcmmerge.inspection import inspect
from lcmmerge.merge.plan import plan
from lcmmerge.merge.spec import Merge
from lcmmerge.tensors import open_source
from lcmmerge.tensors.encodings import encodings

BLOCKS = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
STEPS = {"q8_0": 1 / 127, "q5_1": 1 / 15, "q5_0": 1 / 15, "q4_1": 1 / 7, "q4_0": 1 / 7}  # of a block's largest number
PREFIX = "model.diffusion_model."
QKV = "double_blocks.0.img_attn.qkv.weight"


@pytest.fixture(scope="module")
def flux(tmp_path_factory) -> tuple[Path, Path]:
    """A FLUX.1 with linears of 256 columns in bfloat16, and a LoRA of some of them."""
    folder = tmp_path_factory.mktemp("gguf")
    return wide(folder, 0.2)


def theirs(path: Path) -> dict[str, Tensor]:
    """Name → numbers, by the gguf package."""
    reader = gguf.GGUFReader(path)
    return {
        tensor.name: torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type)))
        .float()
        .reshape([int(length) for length in reversed(tensor.shape)])
        for tensor in reader.tensors
    }


def types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("name", BLOCKS)
def test_what_the_gguf_package_reads_is_the_merge(name, flux, tmp_path):
    base, lora = flux
    path = tmp_path / "merged.gguf"
    fuse(base, path, lora, strengths=(1.0, 0.0), dtype=f"gguf:{name}")
    fuse(base, tmp_path / "exact.safetensors", lora, strengths=(1.0, 0.0), dtype="fp32")
    exact = {key.removeprefix(PREFIX): tensor for key, tensor in load_file(tmp_path / "exact.safetensors").items()}
    found, stored = theirs(path), types(path)
    assert found.keys() == exact.keys()
    assert stored[QKV] == name.upper()
    assert {kind for key, kind in stored.items() if exact[key].dim() == 1} == {"F32"}
    for key, tensor in exact.items():
        if stored[key] == "F32":
            assert torch.equal(found[key], tensor), key
            continue
        coarse = STEPS[name] if stored[key] != "BF16" else 2**-7
        assert (found[key] - tensor).abs().max() <= tensor.abs().max() * coarse * 0.7, key
    assert gguf.GGUFReader(path).fields["general.architecture"].contents() == "flux"


@pytest.mark.parametrize("threads", [1, 3])
def test_it_verifies_and_is_inspected_and_repeats(threads, flux, tmp_path):
    base, lora = flux
    path = tmp_path / "merged.gguf"
    fuse(base, path, lora, dtype="gguf:q4_0", settings=Settings(threads))
    assert path.read_bytes() == fused(base, lora, tmp_path / "again.gguf").read_bytes()
    result = verify(open_source(path), [str(base.parent)])
    assert (result.different, result.stale) == ((), ())
    assert inspect(open_source(path)).whole.dtypes["gguf:q4_0"] == 10
    assert Merge.from_dict(inspect(open_source(path)).recipe).output.encoding == "gguf:q4_0"
    damaged = bytearray(path.read_bytes())
    damaged[open_source(path)[QKV].offset + 40] ^= 1
    path.write_bytes(damaged)
    assert [item.name for item in verify(open_source(path), [str(base.parent)]).different] == [QKV]


def fused(base: Path, lora: Path, target: Path) -> Path:
    fuse(base, target, lora, dtype="gguf:q4_0")
    return target


@pytest.mark.parametrize("name", BLOCKS)
def test_error_aware_rounding_is_closer_block_by_block(name, flux, tmp_path):
    base, lora = flux
    fuse(base, tmp_path / "exact.safetensors", lora, strengths=(1.0, 0.0), dtype="fp32")
    exact = {key.removeprefix(PREFIX): tensor for key, tensor in load_file(tmp_path / "exact.safetensors").items()}
    errors, reports = {}, {}
    for aware in (False, True):
        path = tmp_path / f"{aware}.gguf"
        reports[aware] = fuse(base, path, lora, strengths=(1.0, 0.0), dtype=f"gguf:{name}", error_aware=aware)
        found = theirs(path)
        errors[aware] = {key: (found[key] - exact[key]).double().square() for key in exact}
    encoded = {key for key, kind in types(tmp_path / "True.gguf").items() if kind == name.upper()}
    assert len(encoded) == 10
    for key in exact:
        before, after = errors[False][key], errors[True][key]
        if key in encoded:
            before, after = before.view(-1, 32).sum(1), after.view(-1, 32).sum(1)
            assert after.sum() < before.sum(), key
        assert (after <= before * (1 + 1e-5)).all(), key
    touched = errors[True][QKV].sum() + errors[True]["single_blocks.0.linear1.weight"].sum()
    least = errors[False][QKV].sum() + errors[False]["single_blocks.0.linear1.weight"].sum()
    rounding = reports[True].as_dict()["rounding"]
    assert rounding["gained"] == pytest.approx(1 - float(touched / least) ** 0.5, abs=0.01)
    assert "gained" not in reports[False].as_dict()["rounding"]


def test_error_aware_rounding_verifies_and_repeats(flux, tmp_path, monkeypatch):
    base, lora = flux
    for threads in (1, 3):
        fuse(base, tmp_path / f"{threads}.gguf", lora, dtype="gguf:q4_0", error_aware=True, settings=Settings(threads))
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "3.gguf").read_bytes()
    source = open_source(tmp_path / "1.gguf")
    result = verify(source, [str(base.parent)])
    assert (result.different, result.stale) == ((), ())
    recorded = inspect(source).recipe
    assert (recorded["rounding"], recorded["rounding_seed"]) == ("error-aware", None)
    merge = Merge.from_dict(recorded)
    assert merge.output.error_aware
    assert "--rounding error-aware" in merge.command()
    assert not Merge.from_dict({key: value for key, value in recorded.items() if key != "rounding"}).output.error_aware
    with pytest.raises(ValueError, match="rounding"):
        Merge.from_dict(recorded | {"rounding": "up"})
    copies = []
    for elements in (block.ELEMENTS, 1 << 12):  # a product's bits depend on how many rows there are: without a term
        monkeypatch.setattr(block, "ELEMENTS", elements)
        monkeypatch.setattr(block, "MIN_ROWS", 4)
        path = tmp_path / f"{elements}.gguf"
        fuse(base, path, lora, strengths=(0.0, 0.0), dtype="gguf:q4_0", error_aware=True)
        copies.append(path.read_bytes())
    assert copies[0] == copies[1]


def test_live_weights_are_those_of_error_aware_rounding(flux, tmp_path):
    base, lora = flux
    output = {"strengths": (1.0, 0.0), "encoding": "gguf:q4_0", "error_aware": True}
    fuse(base, tmp_path / "merged.gguf", lora, dtype="gguf:q4_0", strengths=(1.0, 0.0), error_aware=True)
    stored = theirs(tmp_path / "merged.gguf")["single_blocks.0.linear2.weight"]
    with merged(plan(merge_of(base, None, lora, **output))) as read:
        assert torch.equal(read("transformer.single_transformer_blocks.0.proj_out.weight").float(), stored)


def test_the_command_says_what_error_aware_rounding_gained(flux, tmp_path, cli):
    base, lora = flux
    options = ("--lambda", 1, 0, "--encoding", "gguf:q4_0", "--rounding", "error-aware", "-o", tmp_path / "merged.gguf")
    done = cli("fuse", base, lora, *options)
    assert done.code == 0
    assert re.search(r"The error of rounding is [3-9]\.\d % less than to nearest\.", done.out)


@pytest.mark.parametrize("encoding", [None, "bf16", "fp8_scaled", "mxfp8", "gguf:f16"])
def test_error_aware_rounding_is_refused_where_there_is_nothing_to_choose(encoding, flux):
    base, lora = flux
    with pytest.raises(OptionError, match="with scales to choose") as refused:
        plan(merge_of(base, None, lora, (1.0, 0.0), encoding=encoding, error_aware=True))
    assert "gguf:q4_0" in refused.value.hint and "nvfp4" in refused.value.hint
    with pytest.raises(OptionError, match="only one"):
        merge_of(base, None, lora, encoding="gguf:q4_0", error_aware=True, rounding_seed=1)


def test_rows_that_are_not_whole_blocks_are_told_apart_from_those_that_are(flux, tmp_path):
    """The tiny model's own input is 4 numbers wide."""
    base, lora = flux
    path = tmp_path / "merged.gguf"
    fuse(base, path, lora, dtype="gguf:q8_0")
    source = open_source(path)
    assert source["img_in.weight"].encoding != encodings()["gguf:q8_0"]
    assert source[QKV].encoding == encodings()["gguf:q8_0"]


def test_a_merge_into_gguf_stays_gguf(flux, tmp_path):
    base, lora = flux
    quantised = tmp_path / "base.gguf"
    fuse(base, quantised, lora, strengths=(0.0, 0.0), dtype="gguf:q8_0")
    fuse(quantised, tmp_path / "merged.gguf", lora, strengths=(1.0, 0.0), accept_loss=True)
    before, after, kinds = theirs(quantised), theirs(tmp_path / "merged.gguf"), types(quantised)
    assert kinds == types(tmp_path / "merged.gguf")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {QKV, "single_blocks.0.linear1.weight", "final_layer.linear.weight"}
    tensors = load_file(lora)
    delta = tensors[f"transformer.{REACHED[0]}.lora_B.weight"] @ tensors[f"transformer.{REACHED[0]}.lora_A.weight"]
    exact = before[QKV].clone()
    exact[256:512] += delta
    assert (after[QKV] - exact).norm() < 0.01 * exact.norm()
    result = verify(open_source(tmp_path / "merged.gguf"), [str(tmp_path), str(lora.parent)])
    assert (result.different, result.stale) == ((), ())


def test_none_gives_safetensors_back(flux, tmp_path):
    base, lora = flux
    fuse(base, tmp_path / "base.gguf", lora, strengths=(0.0, 0.0), dtype="gguf:q8_0")
    fuse(tmp_path / "base.gguf", tmp_path / "back.safetensors", lora, strengths=(0.0, 0.0), dtype="none")
    found = load_file(tmp_path / "back.safetensors")
    assert torch.equal(found[QKV], theirs(tmp_path / "base.gguf")[QKV].bfloat16())


def test_a_k_quant_is_read_and_not_written(flux, tmp_path):
    base, lora = flux
    tensors = {key.removeprefix(PREFIX): tensor.float() for key, tensor in load_file(base).items()}
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "flux")
    numbers = np.random.default_rng(0).integers(0, 256, (768, 144), np.uint8)
    numbers[:, :4] = np.array([0.01, 0.01], np.float16).view(np.uint8)
    for key, tensor in tensors.items():
        if key == QKV:
            writer.add_tensor(key, numbers, raw_dtype=gguf.GGMLQuantizationType.Q4_K)
        else:
            writer.add_tensor(key, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = torch.from_numpy(dequantize(numbers, gguf.GGMLQuantizationType.Q4_K))
    assert inspect(open_source(tmp_path / "k.gguf")).whole.dtypes["gguf:q4_k"] == 1
    assert torch.equal(open_source(tmp_path / "k.gguf")[QKV].read(), expected)
    with pytest.raises(IncompatibleError, match="only read"):
        fuse(tmp_path / "k.gguf", tmp_path / "merged.gguf", lora)
    fuse(tmp_path / "k.gguf", tmp_path / "merged.gguf", lora, dtype="gguf:q8_0")
    assert types(tmp_path / "merged.gguf")[QKV] == "Q8_0"


def test_the_older_name_of_a_layer_like_a_published_one(flux, tmp_path):
    """--like a GGUF gives GGUF with the same types."""
    base, lora = flux
    fuse(base, tmp_path / "like.gguf", lora, strengths=(0.0, 0.0), dtype="gguf:q5_1")
    from lcmmerge.merge.spec import Source

    fuse(base, tmp_path / "merged.gguf", lora, like=Source(str(tmp_path / "like.gguf")))
    assert types(tmp_path / "merged.gguf") == types(tmp_path / "like.gguf")
    result = verify(open_source(tmp_path / "merged.gguf"), [str(base.parent)])
    assert (result.different, result.stale) == ((), ())


def test_what_cannot_be_gguf_is_refused(flux, tmp_path, monkeypatch):
    base, lora = flux
    with pytest.raises(OutputError, match=r"what is written is \.gguf"):
        plan(merge_of(base, tmp_path / "merged.safetensors", lora, (1.0, 0.0), encoding="gguf:q8_0"))
    with pytest.raises(OutputError, match=r"what is written is \.safetensors"):
        plan(merge_of(base, tmp_path / "merged.gguf", lora, (1.0, 0.0)))
    with pytest.raises(OptionError, match="one file"):
        fuse(base, tmp_path / "merged.gguf", lora, dtype="gguf:q8_0", shard=60_000)
    assert plan(merge_of(base, tmp_path / "merged", lora, (1.0, 0.0), encoding="gguf:q8_0")).target.suffix == ".gguf"


def test_a_folder_gives_one_file(flux, tmp_path):
    base, lora = flux
    folder = folder_of(base, tmp_path / "base")
    fused(folder, lora, tmp_path / "of-folder.gguf")
    fused(base, lora, tmp_path / "of-file.gguf")
    found, wanted = theirs(tmp_path / "of-folder.gguf"), theirs(tmp_path / "of-file.gguf")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    with pytest.raises(OptionError, match="one file"):
        fuse(folder, tmp_path / "merged", lora, dtype="gguf:q8_0", layout="diffusers")


def test_what_a_term_changes_beside_the_denoiser_is_not_lost_silently(files, tmp_path):
    sd1 = files("sd1")
    with pytest.raises(IncompatibleError, match="72 other parameters"):
        fuse(sd1.base(), tmp_path / "merged.gguf", sd1.style, dtype="gguf:q8_0")
    assert not list(tmp_path.iterdir())
    report = fuse(sd1.base(), tmp_path / "merged.gguf", sd1.style, dtype="gguf:q8_0", allow_unmatched=True)
    assert [row.component for row in report.rows] == ["unet"]


def test_a_second_merge_of_the_same_has_a_shorter_history(flux, tmp_path):
    base, lora = flux
    fused(base, lora, tmp_path / "once.gguf")
    fuse(tmp_path / "once.gguf", tmp_path / "twice.gguf", lora, force=True, accept_loss=True)
    assert theirs(tmp_path / "twice.gguf").keys() == theirs(tmp_path / "once.gguf").keys()


def test_the_plan_tells_what_is_stored_how(flux, tmp_path):
    base, lora = flux
    planned = plan(merge_of(base, tmp_path / "merged.gguf", lora, (1.0, 0.0), encoding="gguf:q8_0"))
    fuse(base, tmp_path / "merged.gguf", lora, strengths=(1.0, 0.0), dtype="gguf:q8_0")
    counts = Counter(types(tmp_path / "merged.gguf").values())
    assert planned.as_dict()["encodings"] == {"F32": counts["F32"], "BF16": counts["BF16"], "gguf:q8_0": counts["Q8_0"]}
    again = plan(merge_of(tmp_path / "merged.gguf", tmp_path / "again.gguf", lora, (0.0, 0.0)))
    assert again.encodings == planned.encodings


@pytest.mark.parametrize("cut", [3, 40, 5000, -1])
def test_a_truncated_file_is_refused(cut, flux, tmp_path):
    base, lora = flux
    path = fused(base, lora, tmp_path / "whole.gguf")
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:cut])
    with pytest.raises(FormatError, match=r"cut\.gguf"):
        fuse(tmp_path / "cut.gguf", tmp_path / "merged.gguf", lora)
