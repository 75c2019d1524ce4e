"""Writing adapter files: LoRAs and plain differences under kohya's names, all or nothing, module by module.

Format: https://github.com/kohya-ss/sd-scripts, networks/lora.py; plain differences as LyCORIS writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from lcmmerge.archs import Architecture, Variant, modelspec
from lcmmerge.bake.outcome import Settings
from lcmmerge.bake.pipeline import in_order, one_thread_each
from lcmmerge.errors import NoEffectError, NumericError
from lcmmerge.history import RECIPE, canonical_json
from lcmmerge.refs.weights import DENOISERS, DIFFUSERS, SINGLE_FILE
from lcmmerge.tensors import DType, TensorSource
from lcmmerge.tensors.layout import TensorSpec
from lcmmerge.tensors.source import unchanged
from lcmmerge.tensors.staging import Staging
from lcmmerge.tensors.writer import TensorWriter
from lcmmerge.version import __version__

Item = TypeVar("Item")
Shape = tuple[int, ...]
DIFFUSERS_KEYS = tuple(f"{name}." for name in DENOISERS)
UNKNOWN = "0" * 64  # as long as a sha256


@dataclass(frozen=True, slots=True)
class LoraLayer:
    """What became of one parameter: ‖Δ‖², how much of it is kept, and the rank; None where Δ is stored whole."""

    name: str
    square: float
    kept: float
    rank: int | None = None

    @property
    def energy(self) -> float:
        return self.kept / self.square if self.square else 1.0

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "rank": self.rank, "norm": self.square**0.5, "energy": self.energy}


@dataclass(slots=True)
class Made(Generic[Item]):
    """One parameter's tensors, by the names under which they are stored; none where nothing changes."""

    item: Item
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    layer: LoraLayer | None = None


def write_adapter(
    target: Path,
    items: Sequence[Item],
    make: Callable[[Made[Item]], None],
    at_most: Iterable[TensorSpec],
    origin: Callable[[bool], LoraOrigin],
    done: Callable[[Item], None] = lambda item: None,
    *,
    sources: Iterable[TensorSource],
    force: bool,
) -> tuple[LoraLayer, ...]:
    """``make`` each item's tensors, of the ``sources``, in parallel, and write them in the items' order.

    ``origin`` is asked first with False and at last with True, when it knows all, and is no longer than at first;
    ``done`` is called with each item that is written. Raises NoEffectError where nothing at all changes, OutputError,
    and what ``make`` does.
    """
    layers: list[LoraLayer] = []

    def describe(sha256: str | None) -> dict[str, str]:
        ranks = {float(layer.rank): float(layer.rank) for layer in layers if layer.rank}
        whole = any(layer.kept and not layer.rank for layer in layers)
        return origin(sha256 is not None).metadata(sha256, ranks, whole=whole)

    with Staging(target, force=force) as staging:
        path = staging.folder / target.name
        with unchanged(sources), TensorWriter(path, at_most, describe) as writer:

            def finish(made: Made[Item]) -> None:
                for name, tensor in made.tensors.items():
                    writer.write(name, tensor)
                if made.layer:
                    layers.append(made.layer)
                done(made.item)

            with one_thread_each() as initializer:
                workers = Settings().workers
                in_order(
                    map(Made, items), make, finish, workers=workers, in_flight=2 * workers, initializer=initializer
                )
            if not any(layer.kept for layer in layers):
                hint = "compare the inputs with `lcmmerge inspect`"
                raise NoEffectError(f"{target}: would hold no change at all", hint)
            writer.finish()
        staging.commit_files()
    return tuple(layers)


def low_rank_specs(key: str, shape: Shape, rank: int, dtype: DType) -> Iterable[TensorSpec]:
    """As kohya names a module's tensors, or diffusers those of a ``transformer.…``, whose alpha is the rank."""
    up, down = ("lora_B", "lora_A") if key.startswith(DIFFUSERS_KEYS) else ("lora_up", "lora_down")
    yield TensorSpec(f"{key}.{up}.weight", dtype, (shape[0], rank, *(1 for _ in shape[2:])))
    yield TensorSpec(f"{key}.{down}.weight", dtype, (rank, *shape[1:]))
    if not key.startswith(DIFFUSERS_KEYS):
        yield TensorSpec(f"{key}.alpha", dtype, ())


def low_rank(key: str, up: Tensor, down: Tensor, shape: Shape, dtype: DType) -> dict[str, Tensor]:
    """``up`` [out, r] and ``down`` [r, in·kh·kw] as a LoRA of scale 1 (alpha = rank) for a parameter of ``shape``."""
    rank = up.shape[1]
    alpha = torch.tensor(float(rank)).to(dtype.torch)
    specs = tuple(low_rank_specs(key, shape, rank, dtype))
    if len(specs) > 2:
        up = up * (rank / float(alpha))  # bf16 has no 257
    parts = (up, down, alpha)[: len(specs)]
    return {spec.name: rounded(spec, part) for spec, part in zip(specs, parts, strict=True)}


def balanced(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with each rank's two vectors alike in size, so that neither falls below fp16's normal numbers.

    Only powers of two move from one to the other: nothing is rounded.
    """
    rms_up, rms_down = up.square().mean(0).sqrt(), down.square().mean(1).sqrt()
    exponent = ((rms_down / rms_up).log2() / 2).round().nan_to_num(0, 0, 0)
    return up * exponent.exp2(), down * (-exponent).exp2()[:, None]


def rounded(spec: TensorSpec, tensor: Tensor) -> Tensor:
    """Raises NumericError where the dtype has no such number."""
    final = tensor.to(spec.dtype.torch).reshape(spec.shape)
    if not bool(final.isfinite().all()):
        raise NumericError(f"{spec.name}: overflows {spec.dtype.torch_name}", "choose --dtype fp32")
    return final


@dataclass(frozen=True, slots=True)
class LoraOrigin:
    """What a LoRA is for, and how it came about. ``variant``: None where nobody knows; ``more``: further metadata."""

    arch: Architecture
    variant: Variant | None
    title: str
    recipe: Mapping[str, Any]
    more: Mapping[str, str] = field(default_factory=dict)

    def metadata(self, sha256: str | None, ranks: Mapping[float, float], *, whole: bool = False) -> dict[str, str]:
        """ModelSpec, kohya's keys and the recipe. ``ranks``: rank → alpha; ``whole``: there are plain differences."""
        variant = self.variant or modelspec.usual(self.arch)
        names = modelspec.implementation(self.arch, SINGLE_FILE if self.arch.denoiser.kohya_stored else DIFFUSERS)
        return {
            **modelspec.spec(
                f"{variant.modelspec}/lora", names, self.title, modelspec.pixels(variant), sha256 or UNKNOWN
            ),
            **modelspec.network(self.variant, ranks, whole=whole),
            RECIPE: canonical_json({"version": __version__, **self.recipe}),
            **self.more,
        }
