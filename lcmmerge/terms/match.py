"""The terms λᵢτᵢ of θ′ = θ_pre + Σ λᵢτᵢ, and which parameters each one reaches. Headers only.

A task vector is factored (an adapter's few small tensors per parameter) or dense (another checkpoint minus its base).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lcmmerge.adapters import Adapter, AdapterFile, Dense, Patch, algorithm, read_adapter
from lcmmerge.archs import (
    Model,
    Parameter,
    architectures,
    explain_unknown,
    foreign_kind,
    guess_architecture,
    identify,
    is_ema,
    likely_architectures,
    names_in,
    patches_foreign,
)
from lcmmerge.archs.blocks import BlockWeights
from lcmmerge.archs.names import squash
from lcmmerge.errors import (
    FormatError,
    IncompatibleError,
    ShapeMismatchError,
    UnknownArchitectureError,
    UnmatchedKeysError,
)
from lcmmerge.tensors import TensorSource
from lcmmerge.terms.operand import Operand
from lcmmerge.terms.places import Channels, Place, channels_of, fits_in, home_parameters, places, views_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Adapted:
    """An adapter's ΔW for one parameter, times ``strength`` (λ × block weight).

    ``place``: where the parameter lies in the tensor that the adapter was made for, None where it is that tensor.
    """

    term: int
    strength: float
    adapter: Adapter
    patch: Patch
    place: Place | Channels | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """θ_ft − θ_base of one parameter, times ``strength``. ``place``: where their input channels are not the base's."""

    term: int
    strength: float
    tuned: Operand
    origin: Operand
    place: Channels | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.place.base if self.place else self.tuned.shape

    def read(self, device: str | torch.device, dtype: torch.dtype) -> Tensor:
        """All of it, in ``shape``, without ``strength``."""
        tuned, origin = (operand.read().to(device, dtype, copy=True) for operand in (self.tuned, self.origin))
        if self.place is None:
            return tuned.sub_(origin)
        shared = slice(0, self.place.made_for[1])
        update = self.place.through(Dense(tuned[:, shared] - origin[:, shared]))
        assert isinstance(update, Dense)
        return update.delta


Contribution = Adapted | Difference


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole fine-tuned checkpoint and the one it was tuned from."""

    tuned: Model
    origin: Model


@dataclass(frozen=True, slots=True)
class TaskVector:
    """A term that was opened: what is added, and λ.

    ``name``: ``style``, ``lcm``, or the stem of another adapter's file. ``strength``: λ. ``expert``: which of the
    base's experts it is for, None where its names tell.
    """

    name: str
    path: Path
    strength: float
    content: AdapterFile | Checkpoint
    weights: BlockWeights
    expert: str | None = None


@dataclass(frozen=True, slots=True)
class Matched:
    """What one term reaches: canonical parameter → contribution; ``unmatched`` are the keys without a home."""

    contributions: Mapping[str, Contribution]
    unmatched: tuple[str, ...]


def task_vector(
    name: str,
    source: TensorSource,
    strength: float,
    base: Model,
    *,
    origin: TensorSource | None = None,
    weights: BlockWeights | None = None,
    expert: str | None = None,
    alpha: float | None = None,
) -> TaskVector:
    """An adapter, or a checkpoint that was tuned from ``origin`` (default: ``base``), by its headers.

    ``expert``: the component that it is for, of a base with several experts. ``alpha``: of an adapter that has none.
    Raises FormatError, IncompatibleError.
    """
    found = read_content(source, alpha)
    content = Checkpoint(found, identify(origin) if origin else base) if isinstance(found, Model) else found
    _check_expert(source.path, expert, base)
    return TaskVector(name, source.path, strength, content, weights or BlockWeights(), expert)


def _check_expert(path: Path, expert: str | None, base: Model) -> None:
    """Raises IncompatibleError where the base has no such expert, or a file's name tells of another."""
    if expert and expert not in base.experts:
        known = f"its experts are {', '.join(base.experts)}" if base.experts else "it has no experts: omit --expert"
        raise IncompatibleError(f"{base.source.path}: has no expert {expert!r}", known)
    told = called_expert(path, base)
    meant = called_expert(base.source.path, base) if len(base.experts) == 1 else expert
    if told and meant and told != meant:
        names = {part.name: part.expert for part in base.arch.experts}
        raise IncompatibleError(
            f"{path}: is called {names[told]}, and is to be merged into {names[meant]}",
            "give each expert the file that was made for it",
        )


