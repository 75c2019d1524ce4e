"""The ``export`` section: graphs of an output, as ``lcmmerge export`` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lcmmerge.errors import RecipeError
from lcmmerge.merge.spec import Merge, Written
from lcmmerge.output import Output
from lcmmerge.recipe.builds import Build
from lcmmerge.recipe.schema import Export

VERSION = 1  # of what an export holds; a change makes finished ones stale


def export(build: Build, section: Export, folder: Path, output: Output) -> dict[str, Any]:
    """Into ``folder``, which is made; what the checks look at.

    Raises RecipeError where a size makes no sense, and what ``export.bundle.export`` does.
    """
    from lcmmerge.draw import quiet_libraries
    from lcmmerge.draw.jobs import parse_size
    from lcmmerge.export.bundle import export as write
    from lcmmerge.export.parity import figures
    from lcmmerge.export.request import ExportRequest, prepare

    quiet_libraries()
    try:
        statics = tuple(map(parse_size, section.static))
    except ValueError as error:
        raise RecipeError(f"export.static: {error}", "such as 768x512") from None
    configs = build.inputs.get("config_from")
    merge = Merge(
        build.plan.result, output=Written(folder), config_from=configs.path if configs else None
    )
    fields = section.model_dump(include={"to", "dtype", "vae_dtype", "fused", "parity"})
    exported = write(prepare(ExportRequest(merge, **fields, statics=statics)), output)
    return {"parity": figures(exported.manifest.parity)}
