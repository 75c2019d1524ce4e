from __future__ import annotations

from pathlib import Path

import click

from lcmmerge.cli.candidates import REFERENCE
from lcmmerge.cli.common import output_options
from lcmmerge.cli.options import sources_option, threads_option
from lcmmerge.output import Output, ratio


@click.command(short_help="Recompute a merge from its sources and compare.")
@click.argument("file", type=REFERENCE)
@sources_option
@click.option("--lock", type=click.Path(path_type=Path), help="The lock that the sources of a run must be in.")
@click.option("--device", default="cpu", show_default=True, help="Where it was merged: cpu, cuda, cuda:1.")
@threads_option
@output_options
def verify(file: str, sources: tuple[str, ...], lock: Path | None, device: str, threads: int, output: Output) -> None:
    """Recompute FILE, which `lcmmerge fuse` wrote, from the sources that it records, and compare tensor by tensor.

    FILE may be a diffusers folder. Sources are looked for beside FILE, in this folder, and in every --source; their
    sha256 must be the recorded ones. A source that is a merge itself is verified, too, where its own sources are
    there. Nothing is written. The exit code is 1 where anything differs.

    Of the folder of a `lcmmerge run`, the outputs are compared with run.json instead, and the sources that they
    record with the lock; where those differ the exit code is 5.

    \b
      lcmmerge verify merged.safetensors --source ~/models
      lcmmerge verify papercut --lock recipes/sdxl-papercut.yaml.lock
    """
    from lcmmerge.bake.outcome import Settings
    from lcmmerge.bake.verify import Verified, verify_sources
    from lcmmerge.bake.verify import verify as run
    from lcmmerge.recipe.verify import is_run, verify_run
    from lcmmerge.tensors.remote import open_reference

    if is_run(Path(file)):
        manifest = verify_run(Path(file), lock)
        output.text(f"{file}: what all {len(manifest.steps)} steps wrote is as it was, and its sources are the lock's.")
        if output.as_json:
            output.json(manifest.as_dict())
        return
    source = open_reference(file, "merge")
    around = (source.path.resolve().parent, Path.cwd())
    places = [*sources, *(str(folder) for folder in around if folder.is_dir())]
    settings = Settings(threads, device)
    with output.progress("verify", source.nbytes) as progress:
        found = run(source, places, settings, progress)
    before = list(verify_sources(found, places, settings))
    if output.as_json:
        done = [item.as_dict() for item in before if isinstance(item, Verified)]
        output.json(found.as_dict() | ({"sources": done} if done else {}))
    elif found.different:
        rows = [(item.name, item.reason, "–" if item.largest is None else ratio(item.largest))
                for item in found.different[: None if output.verbose else 10]]  # fmt: skip
        output.table("Different", ("tensor", "what", "max |Δ|"), rows, numbers=1)
    found.check()
    output.text(f"{source.path}: all {found.tensors} tensors are what its recipe gives.")
    for item in before:
        if isinstance(item, Verified):
            item.check()
            output.text(f"{item.path}, of which it was made: all {item.tensors} tensors are what its recipe gives.")
        else:
            output.note(f"{item.path} is a merge itself, and not verified: its sources are not here; name --source.")
