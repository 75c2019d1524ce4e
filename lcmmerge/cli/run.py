from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lcmmerge.cli.common import output_options
from lcmmerge.cli.options import arithmetic_options
from lcmmerge.output import Output, size

if TYPE_CHECKING:
    from lcmmerge.recipe.manifest import RunManifest
    from lcmmerge.recipe.runner import PreparedRun


FEW = 3  # files that are named one by one


@click.command(short_help="Make what a recipe says, as far as it is not made yet.")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), required=True, help="The folder for it all.")
@click.option("--set", "sets", multiple=True, metavar="PATH=VALUE", help="Change the recipe: lambda.style=0.7.")
@click.option("--locked", is_flag=True, help="Take the sources of RECIPE.lock, and refuse any others (exit code 5).")
@click.option("--dry-run", is_flag=True, help="Print the steps and write nothing.")
@click.option("--publish", "publishes", is_flag=True, help="Upload the outputs to the recipe's `publish` repository.")
@click.option("--force", is_flag=True, help="Replace what no run wrote; fuse again what a base already holds.")
@arithmetic_options
@output_options
def run(
    recipe: Path, out: Path, sets: tuple[str, ...], locked: bool, dry_run: bool, publishes: bool, force: bool,
    device: str, threads: int, output: Output,
) -> None:  # fmt: skip
    """Make what RECIPE says in the folder OUT: models, their cards, RECIPE.lock, and run.json with every hash.

    A step that is done is not done again: after a change, only what depends on it is, and what was there before stays
    until the new is whole. What no run made, or was changed since, is replaced with --force alone. Where a check of the
    recipe is missed, the exit code is 4.

    \b
      lcmmerge run recipes/sdxl-papercut.yaml -o papercut --dry-run
      lcmmerge run recipes/sdxl-papercut.yaml -o papercut --set lambda.style=0.7
    """
    from lcmmerge.bake.outcome import Settings
    from lcmmerge.recipe import runner
    from lcmmerge.recipe.loader import load
    from lcmmerge.recipe.steps.publish import repository, upload

    loaded = load(recipe, sets)
    target = repository(loaded.recipe.publish) if publishes else None
    asked = runner.RunRequest(out, sets, locked, force, Settings(threads, device))
    if dry_run:
        _show_plan(runner.prepare(loaded, asked, dry_run=True), target, output)
        return
    prepared, manifest = runner.run(loaded, asked, output)
    if target:
        output.note(f"Published: {upload(target, out, manifest)}")
    if output.as_json:
        output.json(manifest.as_dict())
    else:
        _show(prepared, manifest, out, output)


def _show_plan(prepared: PreparedRun, target: str | None, output: Output) -> None:
    for doubt in prepared.doubts:
        output.warn(doubt)
    if output.as_json:
        output.json(prepared.as_dict() | {"publishes": target})
        return
    rows = [(name, locked.uri or locked.reference, len(locked.files), size(locked.nbytes))
            for name, locked in sorted(prepared.lock.items())]  # fmt: skip
    output.table("Sources", ("source", "what it is", "files", "size"), rows, numbers=2)
    steps = [(step.name, f"to do: {step.due}" if step.due else "done", size(step.reads), size(step.downloads),
              size(step.writes)) for step in prepared.steps]  # fmt: skip
    output.table("Steps", ("step", "state", "reads", "of it downloads", "writes"), steps, numbers=3)
    due = [step for step in prepared.steps if step.due]
    output.text(f"{len(due)} of {len(prepared.steps)} steps are to be done: {size(sum(step.writes for step in due))}.")
    if target:
        output.text(f"Then everything would be published to {target}.")


def _show(prepared: PreparedRun, manifest: RunManifest, out: Path, output: Output) -> None:
    rows = [(step.name, "done now" if step.due else "was done", _gathered(list(manifest.steps[step.name].outputs)))
            for step in prepared.steps]  # fmt: skip
    output.table("", ("step", "state", "files"), rows)
    for name, record in manifest.steps.items():
        if "verdict" in record.figures:
            best = ", ".join(f"{term} {strength:g}" for term, strength in record.figures["best"].items())
            output.text(f"{name}: λ {best}", *(f"  {line}" for line in record.figures["verdict"]))
    output.text(str(out))


def _gathered(files: Sequence[str]) -> str:
    """The files, or their folder and their number where they are many."""
    if len(files) <= FEW:
        return ", ".join(files)
    folder = Path(os.path.commonpath(files)).as_posix()
    return f"{folder}/  {len(files)} files"
