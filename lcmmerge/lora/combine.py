"""λ-weighted LoRAs → one LoRA: Σ λᵢ sᵢ BᵢAᵢ = [λ₁s₁B₁ λ₂s₂B₂ …] [A₁; A₂; …], exactly, by concatenating ranks.

No base is needed: modules are matched by what the architecture calls them, however each file spells them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lcmmerge import history
from lcmmerge.adapters import Dense, Dependent, Factored
from lcmmerge.archs import Model, modelspec
from lcmmerge.bake.arithmetic import factored_square, read_roles
from lcmmerge.errors import IncompatibleError, NoEffectError, NumericError
from lcmmerge.lora import lorafile
from lcmmerge.lora.alignment import AlignedParameter, Share, WeightedAdapter, align, common_architectures
from lcmmerge.lora.lorafile import LoraLayer, LoraOrigin, Made
from lcmmerge.lora.lowrank import product_spectrum, spectrum, squared_norm
from lcmmerge.refs import name_of
from lcmmerge.tensors import DTYPES, DType
from lcmmerge.tensors.digest import sha256_of
from lcmmerge.tensors.layout import TensorSpec
from lcmmerge.tensors.targets import check_target

HEADROOM = 1 << 20


@dataclass(frozen=True, slots=True)
class CombineSettings:
    """How LoRAs become one.

    ``rank``: recompress to it, None keeps all ranks; ``dtype``: None is the widest of the inputs'.
    """

    rank: int | None = None
    dtype: DType | None = None


@dataclass(frozen=True, slots=True)
class Combined:
    """What a combination wrote."""

    output: str
    layers: tuple[LoraLayer, ...]

    @property
    def energy(self) -> float:
        """The share of ‖ΔW‖² that recompression kept."""
        return sum(layer.kept for layer in self.layers) / sum(layer.square for layer in self.layers)

    def as_dict(self) -> dict[str, Any]:
        layers = [layer.as_dict() for layer in self.layers]
        return {"output": self.output, "energy": self.energy, "layers": layers}


def combine(
    terms: Sequence[WeightedAdapter],
    target: Path,
    settings: CombineSettings,
    base: Model | None = None,
    *,
    force: bool = False,
) -> Combined:
    """Write Σ λᵢτᵢ as one LoRA. What is on the Hub is downloaded once it is known to fit.

    Raises IncompatibleError (different architectures; an algorithm whose ΔW depends on the base, or needs ``rank``),
    UnmatchedKeysError, ShapeMismatchError, NoEffectError, NumericError, OutputError, NotFoundError.
    """
    terms = [term for term in terms if term.strength]
    if not terms:
        raise NoEffectError("every λ is 0, so nothing would be left", "give at least one other λ")
    archs = (base.arch,) if base else common_architectures(terms)
    arch = archs[0]
    dtype = settings.dtype or _widest(terms)
    targets = list(align(terms, arch, base))
    specs = [spec for target in targets for spec in _specs(target, settings.rank, dtype)]
    files = [path for term in terms for path in term.file.source.files]
    check_target(target, force=force, needed=sum(spec.nbytes for spec in specs) + HEADROOM, inputs=files)
    for term in terms:
        term.file.source.fetch()
    names = [name_of(term.path) for term in terms]
    said = [term.file.source.metadata for term in terms]
    hashes = [sha256_of(term.file.source.files, known=term.file.source.sha256) for term in terms]
    origin = LoraOrigin(
        arch,
        modelspec.variant_of(base) if base else modelspec.told_variant(archs, said),
        " + ".join(Path(name).stem for name in names),
        _recipe(terms, hashes, settings.rank, dtype),
        {
            "modelspec.merged_from": ", ".join(names),
            **modelspec.triggers(said),
            **modelspec.tags({Path(name).stem: metadata for name, metadata in zip(names, said, strict=True)}),
            history.MODELS: history.canonical_json(_models(terms, hashes)),
        },
    )
    make = partial(_make, settings.rank, dtype)
    sources = [term.file.source for term in terms]
    layers = lorafile.write_adapter(target, targets, make, specs, lambda final: origin, sources=sources, force=force)
    return Combined(str(target), layers)


def _widest(terms: Iterable[WeightedAdapter]) -> DType:
    """The narrowest dtype that holds every input's numbers, fp16 at least."""
    infos = [info for term in terms for patch in term.file.patches for info in patch.roles.values()]
    names = {info.dtype.name for info in infos if info.dtype.itemsize > 1}
    if not names <= {"F16", "BF16"} or len(names) > 1:
        return DTYPES["F32"]
    return DTYPES[names.pop() if names else "F16"]


