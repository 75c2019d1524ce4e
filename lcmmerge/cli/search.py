from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lcmmerge.cli.axes import Axis, Blocks, GridCommand, ObjectiveOption, ObjectiveType, Range, Storage
from lcmmerge.cli.candidates import REFERENCE
from lcmmerge.cli.common import IMAGES, STEPS, Number, output_options
from lcmmerge.cli.options import (
    alpha_option,
    drawing_options,
    merge_of,
    merged_option,
    once_each,
    seed_option,
    size_option,
    tuned_from_option,
)
from lcmmerge.draw import quiet_libraries
from lcmmerge.draw.jobs import MOST_CELLS
from lcmmerge.extras import check_installed
from lcmmerge.output import Output, ratio

if TYPE_CHECKING:
    from lcmmerge.merge.spec import Merge
    from lcmmerge.search.blocks import Factors
    from lcmmerge.search.result import Result
    from lcmmerge.search.score import ScoreRow
    from lcmmerge.search.statistics import Estimate


CELLS = click.IntRange(1, MOST_CELLS)


@click.command(cls=GridCommand, short_help="Find the λs: draw a grid of them, and measure each cell.")
@click.argument("base", type=REFERENCE)
@click.argument("style", type=REFERENCE, required=False)
@click.option(
    "--grid", "axes", type=Axis(), multiple=True, metavar="TERM=FIRST:LAST:STEP …",
    help="The λs of each term: style, lcm, or an adapter's file name without its suffix. One without stays at 1, the "
    "accelerator at its usual strength.",
)
@click.option("--optimize", type=CELLS, metavar="N", help="Let Optuna choose N cells, after the grid's.")
@click.option("--front", is_flag=True, help="With --optimize: seek cells that are good in score or in style (NSGA-II).")
@click.option(
    "--block", "blocks", type=(str, Blocks()), multiple=True, metavar="TERM SPEC",
    help="Factors on a term's λ in some blocks, to search too: `style IN,M,OUT=0:1.5` for --optimize, and with a step, "
    "`style IN00-IN05=0:1:0.5`, also on the grid.",
)
@click.option(
    "--halving", type=click.IntRange(2, MOST_CELLS), is_flag=False, flag_value=3, metavar="[ETA]",
    help="Draw cells for a few prompts, and of them the best 1/ETA further, until all prompts are drawn.  "
    "[ETA if not given: 3]",
)
@click.option("--prompts", "prompt_file", type=click.Path(path_type=Path), required=True, help="One prompt a line.")
@click.option("-o", "--output", "work", type=click.Path(path_type=Path), required=True, help="The study's folder.")
@click.option("--steps", type=STEPS, help="Of a cell.  [default: the accelerator's]")
@merged_option
@click.option("--adapter", "adapters", type=REFERENCE, multiple=True, metavar="REF", help="One more term.")
@tuned_from_option("BASE")
@click.option("--block-weights", "weights", nargs=2, multiple=True, metavar="TERM SPEC", help="As in `lcmmerge fuse`.")
@alpha_option
@click.option(
    "--objective", cls=ObjectiveOption, type=ObjectiveType(), default="teacher", show_default=True,
    metavar="NAME[=WEIGHTS]",
    help="What makes a cell good: {}. Those that look at the images do so with a network, which is downloaded, or of "
    "WEIGHTS: a path or hf://….",
)
@click.option("--count", type=IMAGES, default=2, show_default=True, help="Images per prompt.")
@seed_option
@size_option
@click.option("--batch", type=IMAGES, default=8, show_default=True, help="Images drawn at once.")
@click.option(
    "--guidance", type=Number(0),
    help="Of the teacher and of the baseline.  [default: what is usual for the model]",
)
@click.option(
    "--storage", type=Storage(), metavar="URL",
    help="Where the study is kept, for many workers: postgresql+psycopg://…; samples are kept there too.  "
    "[default: SQLite in the folder]",
)
@click.option("--ray", metavar="auto|ADDRESS", help="Draw the cells on this Ray cluster, one GPU each.")
@click.option("--bake", type=click.Path(path_type=Path), metavar="FILE", help="Fuse at the λs found.")
@click.option("--write-recipe", "recipe", type=click.Path(path_type=Path), metavar="FILE", help="Write them as YAML.")
@drawing_options
@click.option("--force", is_flag=True, help="Replace the files of --bake and --write-recipe, and those in the folder.")
@output_options
def search(
    base: str, style: str | None, axes: Sequence[tuple[str, Any]], optimize: int | None, front: bool,
    blocks: Sequence[tuple[str, Mapping[str, Range]]], halving: int | None, prompt_file: Path, work: Path,
    steps: int | None, accelerator: Sequence[str], adapters: Sequence[str], tuned_from: str | None,
    weights: Sequence[tuple[str, str]], alphas: Mapping[str, float], objective: str, count: int, seed: int,
    size: tuple[int, int] | None, batch: int, guidance: float | None, storage: str | None, ray: str | None,
    bake: Path | None, recipe: Path | None, config_from: str | None, prediction: str | None, variant: str | None,
    dtype: str | None, device: str | None, force: bool, output: Output,
) -> None:  # fmt: skip
    """Draw STYLE and an acceleration LoRA merged into BASE at each λ of a grid, and choose by measuring.

    A cell's few-step images are compared with many-step ones of the style model, of the same prompts and seeds.
    Beside the cells stand what they must beat: DPM-Solver++ at as many evaluations of the U-Net, and the few-step
    scheduler with no accelerator. Where they do not beat it, that is said first.

    The folder holds the study: the same command goes on with it, also beside itself in another process, and a finished
    cell is never drawn again. With one --storage it does so from other machines, in a folder of the same name, which
    they need not share: what one has drawn the others fetch.

    \b
      lcmmerge search base style.safetensors --grid style=0.2:1.2:0.2 lcm=0.4:1.2:0.2 --prompts prompts.txt -o study
      lcmmerge search base style.safetensors --optimize 24 --prompts prompts.txt -o study --bake fast.safetensors
      lcmmerge search base style.safetensors --prompts prompts.txt -o study --storage postgresql+psycopg://me@db/s
      optuna-dashboard sqlite:///study/study.db
    """
    postgres = storage and storage.startswith("postgresql+psycopg:")
    check_installed("search", *(["postgres"] if postgres else []))
    quiet_libraries()
    from lcmmerge.draw.jobs import read_prompts
    from lcmmerge.search.request import SearchRequest
    from lcmmerge.search.run import search

    merge = merge_of(
        base, style, accelerators=accelerator, adapters=[(reference, 1.0) for reference in adapters],
        tuned_from=tuned_from, block_weights=once_each(weights, "--block-weights"), alphas=alphas, variant=variant,
        config_from=config_from, prediction=prediction,
    )  # fmt: skip
    _check(merge, bake, recipe, force)
    asked = SearchRequest(
        merge, work, tuple(read_prompts(prompt_file)), once_each(axes, "--grid"), optimize or 0, steps=steps,
        guidance=guidance, count=count, seed=seed, size=size, batch=batch, objective=objective, blocks=_factors(blocks),
        halving=halving or 0, front=front, storage=storage, ray=ray, dtype=dtype, device=device, force=force,
    )  # fmt: skip
    try:
        result = search(asked, output)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the next Ctrl-C finds this process ending
        kept = f"Interrupted; what is drawn is kept in {work}, and the same command goes on with it."
        raise KeyboardInterrupt(kept) from None
    if output.as_json:
        output.json(result.as_dict())
    else:
        _show(result, work, output)
    _keep(result, bake, recipe, force, output)


