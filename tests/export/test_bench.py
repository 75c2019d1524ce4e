"""Latencies: that what is compared takes turns, on the same inputs and weights."""

import pytest
import torch
from running import CPU, exact

from lcmmerge.errors import LcmMergeError
from lcmmerge.export.bench import COMPILED, EAGER, BenchRequest, bench, example, take_turns
from lcmmerge.export.runtime import open_session
from lcmmerge.graphs.components import components_of
from lcmmerge.output import Output

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def export(files, tmp_path_factory):
    return exact(tmp_path_factory, files("sd1"))


def test_all_take_turns():
    called = []
    times = take_turns({name: lambda name=name: called.append(name) for name in "abc"}, 3, 2, CPU)
    assert called == list("abc") * 5
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3, "c": 3}
    assert min(min(seconds) for seconds in times.values()) > 0


@pytest.mark.parametrize("name", ["text_encoder", "vae_decoder"])
def test_torchs_contender_has_the_graphs_weights(name, export):
    component = next(item for item in components_of(export) if item.name == name)
    weights = export / name / component.weights
    inputs = example(component, (72, 56), 2, torch.float32, CPU)
    with torch.no_grad():
        found = component.filled(weights, torch.float32, CPU)(*inputs.values())
    expected = open_session(export / name / "model.onnx", "cpu")(inputs)
    first = found[0] if isinstance(found, tuple) else found
    torch.testing.assert_close(first, next(iter(expected.values())), atol=1e-4, rtol=0)


def test_rows(export):
    """A compiler takes minutes: torch.compile is told to be as eager as the other."""
    asked = BenchRequest("cpu", ((64, 64), (72, 56)), ("vae_decoder", "text_encoder"), repeats=2, warmup=1)
    with torch.compiler.set_stance("force_eager"):
        found = bench(export, asked, Output(quiet=True))
    assert [(row.component, row.size, row.by) for row in found.rows if row.component == "vae_decoder"] == [
        ("vae_decoder", size, by) for size in asked.sizes for by in (EAGER, COMPILED, "ONNX Runtime cpu, plain")
    ]
    assert {row.by for row in found.rows if row.component == "text_encoder"} == {
        EAGER, COMPILED, "ONNX Runtime cpu, plain", "ONNX Runtime cpu, fused",
    }  # fmt: skip
    for row in found.rows:
        assert 0 < row.least <= row.median
        assert (row.speed == 1) == (row.by == EAGER)
    assert found.as_dict()["threads"] == torch.get_num_threads()


def test_a_component_that_is_not_there(export):
    with pytest.raises(LcmMergeError, match="has no component 'safety_checker'") as refused:
        bench(export, BenchRequest(components=("safety_checker",)), Output(quiet=True))
    assert "unet" in refused.value.hint