def _specs(target: AlignedParameter, rank: int | None, dtype: DType) -> Iterator[TensorSpec]:
    """The most that a parameter can take in the file."""
    if len(target.shape) < 2:
        yield TensorSpec(f"{target.key}.{target.role}", dtype, target.shape)
        return
    most = min(target.shape[0], prod(target.shape[1:]))
    ranks = [share.patch.shape("up")[1] if "up" in share.patch.roles else most for share in target.shares]
    yield from lorafile.low_rank_specs(target.key, target.shape, min(rank or sum(ranks), sum(ranks)), dtype)


def _make(rank: int | None, dtype: DType, made: Made[AlignedParameter]) -> None:
    target, pairs, delta = made.item, [], None
    for share in target.shares:
        match _update(share, target):
            case Factored(up, down):
                pairs.append(lorafile.balanced(up * share.term.strength, down))
            case Dense(part):
                delta = share.term.strength * part + (0 if delta is None else delta)
    if len(target.shape) < 2:
        assert delta is not None
        (spec,) = _specs(target, rank, dtype)
        made.tensors, norm = {spec.name: lorafile.rounded(spec, delta)}, squared_norm(delta)
        made.layer = LoraLayer(target.name, norm, norm)
        return
    factors = Factored(torch.cat([up for up, _ in pairs], 1), torch.cat([down for _, down in pairs])) if pairs else None
    best, made.layer = _approximate(target, factors, delta, rank)
    made.tensors = lorafile.low_rank(target.key, best.up, best.down, target.shape, dtype)


def _update(share: Share, target: AlignedParameter) -> Factored | Dense:
    """Read one term's part. Raises IncompatibleError where only the base tells it."""
    tensors = read_roles(share.patch, "cpu")
    place = share.place
    update = share.adapter.update(share.patch, tensors, place.shape if place else target.shape)
    update = place.through(update) if place else update
    if isinstance(update, Dependent):
        raise IncompatibleError(
            f"{share.term.path}: {share.patch.key} is {share.adapter.title}, whose ΔW depends on the base",
            "fuse it into its base with `lcmmerge fuse`",
        )
    norm = factored_square(update) if isinstance(update, Factored) else squared_norm(update.delta)
    if not isfinite(norm):
        raise NumericError(f"{share.term.path}: {share.patch.key} holds NaN or Inf", "the file is damaged")
    return update


def _approximate(
    target: AlignedParameter, factors: Factored | None, delta: Tensor | None, rank: int | None
) -> tuple[Factored, LoraLayer]:
    """The best factors of ``factors`` + ``delta``, and what they keep of it."""
    if rank is None and delta is not None:
        path = target.shares[0].term.path
        cause = f"{path}: {target.name} is not a product of two factors"
        raise IncompatibleError(cause, "give --rank to approximate it")
    if factors and delta is None and (rank is None or factors.up.shape[1] <= rank):
        norm = max(factored_square(factors), 0.0)
        return factors, LoraLayer(target.name, norm, norm, factors.up.shape[1])
    assert rank is not None
    if delta is not None:
        matrix = delta.flatten(1)
        found = spectrum(matrix + factors.up @ factors.down if factors else matrix, rank, target.name)
    else:
        assert factors is not None
        found = product_spectrum(factors.up, factors.down)
    rank = found.enough(rank, None)
    kept = float(found.energies()[rank - 1]) * found.square if found.square else 0.0
    return Factored(*found.factors(rank)), LoraLayer(target.name, found.square, kept, rank)


def _recipe(
    terms: Sequence[WeightedAdapter], hashes: Sequence[str], rank: int | None, dtype: DType
) -> Mapping[str, Any]:
    named = [
        {
            "name": name_of(term.path),
            "sha256": sha256,
            "lambda": term.strength,
            **({"alpha": term.alpha} if term.alpha is not None else {}),
        }
        for term, sha256 in zip(terms, hashes, strict=True)
    ]
    return {"type": "lcmmerge combine", "terms": named, "rank": rank, "dtype": dtype.name}


def _models(terms: Sequence[WeightedAdapter], hashes: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for term, sha256 in zip(terms, hashes, strict=True):
        source = term.file.source
        found |= history.recorded_models(source) | history.model_entry(source, sha256)
    return found
