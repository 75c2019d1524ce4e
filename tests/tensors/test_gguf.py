"""Oracle: the gguf package. It reads what is laid out here, and what it wrote is read here alike."""

import struct
import subprocess
import sys
import time
import tracemalloc
from math import prod
from pathlib import Path
from random import Random

import gguf
import numpy as np
import pytest
from damage import ANY
from hostile_gguf import GGUF, fields, packed, text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lcmmerge.errors import FormatError, NotFoundError, OutputError
from lcmmerge.tensors.gguf import FILE_TYPES, TYPES, GGUFEntry, GGUFSpec, lay_out_gguf, read_gguf
from lcmmerge.tensors.signatures import AGAIN

METADATA = {"general.architecture": "flux", "sd_merge_recipe": "θ′" * 100, "modelspec.title": ""}
PLAIN = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "I8": np.int8, "I16": np.int16, "I32": np.int32,
         "I64": np.int64}  # fmt: skip
W0, W1 = (fields().index(("s", name)) for name in (b"w0", b"w1"))  # before w0 stands its length
ALIGNMENT = fields().index(("s", b"general.alignment")) + 2


def file(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    return path


def content(spec: GGUFSpec) -> bytes:
    return np.random.default_rng(len(spec.name)).integers(1, 60, spec.nbytes, np.uint8).tobytes()


def write(path: Path, specs, metadata=METADATA) -> Path:
    layout = lay_out_gguf(specs, metadata)
    data = bytearray(b"\xff" * layout.size)
    data[: layout.data_start] = layout.header(metadata)
    for spec, offset in zip(layout.specs, layout.offsets, strict=True):
        data[offset : offset + spec.nbytes] = content(spec)
    for offset, nbytes in layout.padding:
        data[offset : offset + nbytes] = bytes(nbytes)
    path.write_bytes(data)
    return path


SPECS = [GGUFSpec(f"blocks.{name}.weight", kind, (3, 2 * kind.block)) for name, kind in TYPES.items()]
SPECS += [GGUFSpec("norm.bias", TYPES["F32"], (5,)), GGUFSpec("scalar", TYPES["F16"], ()),
          GGUFSpec("none", TYPES["BF16"], (0, 7)), GGUFSpec("kernel", TYPES["F32"], (4, 3, 1, 2, 2))]  # fmt: skip


def test_types_are_those_of_the_package():
    ours = {kind.name: (kind.number, kind.block, kind.block_bytes) for kind in TYPES.values()}
    assert ours == {kind.name: (int(kind), *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    theirs = {member.name.removeprefix("ALL_").removeprefix("MOSTLY_"): int(member) for member in gguf.LlamaFileType}
    assert FILE_TYPES.items() <= theirs.items()


def test_the_package_reads_what_is_laid_out(tmp_path):
    reader = gguf.GGUFReader(write(tmp_path / "a.gguf", SPECS))
    assert [tensor.name for tensor in reader.tensors] == [spec.name for spec in SPECS]
    for tensor, spec in zip(reader.tensors, SPECS, strict=True):
        assert (tensor.tensor_type.name, tuple(tensor.shape[::-1])) == (spec.type.name, spec.shape)
        assert tensor.data.tobytes() == content(spec)
        assert tensor.data_offset % 32 == 0
    assert reader.data_offset % 4096 == 0
    values = {key: field.contents() for key, field in reader.fields.items()}
    assert METADATA.items() <= values.items()
    assert (values["general.quantization_version"], values["GGUF.version"]) == (2, 3)


def test_and_so_do_we(tmp_path):
    path = write(tmp_path / "a.gguf", SPECS)
    entries, metadata = read_gguf(path)
    layout = lay_out_gguf(SPECS, METADATA)
    assert {entry[:4] for entry in entries} == {
        (spec.name, spec.type.name, spec.shape, offset) for spec, offset in zip(SPECS, layout.offsets, strict=True)
    }
    assert [entry.offset for entry in entries] == sorted(layout.offsets)
    assert {entry.name: entry.nbytes for entry in entries} == {spec.name: spec.nbytes for spec in SPECS}
    assert METADATA.items() <= metadata.items()
    assert path.stat().st_size == layout.size


@pytest.mark.parametrize("name", TYPES)
def test_what_the_package_wrote_is_read(name, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "wan")
    kind = TYPES[name]
    values = {
        "a.bool": True, "a.int": -(2**31), "a.float": 0.5, "a.text": "é😀", "a.texts": ["a", "", "b"],
        "a.numbers": [1, -2, 3],
    }  # fmt: skip
    writer.add_bool("a.bool", True)
    writer.add_int32("a.int", values["a.int"])
    writer.add_float64("a.float", 0.5)
    writer.add_string("a.text", values["a.text"])
    writer.add_array("a.texts", values["a.texts"])
    writer.add_array("a.numbers", values["a.numbers"])
    writer.add_custom_alignment(64)
    if name in PLAIN:
        stored = np.arange(6).reshape(2, 3).astype(PLAIN[name])
        writer.add_tensor("odd", stored)
    else:
        stored = np.arange(2 * 3 * kind.block_bytes, dtype=np.uint8).reshape(2, -1)
        writer.add_tensor("odd", stored, raw_dtype=gguf.GGMLQuantizationType[name])
    writer.add_tensor("one", np.ones(5, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (odd, one), metadata = read_gguf(tmp_path / "a.gguf")
    data = (tmp_path / "a.gguf").read_bytes()
    assert odd[:3] == ("odd", name, (2, 3 * kind.block)) and one[:3] == ("one", "F32", (5,))
    assert data[odd.offset : odd.offset + odd.nbytes] == stored.tobytes()
    assert np.frombuffer(data, np.float32, 5, one.offset).tolist() == [1.0] * 5
    assert {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}.items() <= (
        metadata.items()
    )


def test_rows_that_are_not_whole_blocks_are_stored_flat_with_their_shape_beside_them(tmp_path):
    path = write(tmp_path / "a.gguf", [GGUFSpec("conv", TYPES["Q8_0"], (6, 32, 3, 3))])
    reader = gguf.GGUFReader(path)
    assert list(reader.tensors[0].shape) == [288, 6]
    shape = reader.get_field("comfy.gguf.orig_shape.conv")  # as ComfyUI-GGUF's loader takes it
    assert [kind.name for kind in shape.types] == ["ARRAY", "INT32"]
    assert shape.contents() == [6, 32, 3, 3]
    (entry,), _ = read_gguf(path)
    assert entry[:3] == ("conv", "Q8_0", (6, 32, 3, 3))


@given(
    shapes=st.lists(st.tuples(st.sampled_from(["Q8_0", "Q4_0", "F16", "F32"]), st.integers(0, 4), st.integers(1, 3))),
    texts=st.dictionaries(st.text(min_size=1, max_size=40), st.text(max_size=3000), max_size=3),
)
def test_laid_out_data_begin_on_a_page_and_the_padding_fills_it(shapes, texts):
    specs = [
        GGUFSpec(f"w{number}", TYPES[name], (rows, columns * TYPES[name].block))
        for number, (name, rows, columns) in enumerate(shapes)
    ]
    layout = lay_out_gguf(specs, texts)
    assert layout == lay_out_gguf(specs, dict(reversed(texts.items())))
    header = layout.header(texts)
    assert len(header) == layout.data_start and layout.data_start % 4096 == 0
    position = layout.data_start
    zeros = dict(layout.padding)
    for spec, offset in zip(layout.specs, layout.offsets, strict=True):
        assert offset == position and offset % 32 == 0
        position += spec.nbytes
        position += zeros.pop(position, 0)
    assert (position, zeros) == (layout.size, {})


def test_the_header_takes_other_values_that_are_no_longer():
    layout = lay_out_gguf(SPECS, METADATA | {"hash": "0" * 66})
    assert len(layout.header(METADATA | {"hash": "0x" + "ab" * 32})) == layout.data_start
    longer = lay_out_gguf(SPECS, METADATA | {"history": "x" * 5000})
    assert len(longer.header(METADATA)) == longer.data_start
    with pytest.raises(AssertionError, match="grew"):
        layout.header(METADATA | {"hash": "0" * 66, "more": "x" * 5000})


@pytest.mark.parametrize(
    ("spec", "cause"),
    [
        (GGUFSpec("n" * 128, TYPES["F32"], (1,)), "at most 127 bytes"),
        (GGUFSpec("w", TYPES["F32"], (1,) * 6), "up to 5 dimensions"),
        (GGUFSpec("w", TYPES["Q8_0"], (4, 33)), "not whole blocks of Q8_0"),
        (GGUFSpec("w", TYPES["Q8_0"], (33,)), "not whole blocks of Q8_0"),
    ],
)
def test_what_gguf_cannot_hold_is_refused(spec, cause):
    with pytest.raises(OutputError, match=cause):
        lay_out_gguf([spec], METADATA)


@pytest.mark.parametrize("name", FILE_TYPES)
def test_the_file_s_type_is_that_of_most_bytes(name, tmp_path):
    specs = [GGUFSpec("b", TYPES["F32"], (32,)), GGUFSpec("w", TYPES[name], (64, 64))]
    assert read_gguf(write(tmp_path / "a.gguf", specs))[1]["general.file_type"] == FILE_TYPES[name]


def lie(place: int, value: object, kind: str = "") -> bytes:
    header = fields()
    header[place] = (kind or header[place][0], value)
    return packed(header)


TWICE = fields()
TWICE[W1] = ("s", b"w0")
KEYS = [("s", b"GGUF"), ("I", 3), ("Q", 0)]
LIES = {
    "version 1": (lie(1, 1), "GGUF of version 1, from 2023"),
    "version 2": (lie(1, 2), "GGUF of version 2, from 2023"),
    "version 9": (lie(1, 9), "unknown version 9"),
    "big-endian": (lie(1, 3 << 24), "big-endian"),
    "another file": (b"PNG" + packed(fields()), "is not GGUF"),
    "a web page": (b"<html>" + b" " * 600, "web page"),
    "only the magic": (b"GGUF", "truncated"),
    "more tensors": (lie(2, 4), "'w0' overlaps another|unknown"),
    "tensors without end": (lie(2, 2**63), "shorter than its header"),
    "keys without end": (lie(3, 2**64 - 1), "shorter than its header"),
    "a text without end": (lie(4, 2**64 - 1), "shorter than its header"),
    "a key twice": (packed([*KEYS, ("Q", 2), *(2 * [*text(b"a"), ("I", 7), ("s", b"\1")])], 0), "'a' stands twice"),
    "a name twice": (packed(TWICE), "'w0' stands twice"),
    "a name that is no text": (lie(W0, b"\xffw"), "not UTF-8"),
    "a value of no type": (packed([*KEYS, ("Q", 1), *text(b"a"), ("I", 13)], 0), "unknown type 13"),
    "an array of no type": (packed([*KEYS, ("Q", 1), *text(b"a"), ("I", 9), ("I", 13), ("Q", 1)], 0), "type 13"),
    "an array without end": (
        packed([*KEYS, ("Q", 1), *text(b"a"), ("I", 9), ("I", 12), ("Q", 2**61)], 0), "shorter than its header",
    ),
    "an array of arrays": (
        packed([*KEYS, ("Q", 1), *text(b"a"), ("I", 9), ("I", 9), ("Q", 1), ("I", 0), ("Q", 0)], 0), "array of arrays",
    ),
    "a part of a split model": (
        packed([*KEYS, ("Q", 1), *text(b"split.count"), ("I", 2), ("H", 5)], 0), "one of 5 parts",
    ),
    "alignment 0": (lie(ALIGNMENT, 0), "not a power of two"),
    "alignment 24": (lie(ALIGNMENT, 24), "not a power of two"),
    "six dimensions": (lie(W0 + 1, 6), "'w0' has 6 dimensions"),
    "dimensions without end": (lie(W0 + 1, 2**32 - 1), "dimensions"),
    "an unknown type": (lie(W0 + 4, 4), "'w0' has the unknown type 4"),
    "rows of half a block": (lie(W0 + 2, 48), "not whole blocks of Q8_0"),
    "a product that overflows": (lie(W0 + 3, 2**62), "shape that cannot be"),
    "an original shape of another size": (lie(W0 - 2, 9, "i"), "original shape that cannot be"),
    "an original shape below zero": (lie(W0 - 2, -8, "i"), "original shape that cannot be"),
    "off the alignment": (lie(W1 + 5, 80), "'w1' begins off the file's alignment of 32"),
    "overlap": (lie(W1 + 5, 64), "'w1' overlaps another"),
    "beyond the end": (lie(W1 + 5, 320), "ends beyond the end"),
    "offset of 2**64": (lie(W1 + 5, 2**64 - 32), "ends beyond the end"),
    "cut off": (packed(fields())[:-100], "ends beyond the end"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused_with_cause_and_cure(name, tmp_path):
    data, cause = LIES[name]
    with pytest.raises(FormatError, match=cause) as caught:
        read_gguf(file(tmp_path, data))
    assert caught.value.message.startswith(f"{tmp_path / 'a.gguf'}: ")
    assert caught.value.hint and "\n" not in caught.value.message + caught.value.hint


def test_without_a_lie_it_is_read(tmp_path):
    entries, metadata = read_gguf(file(tmp_path, packed(fields())))
    assert entries[0] == GGUFEntry("w0", "Q8_0", (2, 4, 8), entries[0].offset, 68)
    assert [entry.shape for entry in entries[1:]] == [(2, 32)] * 2
    assert metadata["comfy.gguf.orig_shape.w0"] == (2, 4, 8)


@pytest.mark.parametrize("cut", [0, 3, 5, 23, 40, 100, 280])
def test_a_header_that_is_cut_off_is_refused(cut, tmp_path):
    assert cut < len(packed(fields(), 0))
    with pytest.raises(FormatError) as caught:
        read_gguf(file(tmp_path, packed(fields())[:cut]))
    assert caught.value.hint == AGAIN


@pytest.mark.parametrize("name", sorted(GGUF | ANY))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)
@given(seed=st.integers(0, 2**32))
def test_hostile_headers_are_read_or_refused_within_bounds(name, seed, tmp_path):
    path = file(tmp_path, (GGUF | ANY)[name](packed(fields()), Random(seed)))
    size = path.stat().st_size
    tracemalloc.start()
    start = time.process_time()
    try:
        entries, _ = read_gguf(path)
        assert sum(entry.nbytes for entry in entries) <= size
        assert all(entry.offset + entry.nbytes <= size for entry in entries)
        assert all(entry.nbytes == prod(entry.shape) // TYPES[entry.type].block * TYPES[entry.type].block_bytes
                   for entry in entries)  # fmt: skip
    except FormatError as error:
        assert error.hint
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert time.process_time() - start < 2
    assert peak < 2_000_000 + 20 * size


def test_a_long_header_is_read_in_windows_and_no_further_than_the_format_s_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("lcmmerge.tensors.gguf.WINDOW", 7)
    path = write(tmp_path / "a.gguf", SPECS)
    entries, metadata = read_gguf(path)
    assert len(entries) == len(SPECS) and METADATA.items() <= metadata.items()
    monkeypatch.setattr("lcmmerge.tensors.gguf.LONGEST_HEADER", 1000)
    with pytest.raises(FormatError, match="header is over 1,000 bytes"):
        read_gguf(path)


def test_no_file_is_not_found(tmp_path):
    for path, cause in ((tmp_path / "none.gguf", "no such file"), (tmp_path, "cannot be read")):
        with pytest.raises(NotFoundError, match=cause):
            read_gguf(path)


def test_reading_and_laying_out_load_neither_torch_nor_the_package(tmp_path):
    path = write(tmp_path / "a.gguf", SPECS)
    code = (
        "import sys; from pathlib import Path; from lcmmerge.tensors.gguf import read_gguf, lay_out_gguf; "
        f"print(len(read_gguf(Path({str(path)!r}))[0]), {{'torch', 'gguf', 'numpy'}} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{len(SPECS)} set()\n"


def test_a_file_that_becomes_shorter_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = file(tmp_path, packed(fields()))
    monkeypatch.setattr("os.pread", lambda descriptor, nbytes, offset: packed(fields())[:60][offset : offset + nbytes])
    with pytest.raises(FormatError, match="became shorter"):
        read_gguf(path)


def test_lengths_are_little_endian():
    header = lay_out_gguf(SPECS, METADATA).header(METADATA)
    assert header[:8] == b"GGUF\3\0\0\0" and struct.unpack("<Q", header[8:16])[0] == len(SPECS)
