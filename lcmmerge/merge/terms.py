"""The terms λᵢτᵢ of θ′ = θ_pre + Σ λᵢτᵢ, and which parameters each one reaches. Headers only.

A task vector is factored (an adapter's few small tensors per parameter) or dense (another checkpoint minus its base).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lcmmerge.adapters import Adapter, AdapterFile, Patch, algorithm, read_adapter
from lcmmerge.archs import Model, Parameter, guess_architecture, identify, likely_architectures, names_of
from lcmmerge.errors import FormatError, IncompatibleError, ShapeMismatchError, UnmatchedKeysError
from lcmmerge.merge.blocks import BlockWeights
from lcmmerge.merge.operand import Operand
from lcmmerge.merge.places import Place, home_parameters, places, views_of
from lcmmerge.tensors import TensorSource


@dataclass(frozen=True, slots=True)
class Adapted:
    """An adapter's ΔW for one parameter, times ``strength`` (λ × block weight).

    ``place``: where the parameter lies in the tensor that the adapter was made for, None where it is that tensor.
    """

    term: int
    strength: float
    adapter: Adapter
    patch: Patch
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """θ_ft − θ_base of one parameter, times ``strength``."""

    term: int
    strength: float
    tuned: Operand
    origin: Operand


Contribution = Adapted | Difference


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole fine-tuned checkpoint and the one it was tuned from."""

    tuned: Model
    origin: Model


@dataclass(frozen=True, slots=True)
class TaskVector:
    """A term that was opened: what is added, and λ.

    ``name``: ``style``, ``lcm``, or the stem of another adapter's file. ``strength``: λ.
    """

    name: str
    path: Path
    strength: float
    content: AdapterFile | Checkpoint
    weights: BlockWeights


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
) -> TaskVector:
    """An adapter, or a checkpoint that was tuned from ``origin`` (default: ``base``), by its headers.

    Raises FormatError, IncompatibleError.
    """
    adapter = read_adapter(source)
    content: AdapterFile | Checkpoint = adapter
    if not adapter.patches:
        try:
            tuned = identify(source)
        except IncompatibleError:
            raise FormatError(
                f"{source.path}: neither an adapter nor a checkpoint that we know",
                f"its first tensor is {next(iter(source.tensors), 'missing')!r}; look at it with `lcmmerge inspect`",
            ) from None
        content = Checkpoint(tuned, identify(origin) if origin else base)
    return TaskVector(name, source.path, strength, content, weights or BlockWeights())


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
    names = names_of(base.arch)
    contributions: dict[str, Contribution] = {}
    unmatched = [*term.content.embeddings, *term.content.unknown]
    for patch in term.content.patches:
        home = names.find(patch.key)
        parameters = home_parameters(home, patch, base) if home else None
        if home is None or parameters is None:
            if not patch.optional:
                unmatched.append(patch.key)
            continue
        found = places(views_of(home, patch), parameters)
        if found is None:
            sizes = ", ".join(str(list(parameter.shape)) for parameter in parameters)
            raise _misfit(term, patch.key, f"the base's {sizes} make up no tensor of its own", base)
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
                raise _misfit(term, patch.key, misfit, base)
            strength = term.strength * term.weights.of(name, base)
            contributions[name] = Adapted(index, strength, adapter, patch, place)
    return Matched(contributions, tuple(dict.fromkeys(unmatched)))


def _match_checkpoint(index: int, term: TaskVector, content: Checkpoint, base: Model) -> Matched:
    contributions: dict[str, Contribution] = {}
    unmatched = []
    for name, parameter in content.tuned.parameters.items():
        origin, home = content.origin.parameters.get(name), base.parameters.get(name)
        if origin is None or home is None:
            unmatched.append(name)
            continue
        if not parameter.shape == origin.shape == home.shape:
            raise _misfit(term, name, f"it is {list(parameter.shape)}, the base's {list(home.shape)}", base)
        if any(item.info.dtype.floating for item in (parameter, origin, home)):
            sources = (content.tuned.source, content.origin.source, base.source)
            for source, item in zip(sources, (parameter, origin, home), strict=True):
                check_floating(source, name, item)
            tuned, start = Operand.of_parameter(name, parameter), Operand.of_parameter(name, origin)
            strength = term.strength * term.weights.of(name, base)
            contributions[name] = Difference(index, strength, tuned, start)
    return Matched(contributions, tuple(unmatched))


def made_elsewhere(term: TaskVector, base: Model) -> str:
    """The architecture that an adapter's names speak for, where it is not the base's; else empty."""
    if isinstance(term.content, Checkpoint):
        return ""
    likely = likely_architectures(patch.key for patch in term.content.patches)
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
    """Why a term does not fit, as far as names tell."""
    if isinstance(term.content, Checkpoint):
        return f"the checkpoint is {term.content.tuned.arch.title}, the base {base.arch.title}"
    guess = guess_architecture(patch.key for patch in term.content.patches)
    if guess is not None and guess != base.arch.title:
        return f"the adapter looks made for {guess}, the base is {base.arch.title}"
    if term.content.embeddings:
        return "the file bundles textual-inversion embeddings, which are no weights of the model"
    components = {name.partition(".")[0] for name in base.parameters}
    return f"the base is {base.arch.title} and holds {', '.join(sorted(components))}: is it the right one, and whole?"
