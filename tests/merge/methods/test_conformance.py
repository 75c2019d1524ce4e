"""What every registered merge method must keep to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fusing import Files, canonical, fuse, load, raw
from merging import merge_of
from methodwords import made, most
from searching import ADAPTERS, write

from lcmmerge.bake.tensors import merged
from lcmmerge.bake.verify import verify
from lcmmerge.merge.methods import complete, method, methods, parse, spelled
from lcmmerge.merge.plan import plan
from lcmmerge.search.changes import Change
from lcmmerge.tensors import open_source

CPU = torch.device("cpu")
LAMBDAS = (0.8, -0.5, 1.25)
OTHERS = [name for name in methods() if not methods()[name].linear]


def test_which_are_registered() -> None:
    assert methods().keys() >= {
        "add", "breadcrumbs", "dare", "della", "magnitude_prune", "norm_cap", "orthogonal", "slerp", "ties",
    }  # fmt: skip
    assert methods()["add"].linear
    assert not methods()["ties"].linear


@pytest.mark.parametrize("name", methods())
def test_says_what_it_is_and_what_it_can_be_given(name: str) -> None:
    found = method(name)
    assert found.title
    assert found.source.startswith("https://")
    assert not (found.linear and (found.keep or found.parameters))
    for parameter in found.parameters.values():
        assert parameter.low <= parameter.default <= parameter.high
        assert parameter.help
    parameters = complete(name, {})
    assert parse(spelled(name, parameters)) == (name, parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", OTHERS)
def test_rows_are_made_as_the_whole_is(name: str, count: int, dtype: torch.dtype) -> None:
    found, parameters, count = method(name), complete(name, {}), most(name, count)
    generator = torch.Generator().manual_seed(count)
    weights, *deltas = torch.randn((count + 1, 12, 7), generator=generator, dtype=dtype)
    whole = made(name, weights, deltas, LAMBDAS[:count])
    assert (whole.shape, whole.dtype) == (weights.shape, dtype)
    assert not torch.equal(whole, weights)
    if found.weigh:  # by inner products over the whole, which the fuse below forms
        return
    kept = [found.keep(delta.clone(), parameters, f"W/{number}") if found.keep else None
            for number, delta in enumerate(deltas)]  # fmt: skip
    for mask in kept:
        assert mask is None or (mask.shape, mask.dtype) in [(weights.shape, torch.bool), (weights.shape, torch.float32)]
    assert found.combine
    for rows in (slice(0, 5), slice(5, 12)):
        parts = [delta[rows] if mask is None else delta[rows] * mask[rows]
                 for delta, mask in zip(deltas, kept, strict=True)]  # fmt: skip
        assert torch.equal(found.combine(weights[rows].clone(), parts, LAMBDAS[:count], parameters), whole[rows])


@pytest.mark.parametrize("name", OTHERS)
def test_a_fuse_is_made_of_each_term_s_whole_change(name: str, files: Callable[[str], Files], tmp_path: Path) -> None:
    """Adapters with factors, without, and dependent on W, some on one parameter; and a checkpoint."""
    inputs, tuned = files("sd1"), tmp_path / "tuned.safetensors"
    base, before = inputs.base("fp32"), canonical(inputs.base("fp32"))
    fuse(base, tuned, inputs.style)
    kinds = [write(tmp_path / f"{kind}.safetensors", ADAPTERS[kind]).path for kind in ("lora", "dora", "full", "loha")]
    for number, sources in enumerate(((tuned, *kinds[:2]), kinds[1:], kinds[:1])):
        sources = sources[: most(name, 3)]
        target, terms = tmp_path / f"{number}.safetensors", tuple(zip(sources, LAMBDAS, strict=False))
        fuse(base, target, adapters=terms, method=name)
        merge = merge_of(base, target, None, (1.0, 0.0), adapters=terms, method=name)
        found, several = canonical(target), 0
        ones = plan(merge.at({term.name: 1.0 for term in merge.terms}))
        for piece in (piece for file in ones.files for tensor in file.tensors for piece in tensor.pieces):
            parameter, reaching = piece.operand.name, [item.term for item in piece.contributions]
            expected = before[parameter]
            if reaching:
                deltas = [Change.of(piece, term, CPU).dense(expected).reshape(len(expected), -1)
                          for term in reaching]  # fmt: skip
                strengths = [LAMBDAS[term] for term in reaching]
                names = [f"{parameter}/{ones.terms[term].name}" for term in reaching]
                expected = made(name, expected.view(deltas[0].shape), deltas, strengths, names).view(expected.shape)
            torch.testing.assert_close(found[parameter], expected, rtol=1e-5, atol=1e-6, msg=parameter)
            several += len(reaching) > 1
        assert several or len(sources) == 1
        with merged(plan(merge)) as read:  # what a live drawing reads
            assert all(torch.equal(raw(read(parameter)), raw(found[parameter])) for parameter in before)
        verify(open_source(target), [str(base), str(tmp_path)]).check()


@pytest.mark.parametrize("name", methods())
def test_layouts_and_threads_do_not_matter(name: str, files: Callable[[str], Files], tmp_path: Path) -> None:
    """OpenCLIP's fused and transposed tensors, too; and a second run has the same bytes."""
    inputs = files("sd2")
    outputs = [tmp_path / "single.safetensors", tmp_path / "again.safetensors", tmp_path / "folder"]
    for base, target in zip((inputs.base(), inputs.base(), inputs.folder()), outputs, strict=True):
        fuse(base, target, inputs.style, inputs.lcm, method=name)
    single, again = load(outputs[0]), load(outputs[1])
    assert all(torch.equal(raw(single[key]), raw(again[key])) for key in single)
    one, other = canonical(outputs[0]), canonical(outputs[2])
    for key in one:
        assert (one[key].float() - other[key].float()).abs().max() <= 2**-9 * one[key].float().abs().max(), key
