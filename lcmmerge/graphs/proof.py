"""A graph beside the module that it was made of, run before it is kept.

A graph has no weights, and a real model's are too many to be made up: it is the same configuration, built tiny, that is
traced, lowered and run, by ONNX Runtime and by torch, over the same random weights. What a new version of a library has
an operator do otherwise, and the lowering does not know, is an error here and not an image that is a little wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from lcmmerge.errors import IncompatibleError
from lcmmerge.graphs.components.base import parameter_name
from lcmmerge.graphs.graph import OPSETS, opset_of, trace
from lcmmerge.graphs.serial import serialise

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import Tensor, nn

    from lcmmerge.graphs.components import PipelinePart

# Not what a graph is traced at, and odd where a size may be.
SIZE = {"batch": 3, "sequence": 11, "latent_height": 7, "latent_width": 5, "height": 24, "width": 40}
BOUNDS = {"torch.float32": 1e-4, "torch.float16": 2e-2}  # of an output's largest value
# The first ONNX Runtime whose CPU provider runs what is beyond opset 18 as it is meant: older ones do not load it, or
# normalise rows by sums of squares, 1e-4 off where the mean is three deviations from 0.
FUSED_ON_CPU = "1.27"
SPREAD = 0.1  # of what is added to the weights that a module begins with: its norms' are 1 and 0


def random_module(part: PipelinePart, dtype: torch.dtype) -> nn.Module:
    """The part's module with seeded weights that ``dtype`` holds."""
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module = part.build(part.config).eval().requires_grad_(False)
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=SPREAD)
        return torch.nn.Module.to(module, dtype=dtype)


def provable(dtype: torch.dtype, variants: Iterable[str]) -> dict[str, int]:
    """Variant → opset, of those that the ONNX Runtime which is installed runs as meant: ``plain`` always."""
    import onnxruntime

    if Version(onnxruntime.__version__) < Version(FUSED_ON_CPU):
        return {"plain": OPSETS["plain"]}
    return {variant: opset_of(variant, dtype) for variant in variants}


def prove(part: PipelinePart, dtype: torch.dtype, opsets: Mapping[str, int]) -> None:
    """``part``: a tiny one, to be traced in ``dtype``, which ONNX Runtime has a CPU's kernels for: bfloat16 as float32.

    Raises IncompatibleError: an operator that we do not know, the runtime takes a graph not, or another number comes
    out; FormatError (of the config).
    """
    import torch

    dtype = torch.float32 if dtype is torch.bfloat16 else dtype
    graphs = trace(part, dtype, opsets)
    module, inputs = random_module(part, dtype), _inputs(part, dtype)
    state = {parameter_name(name): tensor.clone() for name, tensor in module.state_dict().items()}
    module = torch.nn.Module.to(module, dtype=torch.float32)
    with torch.no_grad():
        found = module(*(tensor.float() if tensor.is_floating_point() else tensor for tensor in inputs))
    expected = found if isinstance(found, tuple) else (found,)
    for variant, graph in graphs.items():
        for port, value, tensor in zip(part.outputs, _run(part, graph, state, inputs), expected, strict=True):
            error = float((value.float() - tensor).abs().max() / tensor.abs().max())
            if not error <= BOUNDS[str(dtype)]:
                raise _wrong(part, variant, f"gives {port.name} {error:.0%} away from torch's")


def _run(part: PipelinePart, graph: ir.Model, state: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    import onnx_ir as ir
    import onnxruntime
    import torch

    for name, value in graph.graph.initializers.items():
        value.const_value = ir.tensor(state[name].numpy(), name=name)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    given: dict[str, Any] = {
        port.name: tensor.numpy() for port, tensor in zip(part.inputs, inputs, strict=True)
    }
    try:
        session = onnxruntime.InferenceSession(serialise(graph), options, providers=["CPUExecutionProvider"])
        return [torch.from_numpy(array) for array in session.run(None, given)]
    except Exception as error:  # the runtime's own have no other base
        raise _wrong(part, graph.graph.name or "", " ".join(str(error).split())[:300]) from None


def _inputs(part: PipelinePart, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Seeded. Whole numbers are ids, of which there are as many as the config says, or a timestep."""
    import torch

    generator, inputs = torch.Generator().manual_seed(1), []
    for port in part.inputs:
        shape = [SIZE[dim] if isinstance(dim, str) else dim for dim in port.dims]
        if port.dtype is torch.int64:
            inputs.append(torch.randint(part.config.get("vocab_size", 1000), shape, generator=generator))
        else:
            inputs.append(torch.randn(shape, generator=generator).to(port.dtype or dtype))
    return tuple(inputs)


def _wrong(part: PipelinePart, variant: str, what: str) -> IncompatibleError:
    return IncompatibleError(
        f"{part.name}: its {variant} graph, of the same configuration built tiny, {what}",
        "install the versions in constraints.txt, and report this configuration",
    )
