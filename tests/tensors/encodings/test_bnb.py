"""bitsandbytes' layers in files: what is read of them is what bitsandbytes makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bnbfile import Stored, four_bit, int8
from safetensors.torch import save_file
from torch import Tensor

from lcmmerge.errors import FormatError
from lcmmerge.tensors import TensorInfo, open_source
from lcmmerge.tensors.encodings import MAIN, name_of
from lcmmerge.tensors.quantised import companions_of

SHAPES = ((32, 128), (24, 96), (7, 50), (128, 192))  # whole blocks a row, and not; a block that is cut short; many
STATE = "a.weight.quant_state.bitsandbytes__nf4"


def weight(shape: tuple[int, int]) -> Tensor:
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows[2] *= 30
    rows[-1] = 0
    return rows


def read(tensors: dict[str, Tensor], folder: Path) -> TensorInfo:
    """The layer ``a`` of a file that holds it and a bias."""
    save_file({f"a.{name}": tensor.contiguous() for name, tensor in tensors.items()} | {"a.bias": torch.ones(3)},
              folder / "layer.safetensors")  # fmt: skip
    source = open_source(folder / "layer.safetensors")
    assert source.tensors.keys() == {"a.weight", "a.bias"}
    assert {info.name for info in source.stored} == {"a.bias", *(f"a.{name}" for name in tensors)}
    return source["a.weight"]


def some_rows(info: TensorInfo, begin: int, end: int) -> Tensor:
    main = next(info.stored).read()
    parts = {MAIN: main.reshape(info.shape[0], -1), **companions_of(info)}
    return info.encoding.decode(info.encoding.cut(parts, slice(begin, end)))


def assert_reads(stored: Stored, info: TensorInfo) -> None:
    assert info.shape == stored.numbers.shape
    assert info.read().equal(stored.numbers)
    assert some_rows(info, 3, 5).equal(stored.numbers[3:5])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits(kind, nested, block, shape, tmp_path):
    stored = four_bit(weight(shape), kind, nested=nested, block=block)
    info = read(stored.tensors, tmp_path)
    assert (name_of(info.encoding), info.dtype.name) == (f"bnb_{kind}", "BF16")
    assert_reads(stored, info)


def test_int8(tmp_path):
    rows = weight((32, 50))
    rows[-1, 0] = 1e-6
    stored = int8(rows)
    info = read(stored.tensors, tmp_path)
    assert name_of(info.encoding) == "bnb_int8"
    assert_reads(stored, info)


def test_a_row_of_zeros(tmp_path):
    stored = int8(torch.zeros(8, 8))
    info = read(stored.tensors | {"weight": torch.zeros(8, 8, dtype=torch.int8)}, tmp_path)
    assert not some_rows(info, 0, 8).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_are_those_of_bitsandbytes(kind, nested, shape, dtype, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    linear = bitsandbytes.nn.Linear4bit(*reversed(shape), bias=False, quant_type=kind, compress_statistics=nested)
    linear.weight.data = weight(shape).to(dtype)
    linear = linear.to("cpu")
    tensors, state = linear.state_dict(), linear.weight.quant_state
    state.shape = torch.Size((1, linear.weight.numel() * 2))  # with AVX-512 each row would begin a block of its own
    exact = bitsandbytes.functional.dequantize_4bit(linear.weight, state).view(shape)
    info = read(tensors, tmp_path)
    found = info.read()
    if kind == "nf4":
        assert found.to(dtype).equal(exact)
    else:  # its kernels have the least number in seven digits
        torch.testing.assert_close(found.to(dtype), exact, rtol=max(1e-6, torch.finfo(dtype).eps), atol=0)
    assert some_rows(info, 1, 6).equal(found[1:6])
    ours = four_bit(weight(shape), kind, nested=nested).tensors
    assert facts_of(ours) == facts_of(tensors)


def test_int8_is_that_of_bitsandbytes(tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    linear = bitsandbytes.nn.Linear8bitLt(50, 32, bias=False, has_fp16_weights=False)
    linear.weight.data = weight((32, 50)) + 1
    linear = linear.to("cpu")
    tensors = linear.state_dict()
    found = read(tensors, tmp_path).read()
    assert found.equal(bitsandbytes.functional.int8_vectorwise_dequant(tensors["weight"], tensors["SCB"]))
    ours = int8(weight((32, 50)) + 1).tensors
    assert facts_of(ours) == facts_of(tensors)


def facts_of(tensors: dict[str, Tensor]) -> dict[str, object]:
    """Shapes and dtypes; of JSON what it tells, but for what is rounded and for the dtype before."""
    found: dict[str, object] = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if "quant_state" in name:
            found[name] = json.loads(bytes(tensor.tolist())) | {"nested_offset": None, "dtype": None}
    return found


def damaged(tensors: dict[str, Tensor]) -> dict[str, tuple[dict[str, Tensor], str]]:
    def state(**changes: object) -> Tensor:
        told = json.loads(bytes(tensors[STATE].tolist())) if tensors else {}
        return torch.tensor(list(json.dumps(told | changes).encode()), dtype=torch.uint8)

    def without(name: str) -> dict[str, Tensor]:
        return {key: tensor for key, tensor in tensors.items() if key != name}

    unknown = "quantised in a way that is not known"
    return {
        "no absmax": (without("a.weight.absmax"), "a.weight.absmax is missing"),
        "no nested absmax": (without("a.weight.nested_absmax"), "nested_absmax is missing"),
        "no weight": (without("a.weight"), "has no weight"),
        "no JSON": (tensors | {STATE: torch.zeros(9, dtype=torch.uint8)}, "not JSON"),
        "too long JSON": (tensors | {STATE: torch.full((5000,), 32, dtype=torch.uint8)}, "not JSON"),
        "another shape": (tensors | {STATE: state(shape=[24, 98])}, r"a.weight is uint8 of shape \[1152, 1\]"),
        "an odd shape": (tensors | {STATE: state(shape=[256, 9])}, r"\[256, 4\]"),
        "a shape of none": (tensors | {STATE: state(shape=None)}, unknown),
        "a size below 0": (tensors | {STATE: state(shape=[-24, -96])}, unknown),
        "no block": (tensors | {STATE: state(blocksize=0)}, unknown),
        "another block": (tensors | {STATE: state(blocksize=32)}, r"absmax is uint8 of shape \[36\]"),
        "an offset that is infinite": (tensors | {STATE: state(nested_offset=float("inf"))}, unknown),
        "an offset that is no number": (tensors | {STATE: state(nested_offset="1")}, unknown),
        "another kind": (tensors | {STATE: state(quant_type="fp4")}, unknown),
        "a kind that nobody knows": (without(STATE) | {f"{STATE[:-3]}nf3": state(quant_type="nf3")}, unknown),
    }


@pytest.mark.parametrize("fault", [*damaged({})])
def test_damaged_headers_are_refused(fault, tmp_path):
    stored = four_bit(weight((24, 96)))
    tensors, cause = damaged({f"a.{name}": tensor for name, tensor in stored.tensors.items()})[fault]
    save_file(tensors, tmp_path / "damaged.safetensors")
    with pytest.raises(FormatError, match=cause) as caught:
        open_source(tmp_path / "damaged.safetensors")
    assert "\n" not in str(caught.value)


def test_rows_in_another_order_are_refused(tmp_path):
    tensors = int8(weight((24, 96)) + 1).tensors | {"weight_format": torch.tensor(2, dtype=torch.uint8)}
    with pytest.raises(FormatError, match="a is in an order"):
        read(tensors, tmp_path)


@pytest.mark.parametrize("name", ["weight.nested_absmax", "weight.nested_quant_map", "weight.quant_map"])
def test_a_scale_that_is_no_number_is_refused(name, tmp_path):
    tensors = four_bit(weight((24, 96))).tensors
    tensors[name] = tensors[name].clone()
    tensors[name][0] = torch.nan
    with pytest.raises(FormatError, match=f"a.{name} holds a scale"):
        companions_of(read(tensors, tmp_path))
