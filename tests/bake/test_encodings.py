"""A merge in an encoding with scales: what lies in the file is θ′ to within a step, and verifies."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace

import pytest
import torch
from fusing import Files, fuse, load, metadata
from merging import merge_of
from safetensors.torch import load_file, save_file

from lcmmerge.bake import block, execute
from lcmmerge.bake.outcome import Settings
from lcmmerge.bake.tensors import merged
from lcmmerge.bake.verify import verify
from lcmmerge.errors import FormatError, NumericError, OptionError
from lcmmerge.inspection import inspect
from lcmmerge.merge.plan import plan
from lcmmerge.merge.spec import Merge, Written, stored_as
from lcmmerge.tensors import DTYPES, open_source
from lcmmerge.tensors.encodings import MAIN, Companion, Encoding

TENSOR = "model.diffusion_model.input_blocks.4.1.proj_in.weight"
MODULE = TENSOR.removesuffix("weight")
GROUP = 16


def encode_whole(rows, parts, generator, peak):
    parts["scale"].fill_(peak / 127)
    parts[MAIN].copy_((rows / parts["scale"]).round())


def encode_nibbles(rows, parts, generator, peak):
    """Two numbers a byte, in groups of sixteen with a scale each."""
    groups = rows.reshape(len(rows), -1, GROUP)
    scale = groups.abs().amax(2) / 7
    parts["scale"].copy_(scale)
    codes = (groups / scale.where(scale > 0, 1)[:, :, None]).round().add(8).to(torch.uint8).reshape(len(rows), -1, 2)
    parts[MAIN].copy_(codes[:, :, 0] | codes[:, :, 1] << 4)


def decode_nibbles(parts):
    codes = torch.stack([parts[MAIN] & 15, parts[MAIN] >> 4], 2).float() - 8
    rows = len(codes)
    return (codes.reshape(rows, -1, GROUP) * parts["scale"][:, :, None]).reshape(rows, -1)


WHOLE = Encoding(
    "int8 with a scale per tensor", DTYPES["I8"], encode_whole, lambda parts: parts[MAIN].float() * parts["scale"],
    companions=(Companion("scale", DTYPES["F32"], lambda rows, columns: (), shared=True),), peaked=True,
    metadata=lambda names: {"whole": str(len(names))},
)  # fmt: skip
NIBBLES = Encoding(
    "four bits in groups of 16", DTYPES["U8"], encode_nibbles, decode_nibbles, block=GROUP, block_bytes=GROUP // 2,
    companions=(Companion("scale", DTYPES["F32"], lambda rows, columns: (rows, columns // GROUP)),),
)  # fmt: skip
TOYS = {"whole": WHOLE, "nibbles": NIBBLES}
STEPS = {"whole": 1 / 127, "nibbles": 1 / 7}  # of the largest number of a tensor, at most


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr("lcmmerge.tensors.encodings.entries", lambda package, variable: TOYS)


@pytest.fixture
def blocks(monkeypatch):
    """Many blocks in a parameter, and many units in a file."""
    monkeypatch.setattr(block, "ELEMENTS", 128)
    monkeypatch.setattr(block, "MIN_ROWS", 4)
    monkeypatch.setattr(execute, "UNIT", 1024)


@pytest.fixture
def sd1(files) -> Files:
    return files("sd1")


def write(inputs, target, name, **options):
    fuse(inputs.base(), target, inputs.style, inputs.lcm, dtype=name, **options)
    return target


def decoded(path, encoding):
    """Stored name → numbers, of the encoded tensors and of the others."""
    tensors = load(path)
    scales = {name.removesuffix("scale"): tensors.pop(name) for name in [*tensors] if name.endswith(".scale")}
    encoded = {}
    for module, scale in scales.items():
        main = tensors.pop(f"{module}weight")
        encoded[f"{module}weight"] = encoding.decode({MAIN: main.reshape(len(main), -1), "scale": scale})
    return encoded, tensors


@pytest.mark.parametrize("name", TOYS)
def test_a_fuse_holds_each_number_to_within_a_step(name, sd1, blocks, tmp_path):
    path = write(sd1, tmp_path / "merged.safetensors", name)
    encoded, others = decoded(path, TOYS[name])
    fuse(sd1.base(), tmp_path / "exact.safetensors", sd1.style, sd1.lcm, dtype="fp32")
    fuse(sd1.base(), tmp_path / "own.safetensors", sd1.style, sd1.lcm)
    exact, own = load_file(tmp_path / "exact.safetensors"), load_file(tmp_path / "own.safetensors")
    assert encoded.keys() | others.keys() == own.keys()
    assert TENSOR in encoded
    for tensor, rows in encoded.items():
        assert tensor.startswith("model.diffusion_model.") and min(rows.shape) >= 16
        wanted = exact[tensor].reshape(rows.shape)
        assert (rows - wanted).abs().max() <= wanted.abs().max() * STEPS[name] * 0.50001
    for tensor, stored in others.items():
        assert torch.equal(stored, own[tensor])


@pytest.mark.parametrize("name", TOYS)
def test_the_same_bytes_whatever_the_threads(name, sd1, blocks, tmp_path):
    files = [write(sd1, tmp_path / f"{n}.safetensors", name, settings=Settings(n)) for n in (1, 3)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("name", TOYS)
def test_every_tensor_is_aligned_and_the_recorded_hash_is_theirs(name, sd1, blocks, tmp_path):
    path = write(sd1, tmp_path / "merged.safetensors", name)
    source = open_source(path)
    assert all(info.offset % info.dtype.itemsize == 0 for info in source)
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    assert source.metadata["modelspec.hash_sha256"] == f"0x{hashlib.sha256(data[start:]).hexdigest()}"
    assert source.metadata.get("whole") == (str(len(decoded(path, WHOLE)[0])) if name == "whole" else None)


def test_packed_rows_have_the_bytes_that_the_encoding_declares(sd1, tmp_path):
    path = write(sd1, tmp_path / "merged.safetensors", "nibbles")
    before, source = open_source(sd1.base())[TENSOR], open_source(path)
    rows, columns = before.shape[:2]
    assert (source[TENSOR].dtype.name, source[TENSOR].shape) == ("U8", (rows, columns // 2))
    assert source[f"{MODULE}scale"].shape == (rows, columns // GROUP)


def test_the_parts_of_a_fused_tensor_are_rows_of_its_scales(files, blocks, monkeypatch, tmp_path):
    """OpenCLIP's q, k and v, each of many blocks."""
    inputs = files("sd2")
    attention = replace(NIBBLES, takes=lambda name, shape: len(shape) == 2 and ".self_attn." in name)
    monkeypatch.setitem(TOYS, "nibbles", attention)
    found = load_file(write(inputs, tmp_path / "merged.safetensors", "nibbles"))
    fuse(inputs.base(), tmp_path / "exact.safetensors", inputs.style, inputs.lcm, dtype="fp32")
    exact = load_file(tmp_path / "exact.safetensors")
    fused = [name for name in exact if name.endswith("attn.in_proj_weight")]
    assert fused
    for name in fused:
        rows = decode_nibbles({MAIN: found[name], "scale": found[name.replace("in_proj_weight", "scale")]})
        assert (rows - exact[name]).abs().max() <= exact[name].abs().max() / 7 * 0.50001


