"""Oracle: safetensors' own reader. What both accept they must read alike; what lies is refused by name."""

import json
import math
import os
import struct
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file

from lcmmerge.errors import FormatError, NotFoundError
from lcmmerge.tensors import DTYPES, open_source
from lcmmerge.tensors.header import read_header
from lcmmerge.tensors.signatures import LONGEST_HEADER

F32_PAIR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(path: Path, header: object, data: bytes = bytes(8)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(**changed: object) -> dict[str, object]:
    return {"w": F32_PAIR | changed}


LIES = {
    "shape beyond the bytes": (entry(shape=[3]), "contradict"),
    "dtype beyond the bytes": (entry(dtype="F64"), "contradict"),
    "end before begin": (entry(data_offsets=[8, 0]), "contradict"),
    "product overflows 64 bits": (entry(shape=[2**62, 2**62]), "contradict"),
    "product wraps around to the right size": (entry(shape=[2**32, 2**32, 2]), "contradict"),
    "beyond the end": (entry(shape=[4], data_offsets=[0, 16]), "ends beyond"),
    "offset of 2**63": (entry(data_offsets=[2**63, 2**63 + 8]), "cannot be"),
    "shape of 2**63": (entry(shape=[2**63]), "cannot be"),
    "negative offset": (entry(data_offsets=[-8, 0]), "cannot be"),
    "negative shape": (entry(shape=[-1, -2]), "cannot be"),
    "fractional shape": (entry(shape=[2.0]), "cannot be"),
    "boolean shape": (entry(shape=[True, 2]), "cannot be"),
    "one offset": (entry(data_offsets=[0]), "cannot be"),
    "shape not a list": (entry(shape="2"), "cannot be"),
    "a thousand dimensions": (entry(shape=[1] * 1000 + [2]), "cannot be"),
    "unknown dtype": (entry(dtype="F7"), "unknown dtype 'F7'"),
    "dtype not a string": (entry(dtype=["F32"]), "unknown dtype"),
    "entry without offsets": ({"w": {"dtype": "F32", "shape": [2]}}, "lacks"),
    "entry not an object": ({"w": [1]}, "lacks"),
    "overlap": ({"a": F32_PAIR, "b": F32_PAIR}, "overlaps"),
    "hole at the start": (entry(shape=[1], data_offsets=[4, 8]), "4 unnamed bytes before"),
    "hole at the end": (entry(shape=[1], data_offsets=[0, 4]), "4 unnamed bytes at its end"),
    "no tensors, but data": ({}, "8 unnamed bytes"),
    "metadata not strings": ({"__metadata__": {"a": 1}} | entry(), "strings"),
    "metadata not a map": ({"__metadata__": ["a"]} | entry(), "strings"),
    "not an object": ([], "not a JSON object"),
    "not JSON": (b"{'w': 1}", "not JSON"),
    "not UTF-8": (b'{"\xff": 1}', "not JSON"),
    "a lone surrogate": (b'{"__metadata__": {"a": "\\ud800"}}', "not JSON"),
    "nested too deeply": (b"[" * 200_000, "not JSON"),
    "an integer too long": (b'{"w": ' + b"9" * 10_000 + b"}", "not JSON"),
    "a name twice": (b'{"w": %b, "w": %b}' % ((json.dumps(F32_PAIR).encode(),) * 2), "'w' stands twice"),
    "a field twice": (b'{"w": {"dtype": "F32", "dtype": "F16"}}', "'dtype' stands twice"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused_with_cause_and_cure(tmp_path: Path, lie: str) -> None:
    header, cause = LIES[lie]
    path = write(tmp_path / "liar.safetensors", header)
    with pytest.raises(FormatError, match=cause) as caught:
        read_header(path)
    assert caught.value.message.startswith(f"{path}: ")
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 40, -1])
def test_a_truncated_file(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "short.safetensors", entry())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FormatError, match="truncated"):
        read_header(path)


