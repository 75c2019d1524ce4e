from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from lcmmerge.cli import candidates
from lcmmerge.cli.candidates import NameType
from lcmmerge.cli.common import output_options
from lcmmerge.output import Output

if TYPE_CHECKING:
    from lcmmerge.accelerators import Accelerator


@click.command(short_help="List the public acceleration LoRAs, and how to draw with each.")
@click.argument("arch", type=NameType(candidates.architectures), required=False)
@output_options
def accelerators(arch: str | None, output: Output) -> None:
    """List the names that `lcmmerge fuse --lcm` takes, of all architectures or of ARCH (sd1, sdxl …).

    Steps and guidance are where to begin, and in brackets the range that the authors give. Guidance 0 and 1 are both
    off. With -v also the files and the sources.

    \b
      lcmmerge accelerators sdxl
      lcmmerge fuse base.safetensors style.safetensors --lcm hyper-8steps
    """
    from lcmmerge.accelerators import ENTRIES
    from lcmmerge.archs import architectures

    if arch and arch not in architectures():
        raise click.BadParameter(f"{arch!r} is none of {', '.join(architectures())}", param_hint="ARCH")
    found = [entry for entry in ENTRIES if not arch or arch in entry.files]
    if output.as_json:
        output.json([entry.as_dict() for entry in found])
        return
    _show(found, output)


def _show(found: Sequence[Accelerator], output: Output) -> None:
    output.table("", ("name", "for", "scheduler", "steps", "guidance"), [_row(entry) for entry in found], numbers=2)
    for entry in found:
        if entry.remark:
            output.text(f"{entry.name}: {entry.remark}.")
        if entry.restriction:
            output.text(f"{entry.name}: {entry.licence}, {entry.restriction}.")
        if entry.unverified:
            output.text(f"{entry.name}: unverified, its authors do not state its {' and '.join(entry.unverified)}.")
    for entry in found if output.verbose else ():
        output.text(f"{entry.name}:")
        for reference in (*entry.files.values(), *entry.sources):
            output.text(f"  {reference}")


def _row(entry: Accelerator) -> tuple[object, ...]:
    sampling = entry.sampling
    arguments = [f"{key} {value:g}" for key, value in sampling.arguments.items()]
    scheduler = ", ".join([sampling.scheduler.removesuffix("Scheduler"), *arguments])
    return entry.name, ", ".join(entry.files), scheduler, sampling.steps, sampling.guidance
