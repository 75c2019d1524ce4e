from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lcmmerge.cli.common import output_options
from lcmmerge.cli.generate import PROVIDERS, Pixels
from lcmmerge.output import Output
from lcmmerge.sample import quiet_libraries


@click.command(short_help="Time an export's graphs beside torch.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--provider", type=PROVIDERS, help="[default: the fastest that is usable here]")
@click.option("--size", "sizes", type=Pixels(), multiple=True, metavar="WxH", help="[default: the model's own]")
@click.option("--component", "components", multiple=True, metavar="NAME", help="Such as unet.  [default: all]")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images at once.")
@click.option("--repeats", type=click.IntRange(1), default=7, show_default=True, help="Calls that count.")
@click.option("--warmup", type=click.IntRange(0), default=2, show_default=True, help="Calls before them.")
@click.option("--compile/--no-compile", "compiled", default=True, help="Compare with torch.compile.  [default: yes]")
@output_options
def bench(folder: Path, output: Output, **given: Any) -> None:
    """Time each graph of the export FOLDER beside torch eager and torch.compile, with the same weights and inputs.

    All take turns in one run, on one device and as many threads as torch has; the median counts.

    \b
      lcmmerge bench merged-onnx --component unet --size 512x512 --size 768x512
      lcmmerge bench merged-onnx --no-compile --json
    """
    quiet_libraries()
    from lcmmerge.graphs.bench import Asked, table
    from lcmmerge.graphs.bench import bench as run

    asked = Asked(**given)
    found = run(folder, asked, output)
    if output.as_json:
        output.json(found.as_dict())
    columns = ("component", "size", "by", "median ms", "least ms", "× eager")
    output.table("", columns, table(found.rows), numbers=3)
    turns = f"{asked.repeats} calls each in turns, after {asked.warmup}"
    output.text(f"{turns}; batch {asked.batch}; {found.device}, {found.threads} threads")