def test_a_header_of_gigabytes_is_never_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    for length, cause in (
        (2**62, "truncated"),
        (4 * 2**30, "over the format's"),
        (LONGEST_HEADER + 1, "over"),
    ):
        with path.open("wb") as file:
            file.write(struct.pack("<Q", length))
            file.truncate(min(length + 8, 8 * 2**30))  # sparse: takes no disk
        with pytest.raises(FormatError, match=cause):
            read_header(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    file = write(tmp_path / "file", entry())
    for path in (tmp_path / "none.safetensors", file / "below", tmp_path):
        with pytest.raises(NotFoundError):
            read_header(path)


def test_zero_length_and_scalar_tensors(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({"empty": torch.empty(0, 3), "scalar": torch.tensor(0.125), "void": torch.empty(2, 0)}, path)
    source = open_source(path)
    assert {info.name: (info.shape, info.nbytes) for info in source} == {
        "empty": ((0, 3), 0),
        "scalar": ((), 4),
        "void": ((2, 0), 0),
    }
    assert source["scalar"].scalar() == 0.125
    assert source["empty"].read().shape == (0, 3)


def test_the_file_without_tensors(tmp_path: Path) -> None:
    assert read_header(write(tmp_path / "none.safetensors", {}, b"")) == ([], {})


@pytest.mark.parametrize("name", ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8"])
def test_scalars_decode_as_torch_does(tmp_path: Path, name: str) -> None:
    dtype = DTYPES[name]
    values = [0.0, 1.0, 8.0, 0.5, 100.0] + ([-3.25] if dtype.floating else [])
    stored = {f"{i}": torch.tensor(value).to(dtype.torch) for i, value in enumerate(values)}
    path = tmp_path / "alphas.safetensors"
    save_file(stored, path)
    source = open_source(path)
    assert {key: source[key].scalar() for key in stored} == {key: value.item() for key, value in stored.items()}


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: name != "__metadata__"
)
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
dtypes = st.sampled_from(list(DTYPES.values()))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=st.dictionaries(names, st.tuples(dtypes, shapes), max_size=6),
    metadata=st.dictionaries(names, st.text(st.characters(exclude_categories=["Cs"])), max_size=3),
    seed=st.integers(0, 2**16),
)
def test_reads_what_safetensors_writes(tmp_path: Path, tensors: dict, metadata: dict, seed: int) -> None:
    random = Random(seed)
    made = {}
    for name, (dtype, shape) in tensors.items():
        data = bytearray(random.randbytes(math.prod(shape) * dtype.itemsize))
        if dtype.name == "BOOL":
            data = bytearray(byte & 1 for byte in data)
        flat = torch.frombuffer(data, dtype=dtype.torch) if data else torch.empty(0, dtype=dtype.torch)
        made[name] = flat.reshape(shape)
    path = tmp_path / "round.safetensors"
    save_file(made, path, metadata=metadata or None)  # with {} and no tensors, 0.8.0 writes no valid JSON
    source = open_source(path)
    assert source.metadata == metadata
    assert source.tensors.keys() == made.keys()
    offsets = [info.offset for info in source]
    assert offsets == sorted(offsets)
    for name, tensor in made.items():
        read = source[name].read()
        assert (read.dtype, read.shape, source[name].numel) == (tensor.dtype, tensor.shape, tensor.numel())
        assert raw(read) == raw(tensor)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.flatten().view(torch.uint8).numpy().tobytes()


VALID = save(
    {
        "unet.weight": torch.arange(6, dtype=torch.float16).reshape(2, 3),
        "alpha": torch.tensor(8.0),
        "void": torch.empty(0, 2),
        "bias": torch.arange(5, dtype=torch.int8),
    },
    metadata={"format": "pt"},
)
HEADER_END = 8 + int.from_bytes(VALID[:8], "little")
JSON_BYTES = b'0123456789-+.eE,:[]{}" \\FBUI\x00\x80\xff'


def mutated(random: Random) -> bytes:
    """The file after one to four small accidents to its header: a byte changed, lost, doubled, or a swap."""
    data = bytearray(VALID)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        at, other = random.randrange(HEADER_END), random.randrange(8, HEADER_END)
        match random.randrange(5):
            case 0:
                data[at] = random.choice(JSON_BYTES)
            case 1:
                data[other] = random.choice(b"0123456789")
            case 2:
                del data[other]
                data[:8] = struct.pack("<Q", max(int.from_bytes(data[:8], "little") - 1, 0) % 2**64)
            case 3:
                data.insert(other, random.choice(JSON_BYTES))
                data[:8] = struct.pack("<Q", (int.from_bytes(data[:8], "little") + 1) % 2**64)
            case _:
                data[other], data[at] = data[at], data[other]
    return bytes(data)


def test_mutated_headers_are_refused_or_read_as_safetensors_reads_them(tmp_path: Path) -> None:
    random, path = Random(0), tmp_path / "mutant.safetensors"
    accepted = by_both = 0
    for _ in range(1500):
        data = mutated(random)
        path.write_bytes(data)
        try:
            entries, metadata = read_header(path)
        except FormatError:
            continue
        accepted += 1
        assert all(8 <= each.offset <= each.offset + each.nbytes <= len(data) for each in entries)
        try:
            with safe_open(path, framework="pt") as oracle:
                by_both += 1
                assert (oracle.metadata() or {}) == metadata
                assert set(oracle.keys()) == {each.name for each in entries}
                for each in entries:
                    expected = oracle.get_tensor(each.name)
                    assert expected.dtype == each.dtype.torch
                    assert tuple(expected.shape) == each.shape
                    assert raw(expected) == data[each.offset : each.offset + each.nbytes]
        except SafetensorError:
            pass
    assert 100 < by_both <= accepted < 1500


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(NotFoundError, match="cannot be read"):
        read_header(tmp_path / "model.safetensors")
