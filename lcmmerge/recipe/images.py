"""The ``generate`` section: images of an output, as ``lcmmerge generate`` draws them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lcmmerge.errors import RecipeError
from lcmmerge.output import Output
from lcmmerge.recipe.builds import Build
from lcmmerge.recipe.schema import Generate
from lcmmerge.tensors import open_source

VERSION = 1  # of how images are drawn; a change makes finished ones stale


def generate(build: Build, section: Generate, baked: Path, folder: Path, output: Output) -> dict[str, Any]:
    """Draw into ``folder``, which is made; how the images were drawn, JSON-ready.

    Raises RecipeError where the size makes no sense, IncompatibleError where the output draws no images, OutputError,
    NumericError.
    """
    from lcmmerge.archs import identify
    from lcmmerge.draw import drawable, load, png, presets, quiet_libraries
    from lcmmerge.draw.draw import draw
    from lcmmerge.draw.jobs import jobs_of, parse_size

    quiet_libraries()
    model = identify(open_source(baked))
    drawable.check_drawable(model)
    configs = baked if (baked / "model_index.json").is_file() else _configs(build)
    device, dtype = load.pick_device(None if build.settings.device == "cpu" else build.settings.device, None)
    preset = presets.choose(model, configs, scheduler=section.scheduler, steps=section.steps, guidance=section.guidance)
    try:
        size = parse_size(section.size) if section.size else drawable.native_size(configs)
    except ValueError as error:
        raise RecipeError(f"generate.size: {error}", "such as 512x512") from None
    jobs = jobs_of(section.prompts, size, negative=section.negative, seed=section.seed, count=section.count)
    folder.mkdir()
    pipeline = load.load_pipeline(model, configs, dtype, device)
    origin = png.Origin.of(model, None, dtype, device)
    paths = [folder / name for name in png.names_of(jobs)]
    with output.progress(f"generate {build.cell.name}", len(jobs) * preset.steps, "steps") as progress:
        drawing = draw(pipeline, jobs, preset, section.batch, say=output.warn, progress=progress)
        for path, drawn in zip(paths, drawing, strict=True):
            png.save(drawn, path, preset, origin)
    evaluations = presets.evaluations_of(preset, pipeline)
    return {"evaluations": evaluations, **png.manner(preset, origin)}


def _configs(build: Build) -> Path:
    """Of a single file: those that the recipe names, else the architecture's on the Hub."""
    from lcmmerge import refs

    named = build.inputs.get("config_from")
    return named.path if named else refs.configs(f"hf://{build.plan.base.arch.hub}")
