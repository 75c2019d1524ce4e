from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lcmmerge.cli.common import STRENGTH, output_options
from lcmmerge.cli.options import sources_option, threads_option
from lcmmerge.output import Output, size

if TYPE_CHECKING:
    from lcmmerge.export.relambda import Rewritten


@click.command(short_help="Give an export other λs; its graphs stay.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--lambda", "lambdas", nargs=2, type=STRENGTH, metavar="λ1 λ2", help="Of the terms style and lcm.")
@click.option("--term", "terms", type=(str, STRENGTH), multiple=True, metavar="TERM λ", help="Of any other term.")
@sources_option
@threads_option
@output_options
def relambda(
    folder: Path, lambdas: tuple[float, float] | None, terms: tuple[tuple[str, float], ...], sources: tuple[str, ...],
    threads: int, output: Output,
) -> None:  # fmt: skip
    """Merge the weights of the export FOLDER anew with other λs.

    The sources are looked for beside FOLDER, on the Hub where they came from, and where --source says; each must be the
    file that was merged. A session that runs the export keeps the weights that it opened.

    \b
      lcmmerge relambda export --lambda 0.6 1.0
      lcmmerge relambda export --term papercut 0.7 --source loras
    """
    from lcmmerge.bake.outcome import Settings
    from lcmmerge.export.relambda import relambda

    strengths = dict(terms)
    if lambdas:
        strengths = {"style": lambdas[0], "lcm": lambdas[1], **strengths}
    if not strengths:
        raise click.UsageError("Give --lambda, or --term.")
    _show(folder, relambda(folder, strengths, sources, output, Settings(threads)), output)


def _show(folder: Path, rewritten: Rewritten, output: Output) -> None:
    files = {name: rewritten.manifest.files[name] for name in rewritten.files}
    if output.as_json:
        output.json({"output": str(folder), "files": files, "terms": rewritten.manifest.recipe["terms"]})
        return
    if rewritten.removed:
        output.note(f"Removed, since they held the old weights: {', '.join(rewritten.removed)}")
    output.table("", ("weights", "size"), [(name, size(said["bytes"])) for name, said in files.items()], numbers=1)
    terms = rewritten.manifest.recipe["terms"]
    output.text(f"{folder}: " + ", ".join(f"{term['term']} λ {term['lambda']:g}" for term in terms))
