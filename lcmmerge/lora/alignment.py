"""Which parameters several adapters share, however each spells them, without a base. Headers only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lcmmerge.adapters import Adapter, AdapterFile, Patch, algorithm, check_alpha, read_adapter
from lcmmerge.archs import (
    Architecture,
    Home,
    Model,
    guess_architecture,
    kohya_name,
    likely_architectures,
    module_of,
    names_in,
    names_of,
    supported,
)
from lcmmerge.errors import FormatError, IncompatibleError, ShapeMismatchError, UnmatchedKeysError
from lcmmerge.merge.spec import check_strength
from lcmmerge.tensors import TensorSource
from lcmmerge.terms.places import Place, fits_in, home_parameters, places, views_of

Shape = tuple[int, ...]
WHOLE = ("diff", "diff_b", "w_norm", "b_norm")  # roles that say their parameter's shape themselves
NAME_BASE = "name the model with --base"


@dataclass(frozen=True, slots=True)
class WeightedAdapter:
    """λ times the adapter in ``file``. ``alpha``: as it was given, where the file has none."""

    file: AdapterFile
    strength: float
    alpha: float | None = None

    @property
    def path(self) -> Path:
        return self.file.source.path


@dataclass(frozen=True, slots=True)
class Share:
    """What one term brings to a parameter.

    ``place``: where the parameter lies in the tensor that the adapter was made for, None where it is that tensor.
    """

    term: WeightedAdapter
    patch: Patch
    adapter: Adapter
    place: Place | None


@dataclass(frozen=True, slots=True)
class AlignedParameter:
    """A canonical parameter of ``shape``; stored under ``key`` as a LoRA or, where it is a vector, as ``role``."""

    name: str
    key: str
    role: str
    shape: Shape
    shares: tuple[Share, ...]


def term_of(source: TensorSource, strength: float, alpha: float | None = None) -> WeightedAdapter:
    """Raises OptionError (λ is no number), FormatError (no adapter), UnmatchedKeysError (more in it than patches)."""
    check_strength(source.path.name, strength)
    check_alpha(source.path.name, alpha)
    file = read_adapter(source, alpha=alpha)
    if not file.patches:
        raise FormatError(f"{source.path}: is not an adapter that we know", "look at it with `lcmmerge inspect`")
    if strangers := (*file.embeddings, *file.unknown):
        raise UnmatchedKeysError(
            f"{source.path}: {len(strangers)} of its tensors patch no weight and would be lost, such as {strangers[0]}",
            "embeddings belong in a file of their own",
        )
    return WeightedAdapter(file, strength, alpha)


def common_architectures(terms: Sequence[WeightedAdapter]) -> Sequence[Architecture]:
    """Those that all terms may be made for. Raises IncompatibleError."""
    common: list[Architecture] = []
    for term in terms:
        found = likely_architectures(term.file.modules)
        if not found:
            guess = guess_architecture(term.file.modules)
            made_for = f"looks made for {guess}" if guess else "names no module that we know"
            raise IncompatibleError(f"{term.path}: {made_for}", supported())
        if common and not set(found) & set(common):
            others = f"the adapters before it for {common[0].title}"
            raise IncompatibleError(
                f"{term.path}: looks made for {found[0].title}, {others}",
                f"they belong to different models; if not, {NAME_BASE}",
            )
        common = [arch for arch in common or found if arch in found]
    return common


def align(terms: Sequence[WeightedAdapter], arch: Architecture, base: Model | None) -> Iterator[AlignedParameter]:
    """The parameters in order of first appearance."""
    shares: dict[str, list[Share]] = {}
    for term in terms:
        fits = partial(fits_in, term.file, base) if base else lambda key, home: True
        homes = (names_in(base) if base else names_of(arch)).settle(term.file.modules, fits)
        for patch in term.file.patches:
            for name, share in _shares(term, patch, homes.get(patch.key), arch, base):
                found = shares.setdefault(name, [])
                if found and found[-1].term is term:
                    raise FormatError(
                        f"{term.path}: two of its keys patch {name}",
                        "the file mixes two naming schemes: export it again",
                    )
                found.append(share)
    for name, group in shares.items():
        yield _target(name, tuple(group), arch, base)


def _shares(
    term: WeightedAdapter, patch: Patch, home: Home | None, arch: Architecture, base: Model | None
) -> Iterator[tuple[str, Share]]:
    """What a patch brings to each parameter that it is for."""
    parameters = home_parameters(home, patch, base) if home and base else None
    if home is None or (base and parameters is None):
        raise UnmatchedKeysError(f"{term.path}: {patch.key} is not a module of {arch.title}", NAME_BASE)
    adapter, views = algorithm(patch)[1], views_of(home, patch, base)
    found: Sequence[Place | None] | None
    if parameters is None:
        alone = len(views) == 1 and views[0].is_whole
        found = [None if alone else Place(view, _told_shape(term, patch, adapter), ()) for view in views]
    else:
        found = places(views, parameters)
    if found is None:
        raise ShapeMismatchError(f"{term.path}: {patch.key}: its parts make up no tensor", "they fit different models")
    names = [p.name for p in parameters or ()] or [f"{module}.{patch.parameter}" for module, _ in home.parts]
    for name, place in zip(names, found, strict=True):
        yield name, Share(term, patch, adapter, place)


def _target(name: str, shares: tuple[Share, ...], arch: Architecture, base: Model | None) -> AlignedParameter:
    module = module_of(name)
    first = shares[0]
    if base:
        shape = base.parameters[name].shape
    elif first.place:
        shape = first.place.view.shape(first.place.shape)
    else:
        shape = _told_shape(first.term, first.patch, first.adapter)
    for share in shares:
        if misfit := share.adapter.fit(share.patch, share.place.shape if share.place else shape):
            raise ShapeMismatchError(f"{share.term.path}: {share.patch.key}: {misfit}", "they fit different models")
    roles = [role for share in shares for role in WHOLE if role in share.patch.roles]
    return AlignedParameter(name, kohya_name(module, arch) or module, roles[0] if roles else "diff_b", shape, shares)


def _told_shape(term: WeightedAdapter, patch: Patch, adapter: Adapter) -> Shape:
    """The shape of the tensor that a patch was made for, where the adapter tells it."""
    if (shape := patch.told_shape) is None:
        raise IncompatibleError(
            f"{term.path}: {patch.key} is {adapter.title}, which does not tell its parameter's shape",
            f"{NAME_BASE}, or merge it with `lcmmerge fuse`",
        )
    return shape
