"""What commands share: the output options and the types of arguments."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import wraps
from math import isfinite
from typing import TYPE_CHECKING, Any

import click

from lcmmerge.bake.outcome import MOST_WORKERS
from lcmmerge.draw.jobs import MOST_IMAGES, MOST_STEPS
from lcmmerge.output import Output, parse_size, ratio
from lcmmerge.tensors.dtypes import LARGEST, OUTPUT_DTYPES

if TYPE_CHECKING:
    from lcmmerge.draw.jobs import Size
    from lcmmerge.lora.lorafile import LoraLayer

DTYPE = click.Choice(list(OUTPUT_DTYPES))
ADAPTER_DTYPE = click.Choice(["fp32", "fp16", "bf16"])
# Bounds that no real use meets: beyond them a slip of a finger takes all of a machine's memory.
THREADS = click.IntRange(0, MOST_WORKERS)
SEEDS = click.IntRange(0, 2**32 - 1)
IMAGES = click.IntRange(1, MOST_IMAGES)  # also those, or the examples, that are in memory at once
STEPS = click.IntRange(1, MOST_STEPS)
RANK = click.IntRange(1, 16_384)  # a matrix has no larger one


class Bytes(click.ParamType[int]):
    """A size in bytes. ``5GB``, ``500MiB``, ``1000000``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Number(click.FloatRange):
    """A finite number: NaN is within every range of click's."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class Strength(click.ParamType[float]):
    """λ: a number of float32."""

    name = "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = click.FLOAT.convert(value, param, ctx)
        if not abs(number) <= LARGEST:
            self.fail(f"{value!r} is not a finite number of float32: give a λ such as 0.8.", param, ctx)
        return number


STRENGTH = Strength()


class Pixels(click.ParamType["tuple[int, int]"]):
    """The size of an image. ``768x512``: width × height."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Size:
        from lcmmerge.draw.jobs import parse_size

        try:
            return parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class TargetType(click.Path):
    """What ``-o`` names; a slash at its end says that it is a folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from lcmmerge.tensors.targets import target_of

        return target_of(str(super().convert(value, param, ctx)))


def target_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``-o`` for the file that must be written, or the folder that it goes into, and ``--force``."""
    command = click.option("--force", is_flag=True, help="Replace the output.")(command)
    text = "The file to write, or a folder for it that is there."
    return click.option("-o", "--output", "target", type=TargetType(), required=True, help=text)(command)


def output_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--json``, ``-q`` and ``-v``, and hand the command an ``output``."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
    @click.option("-q", "--quiet", is_flag=True, help="Print data and errors only.")
    @click.option("-v", "--verbose", is_flag=True, help="Print details too.")
    @wraps(command)
    def with_output(*args: Any, as_json: bool, quiet: bool, verbose: bool, **kwargs: Any) -> None:
        if quiet:
            os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        command(*args, output=Output(as_json, quiet, verbose), **kwargs)

    return with_output


def few(names: Sequence[str], output: Output) -> str:
    """The first three names; all of them with ``-v``."""
    shown = names if output.verbose else names[:3]
    return ", ".join(shown) + (", … (all with -v)" if len(names) > len(shown) else "")


def show_layers(layers: Sequence[LoraLayer], output: Output) -> None:
    """What became of each parameter of an adapter file."""
    rows = [
        (layer.name, layer.rank or "whole", ratio(layer.square**0.5), f"{layer.energy:.2%}") for layer in layers
    ]
    output.table("", ("parameter", "rank", "‖Δ‖", "energy kept"), rows, numbers=3)
