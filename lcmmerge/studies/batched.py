"""Several cells in one forward pass: LoRAs beside the base's layers, with λ as a vector over the batch.

    y_b = W x_b + Σ λ_{b,i} Bᵢ Aᵢ x_b

It saves launches, not arithmetic, so it is for tiny models. θ(λ) is not rounded to the base's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from lcmmerge.merge.changes import Change
from lcmmerge.sample.encode import Encoder
from lcmmerge.sample.jobs import Job
from lcmmerge.studies.field import Field, Part
from lcmmerge.studies.order import Strengths


@dataclass(frozen=True, slots=True)
class CellJob(Job):
    """A job with the cell that it is drawn in."""

    strengths: Strengths


class PerSample:
    """Hooks on the layers of a field whose weights are W₀; ``close`` takes them away."""

    def __init__(self, field: Field) -> None:
        self._strengths = torch.tensor([[*field.zeros, 1.0]])
        owners = _owners(field)
        self._hooks = [_hook(owners[id(part.module)], part, self._of_ranks) for part in field.parts]

    def set(self, strengths: Sequence[Strengths]) -> None:
        """The cell of each sample of the next batch; classifier-free guidance repeats the batch."""
        self._strengths = torch.tensor([[*cell, 1.0] for cell in strengths])

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _of_ranks(self, terms: Tensor, factors: Tensor, like: Tensor) -> Tensor:
        """λ [N, Σr] for a layer's input ``like`` [N, …]; ``terms`` [Σr]: whose rank it is.

        ``factors`` [Σr]: which of a cell's numbers multiplies it; the last of them, put there by ``set``, is 1.
        """
        strengths = (self._strengths[:, terms] * self._strengths[:, factors]).to(like)
        return strengths.repeat(len(like) // len(strengths), 1)


def obstacle(field: Field) -> str:
    """Why cells cannot share a forward pass; empty where they can."""
    owners = _owners(field)
    for part in field.parts:
        name, owner = part.name, owners.get(id(part.module))
        if not isinstance(owner, nn.Linear | nn.Conv2d):
            return f"a term changes {name}, which is no weight of a linear layer or a convolution"
        if not all(isinstance(change, Change) for change in part.changes.values()):
            return f"a term's change of {name} is no product of two factors"
    return ""


class CellEncoder(Encoder):
    """Encodes each job's prompt with its own cell's text encoders, and tells the hooks of the batch to come."""

    def __init__(self, field: Field, hooks: PerSample) -> None:
        super().__init__(field.pipeline)
        self._field, self._hooks = field, hooks
        self._encoders: dict[Strengths, Encoder] = {}

    def arguments(self, jobs: Sequence[Job], *, guided: bool) -> dict[str, Any]:
        cells = [job.strengths for job in jobs if isinstance(job, CellJob)]
        each = [self._one(job, cell, guided) for job, cell in zip(jobs, cells, strict=True)]
        self._hooks.set(cells)
        return {name: torch.cat([found[name] for found in each]) for name in each[0]}

    def _one(self, job: Job, cell: Strengths, guided: bool) -> dict[str, Any]:
        self._hooks.set([cell])
        encoder = self._encoders.setdefault(self._field.text_key(cell), Encoder(self._field.pipeline))
        return encoder.arguments([job], guided=guided)


def _owners(field: Field) -> dict[int, nn.Module]:
    """The id of a weight → its layer."""
    return {
        id(layer.weight): layer
        for component in field.plan.base.components
        for layer in getattr(field.pipeline, component).modules()
        if isinstance(getattr(layer, "weight", None), nn.Parameter)
    }


def _hook(layer: nn.Module, part: Part, of_ranks: Callable[[Tensor, Tensor, Tensor], Tensor]) -> RemovableHandle:
    """All terms of a layer are one pair of factors."""
    products = {term: change.factors for term, change in part.changes.items() if isinstance(change, Change)}
    terms = torch.cat([torch.full((len(found[1]),), term) for term, found in products.items() if found])
    factors = torch.tensor([part.factors.get(term, -1) for term in terms.tolist()])
    up = torch.cat([found[0] for found in products.values() if found], 1).to(part.module)
    down = torch.cat([found[1] for found in products.values() if found]).to(part.module)
    add = _convolved if isinstance(layer, nn.Conv2d) else _linear

    def forward(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (found,) = inputs
        return output + add(layer, found, up, down, of_ranks(terms, factors, found))

    return layer.register_forward_hook(forward)


def _linear(layer: nn.Module, inputs: Tensor, up: Tensor, down: Tensor, strengths: Tensor) -> Tensor:
    """``inputs`` [N, …, in]; ``strengths`` [N, Σr]."""
    inner = functional.linear(inputs, down)
    return functional.linear(inner * strengths.view(len(inputs), *[1] * (inner.dim() - 2), -1), up)


def _convolved(layer: nn.Module, inputs: Tensor, up: Tensor, down: Tensor, strengths: Tensor) -> Tensor:
    """``inputs`` [N, in, h, w]; ``down`` [Σr, in·kh·kw] has the layer's kernel, ``up`` is a 1×1 convolution."""
    assert isinstance(layer, nn.Conv2d)
    kernel = down.view(len(down), *layer.weight.shape[1:])
    inner = functional.conv2d(inputs, kernel, None, layer.stride, layer.padding, layer.dilation)
    return functional.conv2d(inner * strengths[..., None, None], up[..., None, None])
