from __future__ import annotations

import click

from lcmmerge.cli.common import output_options
from lcmmerge.output import Output, size


@click.command(short_help="Say what this machine has: versions, devices, caches, extras.")
@output_options
def doctor(output: Output) -> None:
    """Say what this machine gives lcmmerge, and what is missing. Put it into a bug report.

    The exit code is 1 where something that every command needs is missing or of a version that does not fit.

    \b
      lcmmerge doctor
      lcmmerge doctor --json
    """
    from lcmmerge.doctor import check_up
    from lcmmerge.errors import LcmMergeError

    found = check_up()
    if output.as_json:
        output.json(found.as_dict())
    output.text(found.system)
    output.text(*found.devices)
    providers = ", ".join(found.providers) if found.providers else "not installed: see the extra export"
    output.text(f"ONNX Runtime: {providers}")
    for place in found.places:
        held = "" if place.held is None else f"{size(place.held)} there, "
        output.text(f"{place.what}: {place.path}, {held}{size(place.free)} free")
    output.table(
        "",
        ("package", "wanted", "found"),
        [(package.name, package.wanted, package.found or "missing") for package in found.packages],
    )
    output.table(
        "",
        ("extra", "adds", "state"),
        [
            (extra.name, extra.gain, f"lacks {', '.join(extra.lacking)}" if extra.lacking else "there")
            for extra in found.extras
        ],
    )
    if found.faults:
        names = ", ".join(f"{package.name}{package.wanted}" for package in found.faults)
        raise LcmMergeError(f"{names}: missing, or another version", "install lcmmerge anew: pip install -e .")