@pytest.mark.parametrize("options", [{}, {"shard": 60_000}, {"layout": "diffusers", "shard": 60_000}], ids=str)
@pytest.mark.parametrize("name", TOYS)
def test_it_verifies(name, options, sd1, blocks, tmp_path):
    if "layout" in options:
        options = options | {"config_from": sd1.folder()}
    target = tmp_path / ("merged" if "layout" in options else "merged.safetensors")
    write(sd1, target, name, **options)
    index = tmp_path / "merged.safetensors.index.json"
    result = verify(open_source(index if index.exists() else target), [str(sd1.root)])
    assert (result.different, result.stale) == ((), ())
    assert result.tensors == len(load(target if target.exists() else tmp_path))


def test_a_changed_scale_is_found_and_another_order_is_only_stale(sd1, tmp_path):
    path = write(sd1, tmp_path / "merged.safetensors", "nibbles")
    tensors, described = load_file(path), metadata(path)
    save_file(tensors, tmp_path / "again.safetensors", described)  # which puts scales first
    result = verify(open_source(tmp_path / "again.safetensors"), [str(sd1.root)])
    assert (result.different, result.stale) == ((), ("again.safetensors",))
    tensors[f"{MODULE}scale"][0, 0] *= 2
    del tensors["model.diffusion_model.input_blocks.5.1.proj_in.scale"]
    save_file(tensors, tmp_path / "other.safetensors", described)
    result = verify(open_source(tmp_path / "other.safetensors"), [str(sd1.root)])
    assert {(item.name, item.reason) for item in result.different} == {
        (f"{MODULE}scale", "values"),
        ("model.diffusion_model.input_blocks.5.1.proj_in.scale", "missing"),
    }


