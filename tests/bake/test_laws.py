"""Laws of θ′ = θ_pre + Σ λᵢτᵢ, over drawn inputs."""

import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from fusing import assert_same, canonical, fuse, load
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pico import pico
from safetensors.torch import load_file, save_file

from lcmmerge.bake.outcome import Settings
from lcmmerge.tensors import DTYPES
from lcmmerge.tensors.blockio import BlockWriter, Buffer, Files
from lcmmerge.tensors.layout import TensorSpec, lay_out

SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the files are only read
LAMBDA = st.floats(-2, 2, width=32)
QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A U-Net, three adapters for one of its parameters, and what a fuse makes of that parameter."""
    folder = tmp_path_factory.mktemp("small")
    generator = torch.Generator().manual_seed(0)
    save_file(
        {name: tensor.clone() for name, tensor in pico("sd1").pipeline.unet.state_dict().items()},
        folder / "base.safetensors",
    )

    def draw(*shape):
        return 0.3 * torch.randn(shape, generator=generator)

    key = f"unet.{QUERY}"
    adapters = {
        "lora": {f"{key}.lora_A.weight": draw(2, 8), f"{key}.lora_B.weight": draw(8, 2)},
        "dora": {
            f"{key}.lora_A.weight": draw(2, 8), f"{key}.lora_B.weight": draw(8, 2),
            f"{key}.lora_magnitude_vector": 1 + draw(8),
        },
        "full": {f"{key}.diff": draw(8, 8)},
    }  # fmt: skip
    for name, tensors in adapters.items():
        save_file(tensors, folder / f"{name}.safetensors")

    def fused(terms):
        target = folder / "fused.safetensors"
        paths = tuple((folder / f"{name}.safetensors", strength) for name, strength in terms)
        fuse(folder / "base.safetensors", target, adapters=paths, settings=Settings(1), force=True)
        return load(target)[f"{QUERY}.weight"].double()

    return fused


@SHARED
@given(name=st.sampled_from(["lora", "dora", "full"]), one=LAMBDA, two=LAMBDA)
def test_linear_in_lambda(name, one, two, small):
    base, a, b, both = (small([(name, strength)]) for strength in (0.0, one, two, one + two))
    assert torch.allclose(both - base, (a - base) + (b - base), rtol=0, atol=2e-6)


@SHARED
@given(terms=st.tuples(*(st.tuples(st.just(name), LAMBDA) for name in ("lora", "dora", "full"))), data=st.data())
def test_the_order_of_terms_does_not_matter(terms, data, small):
    assert torch.allclose(small(terms), small(data.draw(st.permutations(terms))), rtol=0, atol=2e-6)


@SHARED
@given(name=st.sampled_from(["lora", "dora", "full"]), strength=LAMBDA)
def test_a_term_and_its_opposite_cancel(name, strength, small):
    assert torch.allclose(small([(name, strength), (name, -strength)]), small([(name, 0.0)]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_one_fuse_of_two_terms_is_nearer_the_truth_than_two_fuses(dtype, files, tmp_path):
    """Rounded once: in float32 the same within tolerance, in half precision two fuses round twice."""
    inputs = files("sd1")
    fuse(inputs.base(dtype), tmp_path / "once.safetensors", inputs.style, inputs.lcm)
    fuse(inputs.base(dtype), tmp_path / "first.safetensors", inputs.style)
    fuse(tmp_path / "first.safetensors", tmp_path / "twice.safetensors", lcm=inputs.lcm)
    once, twice = canonical(tmp_path / "once.safetensors"), canonical(tmp_path / "twice.safetensors")
    tolerance = {"fp32": 1e-6, "fp16": 1e-3}[dtype]
    different = 0
    for name, tensor in once.items():
        apart = (tensor.double() - twice[name].double()).norm()
        assert apart <= tolerance * tensor.double().norm()
        different += int(apart > 0)
    assert different > 0


DTYPE = st.sampled_from([dtype for dtype in DTYPES.values() if dtype.name not in ("BOOL", "U64", "U32")])
SHAPES = st.lists(st.integers(0, 40), max_size=3).map(tuple)


@SHARED
@given(tensors=st.lists(st.tuples(DTYPE, SHAPES), max_size=8), data=st.data())
def test_what_is_written_is_read_by_safetensors(tensors, data):
    """Any dtypes and shapes, written in blocks of any sizes, in any order."""
    specs = [TensorSpec(f"täнsor {i}", dtype, shape) for i, (dtype, shape) in enumerate(tensors)]
    metadata = {"b": "ü", "a": '"quoted"\n'}
    layout = lay_out(specs, metadata)
    content = torch.randint(
        0, 256, (layout.size - layout.data_start,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    whole = layout.header(metadata) + bytes(content.numpy())
    assert len(whole) == layout.size
    cuts = sorted({0, layout.size, *data.draw(st.lists(st.integers(0, layout.size), max_size=6))})
    blocks = data.draw(st.permutations(list(pairwise(cuts))))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "written.safetensors")
        with BlockWriter(path, layout.size) as writer:
            for begin, end in blocks:
                buffer = Buffer(end - begin)
                buffer.memory[begin % 4096 : begin % 4096 + end - begin] = whole[begin:end]
                writer.write(buffer, begin, end - begin)
            writer.finish()
        assert path.read_bytes() == whole
        found = load_file(path)
        with Files() as files:
            for begin, end in blocks:
                into = memoryview(bytearray(end - begin))
                assert files.read(path, begin, into, Buffer(end - begin)) == whole[begin:end]
    expected = {
        spec.name: content[offset - layout.data_start :][: spec.nbytes]
        .clone()
        .view(spec.dtype.torch)
        .reshape(spec.shape)
        if spec.nbytes
        else torch.empty(spec.shape, dtype=spec.dtype.torch)
        for spec, offset in zip(layout.specs, layout.offsets, strict=True)
    }
    assert_same(found, expected)
