"""What of a model to be drawn its headers and configs tell; no library that draws is loaded for it."""

from __future__ import annotations

from pathlib import Path

from lcmmerge import refs
from lcmmerge.archs import Model
from lcmmerge.draw.jobs import Size
from lcmmerge.errors import FormatError, IncompatibleError
from lcmmerge.merge.configs import check_configs
from lcmmerge.refs.weights import DIFFUSERS, local_tree, read_json


def check_drawable(model: Model) -> None:
    """Refuse what makes no image of a text alone. Raises IncompatibleError."""
    path = model.source.path
    family = model.arch.family
    if not family.pipeline:
        raise IncompatibleError(
            f"{path}: {model.arch.title} is merged here, and not drawn yet", "draw the merged file with diffusers"
        )
    kind = "refiner" if family.from_image else model.purpose
    if kind != "base":
        raise IncompatibleError(
            f"{path}: {model.arch.title}, {kind}: draws from an image, not from a text alone",
            "give a text-to-image checkpoint",
        )
    if lacking := model.lacking:
        raise IncompatibleError(f"{path}: has no {', '.join(lacking)}", "give a whole checkpoint")
    if missing := model.missing:
        raise IncompatibleError(
            f"{path}: lacks {len(missing)} tensors, the first of them {missing[0]!r}", "download or make it again"
        )


def configs_of(model: Model, config_from: str | None = None) -> Path:
    """The folder of a model's configs, scheduler and tokenizers: its own, else its architecture's on the Hub.

    Raises NotFoundError, FormatError, ShapeMismatchError.
    """
    awaited = model.source.awaited
    if config_from or model.layout != DIFFUSERS:
        configs = refs.configs(config_from or f"hf://{model.arch.hub}")
    else:
        configs = refs.configs(awaited.repository.reference.text) if awaited else model.source.path
    check_configs(configs, model)
    return configs


def native_size(configs: Path) -> Size:
    """The size in pixels that it was trained at. Raises NotFoundError, FormatError."""
    tree = local_tree(configs)
    try:
        sample = read_json(tree, "unet/config.json")["sample_size"]
        height, width = (sample, sample) if isinstance(sample, int) else sample
        scale = 2 ** (len(read_json(tree, "vae/config.json")["block_out_channels"]) - 1)
        return width * scale, height * scale
    except (KeyError, TypeError, ValueError):
        raise FormatError(f"{configs}: does not say at what size the U-Net was trained", "give a --size") from None
