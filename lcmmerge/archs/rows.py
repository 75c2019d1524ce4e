"""The order of the rows of a fused q, k and v: one below another, or alternating head by head.

Both are of the same shape, so that no header tells which a file has. MiniMax-H3's own shards alternate, and no file in
one piece that is published does; a merge of ours records it.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from lcmmerge.archs.base import Model, Parameter
from lcmmerge.errors import FormatError, OptionError
from lcmmerge.history import RECIPE, record_of
from lcmmerge.tensors import TensorSource

STACKED, INTERLEAVED = "stacked", "interleaved"
ORDERS = (STACKED, INTERLEAVED)


def ordered(model: Model, order: str | None = None) -> Model:
    """The model with its q, k and v in this order; by default as its file tells, else untold.

    Raises OptionError where it has none that could have either order, FormatError where heads do not fill its rows.
    """
    fused = [each for each in model.parameters.values() if model.arch.denoiser.head_of(each.slot)]
    if order and not fused:
        raise OptionError(f"{model.source.path}: its q, k and v have one order alone", "omit --qkv-rows")
    order = order or _told(model.source)
    parameters = {each.name: _in_order(each, model, order) for each in fused}
    return replace(model, parameters=MappingProxyType({**model.parameters, **parameters}))


def order_of(model: Model) -> str | None:
    """None where no q, k and v of it could have either order, or nothing tells which."""
    fused = [each for each in model.parameters.values() if model.arch.denoiser.head_of(each.slot) and not each.untold]
    return (INTERLEAVED if model.is_interleaved else STACKED) if fused else None


def _told(source: TensorSource) -> str:
    recorded = record_of(source, RECIPE).get("qkv_rows")
    return str(recorded) if recorded in ORDERS else "" if len(source.files) > 1 else STACKED


def _in_order(parameter: Parameter, model: Model, order: str) -> Parameter:
    head = model.parameters[model.arch.denoiser.head_of(parameter.slot)].shape[0] if order == INTERLEAVED else 0
    view, info = replace(parameter.slot.view, head=head), parameter.info
    if not view.splits(info.shape):
        raise FormatError(
            f"{info.path}: {info.name!r} of shape {list(info.shape)} is not of whole heads of {head} rows",
            "omit --qkv-rows, or download the file again",
        )
    return replace(parameter, slot=replace(parameter.slot, view=view), untold=not order)
