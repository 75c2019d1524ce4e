"""Adapter files for tests: written with the reference safetensors library, applied through the package."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lcmmerge.adapters import Dense, Dependent, Factored, Patch, algorithm, read_adapter
from lcmmerge.tensors import TensorSource, open_source


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> TensorSource:
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path, metadata)
    return open_source(path)


def delta(patch: Patch, weight: Tensor) -> Tensor:
    """ΔW of a patch that must fit."""
    _, adapter = algorithm(patch)
    shape = tuple(weight.shape)
    assert adapter.fit(patch, shape) == ""
    match adapter.update(patch, {role: info.read() for role, info in patch.roles.items()}, shape):
        case Factored(up, down):
            return (up @ down).reshape(shape)
        case Dense(difference):
            return difference
        case Dependent(delta_of):
            return delta_of(weight)


def merged(source: TensorSource, parameters: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """``parameters`` with every patch added; keys are ``prefix`` + module."""
    result = dict(parameters)
    file = read_adapter(source)
    assert not file.unknown
    for patch in file.patches:
        name = f"{patch.key.removeprefix(prefix)}.{patch.parameter}"
        if name in parameters:
            result[name] = result[name] + delta(patch, parameters[name])
        else:
            assert patch.optional, f"{name} has no home"
    return result


def assert_near(found: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    assert found.shape == expected.shape
    error = torch.linalg.vector_norm(found.double() - expected.double())
    assert error <= relative * torch.linalg.vector_norm(expected.double())
