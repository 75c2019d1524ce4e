from __future__ import annotations

import click

from lcmmerge.cli.common import output_options
from lcmmerge.output import Output


@click.command()
@click.argument("ref")
@output_options
def inspect(ref: str, output: Output) -> None:
    """TODO"""
