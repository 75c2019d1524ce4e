"""An adapter made for a tensor that is several canonical parameters: its ΔW, through their views.

ΔW is computed for the tensor that the adapter was made for, and each parameter takes its part. With ΔW = s·B·A the
part's rows of B are exact; what is no product is formed whole, and what depends on W gets that tensor put together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lcmmerge.adapters import AdapterFile, Dense, Dependent, Factored, Patch, Update, algorithm, named
from lcmmerge.archs import Home, Model, Parameter, View, tiles
from lcmmerge.errors import IncompatibleError
from lcmmerge.terms.operand import Operand

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]
CHANNELS = (4, 5, 8, 9)  # of latents, with a depth, with another picture, with a mask and a masked picture


@dataclass(frozen=True, slots=True)
class Place:
    """A parameter as a part of the tensor that an adapter was made for.

    ``view``: where it lies in that tensor of ``shape``; ``parts``: all parameters that make the tensor up, with theirs.
    """

    view: View
    shape: Shape
    parts: tuple[tuple[View, Operand], ...]

    def through(self, update: Update) -> Update:
        """The parameter's part of ΔW."""
        view = self.view
        if isinstance(update, Dense):
            return Dense(view.take(update.delta))
        if isinstance(update, Factored):
            if view.transposed:
                return Factored(update.down.T, update.up.T)
            return Factored(view.of_rows().take(update.up), update.down)
        rows_of, rows = update.rows_of, view.rows(self.shape[0])
        if rows_of is None or len(rows) > 1 or view.transposed:
            return Dependent(lambda part: view.take(update.delta_of(self._whole(part))))
        first = rows[0][0]

        def rows_of_part(part: Tensor, chosen: slice) -> Tensor:
            begin = first + (chosen.start or 0)
            return rows_of(part, slice(begin, begin + part.shape[0]))

        return Dependent(lambda part: rows_of_part(part, slice(0, None)), rows_of_part)

    def _whole(self, like: Tensor) -> Tensor:
        """W of that tensor, on the device and in the precision of the part."""
        whole = like.new_empty(self.shape)
        for view, operand in self.parts:
            view.put(whole, operand.read().to(like.device, like.dtype))
        return whole


@dataclass(frozen=True, slots=True)
class Channels:
    """The first layer of a model whose input has another number of channels than the base's ``shape``: ΔW, computed for
    ``made_for``, goes into the channels that both have.
    """

    made_for: Shape
    base: Shape

    @property
    def shape(self) -> Shape:
        return self.made_for

    def through(self, update: Update) -> Update:
        if isinstance(update, Dense):
            return Dense(self._fitted(update.delta))
        if isinstance(update, Factored):
            return Factored(update.up, self._fitted(update.down.reshape(-1, *self.made_for[1:])).flatten(1))
        return Dependent(lambda weight: self._fitted(update.delta_of(weight[:, : self.made_for[1]])))

    def _fitted(self, delta: Tensor) -> Tensor:
        fitted = delta.new_zeros(len(delta), *self.base[1:])
        shared = min(self.made_for[1], self.base[1])
        fitted[:, :shared] = delta[:, :shared]
        return fitted


def channels_of(patch: Patch, parameter: Parameter, base: Model) -> Channels | None:
    """Where a patch is for the base's first layer with other channels; with more of them, only where ΔW is plain, and
    of a U-Net: a transformer's with more is a control LoRA's.
    """
    out, inputs, *kernel = *parameter.shape, 0, 0
    if parameter.name not in base.arch.first_layers:
        return None
    if base.arch.denoiser.name != "unet":
        told = patch.told_shape
        fewer = told and (told[0], *told[2:]) == (out, *parameter.shape[2:]) and told[1] < inputs
        return Channels(told, parameter.shape) if told and fewer else None
    if len(parameter.shape) != 4:
        return None
    adapter, plain = algorithm(patch)[1], patch.roles.keys() <= {"up", "down", "mid", "diff"}
    for count in CHANNELS:
        shape = (out, count, *kernel[:2])
        if count != inputs and not adapter.fit(patch, shape) and (plain or count < inputs):
            return Channels(shape, parameter.shape)
    return None


def home_parameters(home: Home, patch: Patch, base: Model) -> list[Parameter] | None:
    """The base's parameters that a patch is for; None where it lacks one. A bare parameter is its own module."""
    names = [f"{module}.{patch.parameter}" for module, _ in home.parts]
    if patch.parameter == "weight" and home.module in base.parameters:
        names = [home.module]
    return [base.parameters[name] for name in names] if all(name in base.parameters for name in names) else None


def fits_in(file: AdapterFile, base: Model, key: str, home: Home) -> bool:
    """Whether all that the adapter has for a module is for a tensor of the base's size."""
    for patch in (patch for patch in file.patches if patch.key == key):
        parameters = home_parameters(home, patch, base)
        found = places(views_of(home, patch, base), parameters) if parameters else None
        if not parameters or not found:
            return False
        shape = found[0].shape if found[0] else parameters[0].shape
        if algorithm(patch)[1].fit(patch, shape):
            return False
    return True


def views_of(home: Home, patch: Patch, base: Model | None) -> list[View]:
    """Where a patch's parts lie in the tensor that it was made for. Raises IncompatibleError where only a base tells.

    A model's own state dict with an adapter in it, of a model whose shards have q, k and v head by head, has them so.
    """
    views = [view if patch.parameter == "weight" else view.of_rows() for _, view in home.parts]
    if not home.head or not named(patch):
        return views
    if base is None:
        raise IncompatibleError(f"{patch.path}: {patch.key} is q, k and v head by head", "name the model with --base")
    return [replace(view, head=base.parameters[home.head].shape[0]) for view in views]


def places(views: Sequence[View], parameters: Sequence[Parameter]) -> Sequence[Place | None] | None:
    """Where each parameter lies in the tensor that they make up; None where they make up none."""
    shapes = [parameter.shape for parameter in parameters]
    if len(views) == 1 and views[0].is_whole and views[0].stored_shape(shapes[0])[:1] == shapes[0][:1]:
        return [None]
    found = tiles(views, shapes)
    if found is None:
        return None
    operands = [Operand.of_parameter(parameter.name, parameter) for parameter in parameters]
    parts = tuple(zip(views, operands, strict=True))
    return [Place(view, found[0], parts) for view in views]
