from __future__ import annotations

from pathlib import Path

import click

from lcmmerge.cli.common import output_options
from lcmmerge.output import Output, size


@click.command(short_help="Write down exactly what a recipe's sources are.")
@click.argument("recipe", type=click.Path(path_type=Path))
@output_options
def lock(recipe: Path, output: Output) -> None:
    """Resolve every source of RECIPE to its commit, sizes and sha256, and write them to RECIPE.lock.

    No weights are downloaded. `lcmmerge run --locked` then takes these sources and no others.

    \b
      lcmmerge lock recipes/sdxl-papercut.yaml
    """
    from lcmmerge.recipe.loader import load
    from lcmmerge.recipe.lock import lock_text
    from lcmmerge.recipe.runner import lock_of
    from lcmmerge.tensors.staging import write_text

    loaded = load(recipe)
    found = lock_of(loaded)
    write_text(loaded.lock, lock_text(found))
    if output.as_json:
        output.json({name: locked.as_dict() for name, locked in sorted(found.items())})
    rows = [(name, locked.uri or locked.reference, len(locked.files), size(locked.nbytes))
            for name, locked in sorted(found.items())]  # fmt: skip
    output.table("", ("source", "what it is", "files", "size"), rows, numbers=2)
    output.text(str(loaded.lock))
