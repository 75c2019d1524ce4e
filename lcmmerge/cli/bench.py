from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lcmmerge.cli.common import IMAGES, Pixels, output_options
from lcmmerge.cli.generate import PROVIDERS
from lcmmerge.draw import quiet_libraries
from lcmmerge.draw.jobs import MOST_IMAGES
from lcmmerge.extras import check_installed
from lcmmerge.output import Output

if TYPE_CHECKING:
    from lcmmerge.draw.jobs import Size


@click.command(short_help="Time an export's graphs beside torch.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--provider", type=PROVIDERS, help="[default: what suits the graphs here]")
@click.option("--size", "sizes", type=Pixels(), multiple=True, metavar="WxH", help="[default: the model's own]")
@click.option("--component", "components", multiple=True, metavar="NAME", help="Such as unet.  [default: all]")
@click.option("--batch", type=IMAGES, default=1, show_default=True, help="Images at once.")
@click.option("--repeats", type=IMAGES, default=7, show_default=True, help="Calls that count.")
@click.option("--warmup", type=click.IntRange(0, MOST_IMAGES), default=2, show_default=True, help="Calls before them.")
@click.option("--compile/--no-compile", "compiled", default=True, help="Compare with torch.compile.  [default: yes]")
@output_options
def bench(
    folder: Path, provider: str | None, sizes: tuple[Size, ...], components: tuple[str, ...], batch: int, repeats: int,
    warmup: int, compiled: bool, output: Output,
) -> None:  # fmt: skip
    """Time each graph of the export FOLDER beside torch eager and torch.compile, with the same weights and inputs.

    All take turns in one run, on one device and as many threads as torch has; the median counts.

    \b
      lcmmerge bench merged-onnx --component unet --size 512x512 --size 768x512
      lcmmerge bench merged-onnx --no-compile --json
    """
    check_installed("export")
    quiet_libraries()
    from lcmmerge.export.bench import BenchRequest, table
    from lcmmerge.export.bench import bench as run

    asked = BenchRequest(provider, sizes, components, batch, repeats, warmup, compiled)
    found = run(folder, asked, output)
    if output.as_json:
        output.json(found.as_dict())
    columns = ("component", "size", "by", "median ms", "least ms", "× eager")
    output.table("", columns, table(found.rows), numbers=3)
    turns = f"{asked.repeats} calls each in turns, after {asked.warmup}"
    output.text(f"{turns}; batch {asked.batch}; {found.device}, {found.threads} threads")
