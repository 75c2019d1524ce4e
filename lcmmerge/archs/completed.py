"""The parts that a base lacks (a VAE, a text encoder, a layer, a projection), taken from another checkpoint.

That is only done where it is asked for: ``--config-from`` often names a folder with weights too, and another model's
VAE or text encoder makes another model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from lcmmerge.archs.base import Model, Parameter
from lcmmerge.errors import IncompatibleError, ShapeMismatchError

CURE = "name another with --parts-from, or omit it"


def completed(base: Model, lender: Model) -> Model:
    """The base with every parameter outside its denoiser that it lacks and ``lender`` has.

    Raises IncompatibleError where they are of different families, or both lack something; ShapeMismatchError where
    widths differ.
    """
    mine, theirs = base.source.path, lender.source.path
    if lender.arch.parts[1:] != base.arch.parts[1:]:
        what = f"{theirs}: is {lender.arch.title}, whose parts are not those of {base.arch.title}"
        raise IncompatibleError(what, CURE)
    denoiser = f"{base.arch.denoiser.name}."
    lent = {
        name: parameter
        for name, parameter in lender.parameters.items()
        if name not in base.parameters and not name.startswith(denoiser)
    }
    whole = replace(base, parameters=MappingProxyType({**base.parameters, **lent}))
    if lacking := [*whole.lacking, *whole.missing]:
        more = f", and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise IncompatibleError(f"{theirs}: has no {lacking[0]} either{more}, which {mine} lacks", CURE)
    if lent:
        _refuse_other_widths(base, lender, {name.partition(".")[0] for name in lent})
    return whole


def _refuse_other_widths(base: Model, lender: Model, components: set[str]) -> None:
    """Of the text that the denoisers read, and of what both models have in a component that is lent in part."""
    widths = [model.arch.denoiser.config(model.shapes).get("cross_attention_dim") for model in (base, lender)]
    if widths[0] != widths[1]:
        what = f"{lender.source.path}: is for text of width {widths[1]}, and the base for {widths[0]}"
        raise ShapeMismatchError(what, CURE)
    mine, theirs = base.shapes, lender.shapes
    for name, shape in mine.items():
        if name.partition(".")[0] in components and theirs.get(name, shape) != shape:
            what = f"{lender.source.path}: {name} is {list(theirs[name])}, and the base's {list(shape)}"
            raise ShapeMismatchError(what, CURE)


def lent(model: Model) -> Mapping[str, Parameter]:
    """The parameters of a completed model that are not of its own files."""
    own = {*model.source.files}
    return {name: found for name, found in model.parameters.items() if found.info.path not in own}


def counted(parameters: Mapping[str, Parameter]) -> dict[str, int]:
    """Component → how many parameters of it."""
    return dict(sorted(Counter(name.partition(".")[0] for name in parameters).items()))