def called_expert(path: Path, base: Model) -> str | None:
    """The expert of the base's architecture that a file's name speaks of, such as ``high_noise``."""
    called = [part.name for part in base.arch.experts if part.expert in squash(path.stem.lower())]
    return called[0] if len(called) == 1 else None


def read_content(source: TensorSource, alpha: float | None = None) -> AdapterFile | Model:
    """A checkpoint may hold what is left of an adapter. Raises FormatError, UnknownArchitectureError with its kind."""
    adapter = read_adapter(source, alpha=alpha)
    if not adapter.patches or adapter.unknown or adapter.embeddings:
        try:
            return identify(source)
        except UnknownArchitectureError:
            if not adapter.patches or (adapter.unknown and foreign_kind(source)):
                raise
    if patches_foreign(adapter.modules):
        raise explain_unknown(source)
    return adapter


def check_floating(source: TensorSource, name: str, parameter: Parameter) -> None:
    """Raises IncompatibleError for integers, which are weights only together with scales that lie elsewhere."""
    if not parameter.info.dtype.floating:
        raise IncompatibleError(
            f"{source.path}: {name} is in {parameter.info.dtype.torch_name}, and λτ is added to floating point only",
            "take the checkpoint from before it was quantised",
        )


def match(index: int, term: TaskVector, base: Model) -> Matched:
    """Find the home of everything that ``term`` brings. Raises ShapeMismatchError, IncompatibleError (integers)."""
    if isinstance(term.content, Checkpoint):
        return _match_checkpoint(index, term, term.content, base)
    homes = names_in(base).settle(term.content.modules, partial(fits_in, term.content, base), term.expert)
    contributions: dict[str, Contribution] = {}
    unmatched = [*term.content.embeddings, *term.content.unknown]
    homeless: list[Patch] = []
    for patch in term.content.patches:
        home = homes.get(patch.key)
        parameters = home_parameters(home, patch, base) if home else None
        if home is None or parameters is None:
            if not patch.optional:
                homeless.append(patch)
            continue
        found = places(views_of(home, patch, base), parameters)
        if found is None:
            sizes = ", ".join(str(list(parameter.shape)) for parameter in parameters)
            raise _misfit(term, patch.key, f"the base's {sizes} make up no tensor of its own", base)
        place: Place | Channels | None
        for parameter, place in zip(parameters, found, strict=True):
            name = parameter.name
            if name in contributions:
                raise FormatError(
                    f"{term.path}: two of its keys patch {name}",
                    "the file mixes two naming schemes: export it again",
                )
            check_floating(base.source, name, parameter)
            _, adapter = algorithm(patch)
            if misfit := adapter.fit(patch, place.shape if place else parameter.shape):
                place = channels_of(patch, parameter, base)
                if place is None:
                    raise _misfit(term, patch.key, misfit, base)
            strength = term.strength * term.weights.of(name, base)
            contributions[name] = Adapted(index, strength, adapter, patch, place)
    if not all(patch.is_zero() for patch in homeless):  # a difference of zero needs no home
        unmatched += [patch.key for patch in homeless]
    return Matched(contributions, tuple(dict.fromkeys(unmatched)))


def _match_checkpoint(index: int, term: TaskVector, content: Checkpoint, base: Model) -> Matched:
    contributions: dict[str, Contribution] = {}
    common = set(_strangers(content.origin))
    unmatched = [name for name in _strangers(content.tuned) if name not in common]
    alone = len(content.tuned.experts) == 1 < len(base.experts)
    for stored, parameter in content.tuned.parameters.items():
        name = _in_expert(stored, term.expert, base) if alone else stored
        home = base.parameters.get(name or "")
        origin = content.origin.parameters.get(stored if content.origin is not base else name or "")
        if name is None or origin is None or home is None:
            unmatched.append(stored)
            continue
        same = parameter.shape == origin.shape == home.shape
        place = None if same else _shared_channels(name, (parameter, origin, home), base)
        if not same and place is None:
            raise _misfit(term, name, f"it is {list(parameter.shape)}, the base's {list(home.shape)}", base)
        if any(item.info.dtype.floating for item in (parameter, origin, home)):
            sources = (content.tuned.source, content.origin.source, base.source)
            for source, item in zip(sources, (parameter, origin, home), strict=True):
                check_floating(source, name, item)
            tuned, start = Operand.of_parameter(name, parameter), Operand.of_parameter(name, origin)
            strength = term.strength * term.weights.of(name, base)
            contributions[name] = Difference(index, strength, tuned, start, place)
    return Matched(contributions, tuple(unmatched))


