"""What commands share: the output options and the types of arguments."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from lcmmerge.output import Output
from lcmmerge.tensors.dtypes import OUTPUT_DTYPES

DTYPE = click.Choice(list(OUTPUT_DTYPES))
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


class Bytes(click.ParamType[int]):
    """``5GB``, ``500MiB``, ``1000000``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?)B?", str(value).strip().upper())
        if match is None or match[2] not in _UNITS or not (nbytes := int(float(match[1]) * _UNITS[match[2]])):
            self.fail(f"{value!r} is no size: write 5GB, 500MB or 2GiB", param, ctx)
        return nbytes


def output_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--json``, ``-q`` and ``-v``, and hand the command an ``output``."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
    @click.option("-q", "--quiet", is_flag=True, help="Print data and errors only.")
    @click.option("-v", "--verbose", is_flag=True, help="Print details too.")
    @wraps(command)
    def with_output(*args: Any, as_json: bool, quiet: bool, verbose: bool, **kwargs: Any) -> None:
        command(*args, output=Output(as_json, quiet, verbose), **kwargs)

    return with_output
