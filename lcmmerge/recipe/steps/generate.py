"""Images of an output, as ``lcmmerge generate`` draws them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from lcmmerge.draw import SAMPLERS
from lcmmerge.recipe.steps.base import Build, DrawingStep, StepWork
from lcmmerge.recipe.values import pixels
from lcmmerge.tensors import open_source


class Generate(DrawingStep):
    """Images of each output."""

    target: ClassVar = "images/{}"
    order: ClassVar = 3

    negative: str = Field("", description="What not to draw; without guidance it has no effect.")
    guidance: float | None = Field(None, ge=0, description="Up to 1 it is off. Default: the accelerator's.")
    scheduler: Literal[SAMPLERS] | None = Field(None, description="Default: the accelerator's.")  # type: ignore[valid-type]

    def extras(self) -> tuple[str]:
        return ("draw",)

    def make(self, work: StepWork) -> dict[str, Any]:
        """How the images were drawn.

        Raises RecipeError where the size makes no sense, IncompatibleError where the output draws no images,
        OutputError, NumericError.
        """
        from lcmmerge.archs import identify
        from lcmmerge.draw import drawable, load, png, presets, quiet_libraries
        from lcmmerge.draw.draw import draw
        from lcmmerge.draw.jobs import jobs_of

        quiet_libraries()
        build, output = work.build, work.output
        baked = build.plan.result
        model = identify(open_source(baked)).predicting(build.plan.merge.prediction)
        drawable.check_drawable(model)
        configs = baked if (baked / "model_index.json").is_file() else _configs(build)
        device, dtype = load.pick_device(build.device, None)
        preset = presets.choose(model, configs, scheduler=self.scheduler, steps=self.steps, guidance=self.guidance)
        size = pixels(self.size, "generate.size") if self.size else drawable.native_size(configs)
        jobs = jobs_of(self.prompts, size, negative=self.negative, seed=self.seed, count=self.count)
        work.content.mkdir()
        pipeline = load.load_pipeline(model, configs, dtype, device)
        origin = png.Origin.of(model, None, dtype, device)
        paths = [work.content / name for name in png.names_of(jobs)]
        with output.progress(f"generate {build.name}", len(jobs) * preset.steps, "steps") as progress:
            drawing = draw(pipeline, jobs, preset, self.batch, say=output.warn, progress=progress)
            for path, drawn in zip(paths, drawing, strict=True):
                png.save(drawn, path, preset, origin)
        return {"evaluations": presets.evaluations_of(preset, pipeline), **png.manner(preset, origin)}


def _configs(build: Build) -> Path:
    """Of a single file: those that the recipe names, else the architecture's on the Hub."""
    from lcmmerge import refs

    named = build.inputs.get("config_from")
    return named.path if named else refs.configs(f"hf://{build.plan.base.arch.hub}")


STEP = Generate
