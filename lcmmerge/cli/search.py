from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lcmmerge.cli.axes import Axis, Blocks, GridCommand, ObjectiveOption, Range
from lcmmerge.cli.common import ADAPTER_DTYPE, output_options
from lcmmerge.cli.generate import SEEDS, Pixels
from lcmmerge.output import Output, ratio
from lcmmerge.sample import quiet_libraries

if TYPE_CHECKING:
    from lcmmerge.merge.request import Request
    from lcmmerge.studies.blocks import Factors
    from lcmmerge.studies.result import Result
    from lcmmerge.studies.score import Row
    from lcmmerge.studies.statistics import Estimate


@click.command(cls=GridCommand, short_help="Find the λs: draw a grid of them, and measure each cell.")
@click.argument("base")
@click.argument("style", required=False)
@click.option(
    "--grid", "axes", type=Axis(), multiple=True, metavar="TERM=FIRST:LAST:STEP …",
    help="The λs of each term: style, lcm, or an adapter's file name without its suffix. One without stays at 1.",
)
@click.option("--optimize", type=click.IntRange(1), metavar="N", help="Let Optuna choose N cells, after the grid's.")
@click.option("--front", is_flag=True, help="With --optimize: seek cells that are good in score or in style (NSGA-II).")
@click.option(
    "--block", "blocks", type=(str, Blocks()), multiple=True, metavar="TERM SPEC",
    help="Factors on a term's λ in some blocks, to search too: `style IN,M,OUT=0:1.5` for --optimize, and with a step, "
    "`style IN00-IN05=0:1:0.5`, also on the grid.",
)
@click.option(
    "--halving", type=click.IntRange(2), is_flag=False, flag_value=3, metavar="[ETA]",
    help="Draw cells for a few prompts, and of them the best 1/ETA further, until all prompts are drawn.  "
    "[ETA if not given: 3]",
)
@click.option("--prompts", "prompt_file", type=click.Path(path_type=Path), required=True, help="One prompt a line.")
@click.option("-o", "--output", "work", type=click.Path(path_type=Path), required=True, help="The study's folder.")
@click.option("--steps", type=click.IntRange(1), help="Of a cell.  [default: the accelerator's]")
@click.option("--lcm", metavar="REF|NAME", help="The acceleration LoRA, as in `lcmmerge fuse`.")
@click.option("--accelerator", metavar="NAME", help="Which of `lcmmerge accelerators` the file of --lcm is.")
@click.option("--adapter", "adapters", multiple=True, metavar="REF", help="One more term.")
@click.option("--tuned-from", metavar="REF", help="What a STYLE checkpoint was tuned from.  [default: BASE]")
@click.option("--block-weights", "weights", nargs=2, multiple=True, metavar="TERM SPEC", help="As in `lcmmerge fuse`.")
@click.option(
    "--objective", cls=ObjectiveOption, default="teacher", show_default=True, metavar="NAME[=WEIGHTS]",
    help="What makes a cell good: {}. Those that look at the images do so with a network, which is downloaded, or of "
    "WEIGHTS: a path or hf://….",
)
@click.option("--count", type=click.IntRange(1), default=2, show_default=True, help="Images per prompt.")
@click.option("--seed", type=SEEDS, default=0, show_default=True, help="Of each prompt's first image.")
@click.option("--size", type=Pixels(), metavar="WxH", help="[default: the size that the model was trained at]")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Images drawn at once.")
@click.option(
    "--guidance", type=click.FloatRange(0),
    help="Of the teacher and of the baseline.  [default: what is usual for the model]",
)
@click.option(
    "--storage", metavar="URL",
    help="Where the study is kept, for many workers: postgresql+psycopg://…, or mysql+pymysql://…, which is not "
    "tested. Samples are kept there too.  [default: SQLite in the folder]",
)
@click.option("--ray", metavar="auto|ADDRESS", help="Draw the cells on this Ray cluster, one GPU each.")
@click.option("--bake", type=click.Path(path_type=Path), metavar="FILE", help="Fuse at the λs found.")
@click.option("--write-recipe", "recipe", type=click.Path(path_type=Path), metavar="FILE", help="Write them as YAML.")
@click.option("--config-from", metavar="REF", help="Configs, scheduler and tokenizers for a single file.")
@click.option("--variant", help="Which weights of a diffusers folder, such as fp16.")
@click.option("--dtype", type=ADAPTER_DTYPE, help="[default: fp16 on a GPU, else fp32]")
@click.option("--device", help="cpu, cuda, cuda:1.  [default: a GPU where there is one]")
@click.option("--force", is_flag=True, help="Replace the file of --bake, and of --write-recipe.")
@output_options
def search(work: Path, force: bool, bake: Path | None, recipe: Path | None, output: Output, **given: Any) -> None:
    """Draw STYLE and an LCM-LoRA merged into BASE at each λ of a grid, and choose by measuring.

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
    quiet_libraries()
    from lcmmerge.merge.request import Request
    from lcmmerge.sample.jobs import read_prompts
    from lcmmerge.studies.request import SearchRequest
    from lcmmerge.studies.run import search

    merge = Request(
        given["base"],
        style=given["style"],
        lcm=given["lcm"],
        adapters=tuple((reference, 1.0) for reference in given["adapters"]),
        tuned_from=given["tuned_from"],
        block_weights=_named(given["weights"], "--block-weights"),
        variant=given["variant"],
        config_from=given["config_from"],
        accelerator=given["accelerator"],
    )
    _check(merge, bake, recipe, force)
    drawing = ("steps", "guidance", "count", "seed", "size", "batch", "dtype", "device")
    fields = (*drawing, "objective", "front", "storage", "ray")
    asked = SearchRequest(
        merge,
        work,
        tuple(read_prompts(given["prompt_file"])),
        _named(given["axes"], "--grid"),
        given["optimize"] or 0,
        blocks=_factors(given["blocks"]),
        halving=given["halving"] or 0,
        **{name: given[name] for name in fields},
    )
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


def _named(pairs: Sequence[tuple[str, Any]], option: str) -> Mapping[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise click.UsageError(f"{option} is given twice for one term.")
    return dict(pairs)


def _factors(pairs: Sequence[tuple[str, Mapping[str, Range]]]) -> Mapping[str, Mapping[str, Factors]]:
    from lcmmerge.studies.blocks import Factors

    return {
        name: {span: Factors(*found) for span, found in spans.items()}
        for name, spans in _named(pairs, "--block").items()
    }


def _check(merge: Request, bake: Path | None, recipe: Path | None, force: bool) -> None:
    """Refuse before the search what could not be written after it."""
    from dataclasses import replace

    from lcmmerge.merge.fuse import check_output
    from lcmmerge.merge.request import plan
    from lcmmerge.tensors.staging import check_target

    if recipe:
        check_target(recipe, force=force, needed=0)
    if bake:
        check_output(*plan(replace(merge, target=bake)), force=force)


def _keep(result: Result, bake: Path | None, recipe: Path | None, force: bool, output: Output) -> None:
    from dataclasses import replace

    from lcmmerge.merge.fuse import fuse
    from lcmmerge.merge.request import plan
    from lcmmerge.studies import winner
    from lcmmerge.tensors.staging import replace_with

    merge = result.merge
    if recipe:
        replace_with(recipe, winner.recipe(merge, result.prepared.plan, recipe).encode())
        output.note(f"lcmmerge run {recipe} -o OUT makes it.")
    if bake:
        planned, configs = plan(replace(merge, target=bake))
        with output.progress("fuse", planned.nbytes) as progress:
            fuse(planned, configs=configs, force=force, progress=progress)
        output.note(f"{planned.result} is written.")


def _show(result: Result, work: Path, output: Output) -> None:
    from lcmmerge.studies.results import files_of

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
                *(f"{strength:.3g}" for strength in row.strengths),
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


def _remark(row: Row, best: Row) -> str:
    from lcmmerge.studies.study import CELL, CONTROL

    if row.kind != CELL:
        return f"{row.kind}, {row.manner}"
    marks = {"failed": row.fault, CONTROL: row.control, "tie": row.ties, "front": row.front}
    marks[f"stopped at {row.images} images"] = row.stopped
    return ", ".join([*(["BEST"] if row is best else []), *(mark for mark, holds in marks.items() if holds)])


def _estimate(found: Estimate | None) -> str:
    return f"{found.value:.2g} ({found.low:.2g} … {found.high:.2g})" if found else ""
