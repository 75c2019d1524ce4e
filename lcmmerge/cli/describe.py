from __future__ import annotations

import click

from lcmmerge.cli.candidates import REFERENCE
from lcmmerge.output import Output


@click.command(short_help="Draft the file of a family that is not there.")
@click.argument("base", type=REFERENCE)
@click.argument("diffusers_folder", type=REFERENCE, required=False)
def describe(base: str, diffusers_folder: str | None) -> None:
    """Draft a file for lcmmerge/archs, for a contributor: Python on stdout, from headers alone.

    BASE is a checkpoint by its own names, DIFFUSERS_FOLDER the same model by diffusers', or without it BASE is that.
    Rows are found by like names and equal shapes, lists of blocks by their numbers; what is not found stands there as a
    comment. Halves that are swapped, and the order of what is fused, no header tells.

    \b
      lcmmerge describe model.safetensors model-diffusers > lcmmerge/archs/model.py
    """
    from lcmmerge.archs.describe import draft
    from lcmmerge.tensors.remote import open_reference

    folder = open_reference(diffusers_folder, "diffusers folder") if diffusers_folder else None
    Output().text(*draft(open_reference(base, "base"), folder).splitlines())
