"""What commands share: the output options and the types of arguments."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lcmmerge.output import Output, parse_size, ratio
from lcmmerge.tensors.dtypes import OUTPUT_DTYPES

if TYPE_CHECKING:
    from lcmmerge.merge.lorafile import Layer

DTYPE = click.Choice(list(OUTPUT_DTYPES))
ADAPTER_DTYPE = click.Choice(["fp32", "fp16", "bf16"])


class Bytes(click.ParamType[int]):
    """``5GB``, ``500MiB``, ``1000000``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def target_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``-o`` for the file that must be written, and ``--force``."""
    command = click.option("--force", is_flag=True, help="Replace the output.")(command)
    file = click.Path(path_type=Path)
    return click.option("-o", "--output", "target", type=file, required=True, help="The file to write.")(command)


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


def show_layers(layers: Sequence[Layer], output: Output) -> None:
    """What became of each parameter of an adapter file."""
    rows = [
        (layer.name, layer.rank or "whole", ratio(layer.square**0.5), f"{layer.energy:.2%}") for layer in layers
    ]
    output.table("", ("parameter", "rank", "‖Δ‖", "energy kept"), rows, numbers=3)
