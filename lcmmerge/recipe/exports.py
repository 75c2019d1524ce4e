"""The ``export`` section: graphs of an output, as ``lcmmerge export`` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lcmmerge.errors import RecipeError
from lcmmerge.merge.request import Request
from lcmmerge.output import Output
from lcmmerge.recipe.builds import Build
from lcmmerge.recipe.schema import Export

VERSION = 1  # of what an export holds; a change makes finished ones stale


def export(build: Build, section: Export, folder: Path, output: Output) -> tuple[list[Path], dict[str, Any]]:
    """Into ``folder``, which is replaced; its files, and what the checks look at.

    Raises RecipeError where a size makes no sense, and what ``graphs.bundle.export`` does.
    """
    from lcmmerge.graphs.bundle import export as write
    from lcmmerge.graphs.parity import figures
    from lcmmerge.graphs.request import ExportRequest, prepare
    from lcmmerge.sample import quiet_libraries
    from lcmmerge.sample.jobs import parse_size

    quiet_libraries()
    try:
        statics = tuple(map(parse_size, section.static))
    except ValueError as error:
        raise RecipeError(f"export.static: {error}", "such as 768x512") from None
    configs = build.inputs.get("config_from")
    merge = Request(
        str(build.plan.result), folder, strengths=(1.0, 0.0), config_from=str(configs.path) if configs else None
    )
    fields = section.model_dump(include={"to", "dtype", "vae_dtype", "fused", "parity"})
    folder.parent.mkdir(exist_ok=True)
    exported = write(prepare(ExportRequest(merge, **fields, statics=statics, force=True)), output)
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return paths, {"parity": figures(exported.manifest.parity)}