def _factors(pairs: Sequence[tuple[str, Mapping[str, Range]]]) -> Mapping[str, Mapping[str, Factors]]:
    from lcmmerge.search.blocks import Factors

    return {
        name: {span: Factors(*found) for span, found in spans.items()}
        for name, spans in once_each(pairs, "--block").items()
    }


def _check(merge: Merge, bake: Path | None, recipe: Path | None, force: bool) -> None:
    """Refuse before the search what could not be written after it."""
    from lcmmerge.bake.fuse import check_output
    from lcmmerge.merge.plan import plan
    from lcmmerge.tensors.targets import check_target

    if recipe:
        check_target(recipe, force=force, needed=0)
    if bake:
        check_output(plan(merge.to(bake)), force=force)


def _keep(result: Result, bake: Path | None, recipe: Path | None, force: bool, output: Output) -> None:
    from lcmmerge.bake.fuse import fuse
    from lcmmerge.merge.plan import plan
    from lcmmerge.tensors.staging import replace_with

    merge = result.merge
    if recipe:
        replace_with(recipe, result.recipe(recipe).encode())
        output.note(f"lcmmerge run {recipe} -o OUT makes it.")
    if bake:
        planned = plan(merge.to(bake))
        fuse(planned, force=force, output=output)
        output.note(f"{planned.result} is written.")


def _show(result: Result, work: Path, output: Output) -> None:
    from lcmmerge.search.results import files_of

    names, scored = result.prepared.names, result.scored
    for sentence in scored.verdict:
        output.text(sentence[0].upper() + sentence[1:] + ".")
    rows = sorted(scored.rows, key=lambda row: (row.score is None, row.score.value if row.score else 0.0))
    figures = list(dict.fromkeys(name for row in rows for name in row.figures)) if output.verbose else []
    output.table(
        "",
        ("", *names, "evals", *figures, "score", "style"),
        [
            (
                _remark(row, scored.best),
                *(f"{strength:.3g}" for strength in row.cell.numbers),
                row.evaluations,
                *(_estimate(row.figures.get(name)) for name in figures),
                _estimate(row.score),
                _estimate(row.style),
            )
            for row in rows
        ],
        numbers=3 + len(figures) + len(names),
    )
    if output.verbose:
        output.table(
            "Where two terms change one weight (it does not foretell how a merge draws)",
            ("parameter", "terms", "cosine", "‖Δ‖/‖Δ′‖"),
            [(one.parameter, f"{one.first}, {one.second}", f"{one.cosine:.3f}", ratio(one.ratio))
             for one in result.diagnostics],
            numbers=2,
        )  # fmt: skip
    ties = len(scored.ties)
    output.text(
        f"{ties} cells are as good as the best; of them the nearest to the published λs:"
        if ties > 1
        else "The best cell:"
    )
    output.text(result.command)
    output.text(f"{work}: {', '.join(path.name for path in files_of(work))}")


def _remark(row: ScoreRow, best: ScoreRow) -> str:
    from lcmmerge.search.study import CELL, CONTROL

    if row.kind != CELL:
        return f"{row.kind}, {row.manner}"
    marks = {"failed": row.fault, CONTROL: row.control, "tie": row.ties, "front": row.front}
    marks[f"stopped at {row.images} images"] = row.stopped
    return ", ".join([*(["BEST"] if row is best else []), *(mark for mark, holds in marks.items() if holds)])


def _estimate(found: Estimate | None) -> str:
    return f"{found.value:.2g} ({found.low:.2g} … {found.high:.2g})" if found else ""