@pytest.mark.parametrize("name", TOYS)
def test_live_weights_are_the_written_ones(name, sd1, blocks, tmp_path):
    planned = plan(merge_of(sd1.base(), None, sd1.style, (0.8, 1.0), sd1.lcm, encoding=name))
    encoded, _ = decoded(write(sd1, tmp_path / "merged.safetensors", name), TOYS[name])
    pieces = {tensor.spec.name: piece for file in planned.files for tensor in file.tensors for piece in tensor.pieces}
    with merged(planned) as read:
        for stored, rows in encoded.items():
            live = read(pieces[stored].operand.name)
            assert torch.equal(live.reshape(rows.shape), rows)


def test_the_merge_is_recorded_and_read_again(sd1, tmp_path):
    path = write(sd1, tmp_path / "merged.safetensors", "whole")
    recorded = json.loads(metadata(path)["sd_merge_recipe"])
    assert (recorded["dtype"], recorded["encoding"]) == (None, "whole")
    merge = Merge.from_dict(recorded)
    assert merge.output.encoding == "whole"
    assert "--encoding whole" in merge.command()
    assert inspect(open_source(path)).recipe == recorded


@pytest.mark.parametrize("name", TOYS)
def test_error_aware_rounding_is_refused_by_an_encoding_without_it(name, sd1, tmp_path, cli):
    asked = ("--encoding", name, "--rounding", "error-aware", "-o", tmp_path / "merged.safetensors")
    done = cli("fuse", sd1.base(), "--lcm", sd1.lcm, *asked)
    done.assert_fault(2, "error-aware")
    assert "gguf:q4_0" in done.err


@pytest.mark.parametrize("name", [*TOYS, "fp8_e4m3fn"])
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_inf_are_refused(name, number, sd1, tmp_path):
    tensors = load_file(sd1.base())
    tensors[TENSOR][3, 1] = number
    save_file(tensors, tmp_path / "base.safetensors")
    with pytest.raises(NumericError, match="NaN or Inf"):
        fuse(tmp_path / "base.safetensors", tmp_path / "merged.safetensors", sd1.style, dtype=name)
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]


def test_an_unknown_encoding_two_of_them_and_a_scale_that_is_there_are_refused(sd1, tmp_path):
    with pytest.raises(OptionError, match="'int3': unknown"):
        Written(encoding="int3")
    with pytest.raises(OptionError, match="only one"):
        stored_as("fp16", "whole")
    assert stored_as("fp16", "fp16") == stored_as("fp16", None) == stored_as(None, "fp16") == "fp16"
    save_file(load_file(sd1.base()) | {f"{MODULE}scale": torch.ones(1)}, tmp_path / "base.safetensors")
    with pytest.raises(FormatError, match="twice"):
        fuse(tmp_path / "base.safetensors", tmp_path / "merged.safetensors", sd1.style, dtype="whole")