def _in_expert(name: str, expert: str | None, base: Model) -> str | None:
    """A lone expert's parameter as one of the base's ``expert``; None where nobody says which of them it is for."""
    component, _, inner = name.partition(".")
    if component not in [part.name for part in base.arch.experts]:
        return name
    return f"{expert}.{inner}" if expert else None


def _shared_channels(name: str, three: tuple[Parameter, Parameter, Parameter], base: Model) -> Channels | None:
    """Where the tuned, its origin's and the base's first layers differ in their input channels alone."""
    shapes = [parameter.shape for parameter in three]
    if name not in base.arch.first_layers or len({(shape[0], *shape[2:]) for shape in shapes}) > 1:
        return None
    return Channels(min(shapes[:2]), shapes[2])


def _strangers(model: Model) -> list[str]:
    """Weights of the denoiser that its architecture has not, such as the guidance's embedding of a whole LCM."""
    denoiser = model.arch.denoiser
    begins = ("",) if model.layout == "component" else (denoiser.stored, f"{denoiser.name}.")
    return [name for name in model.leftovers if name.startswith(begins) and "lora_" not in name and not is_ema(name)]


def limits(term: TaskVector, contributions: Iterable[Contribution]) -> list[str]:
    """What is to be told of a term: a scale that nothing states, and other input channels than the base's."""
    assumed = () if isinstance(term.content, Checkpoint) else term.content.doubts
    partly = [_limit(item, item.place) for item in contributions if isinstance(item.place, Channels)]
    return [f"{term.name}: {text}" for text in (*assumed, *partly)]


def _limit(item: Contribution, place: Channels) -> str:
    made_for, base = (item.tuned.shape if isinstance(item, Difference) else place.made_for)[1], place.base[1]
    few = min(place.made_for[1], base)
    return f"made for {made_for} input channels, the base has {base}: only the first {few} change"


def made_elsewhere(term: TaskVector, base: Model) -> str:
    """The architecture of a denoiser like the base's that an adapter's names speak for; empty where it is the same."""
    if isinstance(term.content, Checkpoint) or base.arch.name not in architectures():
        return ""
    alike = [arch for arch in architectures().values() if arch.denoiser.module == base.arch.denoiser.module]
    likely = likely_architectures(term.content.modules, alike)
    return " or ".join(arch.title for arch in likely if base.arch.name not in [each.name for each in likely])


def _misfit(term: TaskVector, key: str, misfit: str, base: Model) -> ShapeMismatchError:
    return ShapeMismatchError(f"{term.path}: {key}: {misfit}", likely_cause(term, base))


def unmatched_error(term: TaskVector, unmatched: tuple[str, ...], total: int, base: Model) -> UnmatchedKeysError:
    few = ", ".join(unmatched[:3]) + (", …" if len(unmatched) > 3 else "")
    message = (
        f"{term.path}: {len(unmatched)} of its {total} keys have no home in {base.source.path.name}: {few}"
    )
    return UnmatchedKeysError(message, f"{likely_cause(term, base)}; --allow-unmatched merges the rest")


def likely_cause(term: TaskVector, base: Model) -> str:
    """Why a term does not fit, as far as names and widths tell; never that the base is what it is."""
    if len(base.experts) > 1 and not term.expert:
        return f"the base has several experts, {' and '.join(base.experts)}: say by --expert for which one it is"
    if isinstance(term.content, Checkpoint):
        tuned, origin = term.content.tuned, term.content.origin
        if {tuned.arch.title, origin.arch.title} != {base.arch.title}:
            return f"the checkpoint is {tuned.arch.title}, the base {base.arch.title}"
        if tuned.purpose != base.purpose:
            return f"both are {base.arch.title}, but the checkpoint is for {tuned.purpose}, the base for {base.purpose}"
        return f"both are {base.arch.title}, and one of them has layers or widths of its own"
    likely = likely_architectures(term.content.modules)
    guess = guess_architecture(term.content.modules)
    strange = not any(map(names_in(base).homes, term.content.modules))
    if guess is not None and base.arch.name not in [arch.name for arch in likely] and (likely or strange):
        return f"the adapter looks made for {guess}, the base is {base.arch.title}"
    if term.content.embeddings:
        return "the file bundles textual-inversion embeddings, which are no weights of the model"
    others = " or ".join(arch.title for arch in likely if arch.name != base.arch.name)
    if others:
        return f"its modules are named as those of {base.arch.title}, and of {others}: it may be made for that"
    components = {name.partition(".")[0] for name in base.parameters}
    return f"the base is {base.arch.title} and holds {', '.join(sorted(components))}: is it the right one, and whole?"
