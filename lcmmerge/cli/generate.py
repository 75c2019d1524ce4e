from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from lcmmerge.cli.common import ADAPTER_DTYPE, output_options
from lcmmerge.errors import LcmMergeError
from lcmmerge.output import Output
from lcmmerge.sample import SAMPLERS, quiet_libraries

if TYPE_CHECKING:
    from lcmmerge.archs import Model
    from lcmmerge.merge.plan import Plan
    from lcmmerge.sample.jobs import Job, Size
    from lcmmerge.sample.load import Pipeline
    from lcmmerge.sample.png import Origin
    from lcmmerge.sample.presets import Preset

SCHEDULERS = click.Choice(SAMPLERS)
PROVIDERS = click.Choice(("tensorrt", "cuda", "cpu", "torch"))  # of graphs.runtime, which is heavier
SEEDS = click.IntRange(0, 2**32 - 1)


class Pixels(click.ParamType["tuple[int, int]"]):
    """``768x512``: width × height."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Size:
        from lcmmerge.sample.jobs import parse_size

        try:
            return parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command(short_help="Draw images with a checkpoint, a live merge or an export.")
@click.argument("model")
@click.option("--prompt", "prompts", multiple=True, help="What to draw; may be given more than once.")
@click.option("--prompts", "prompt_file", type=click.Path(path_type=Path), help="A file with one prompt a line.")
@click.option("-o", "--output", "folder", type=click.Path(path_type=Path), required=True, help="The images' folder.")
@click.option("--negative", default="", help="What not to draw; without guidance it has no effect.")
@click.option("--seed", type=SEEDS, default=0, show_default=True, help="Of each prompt's first image.")
@click.option("--count", type=click.IntRange(1), default=1, show_default=True, help="Images per prompt.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images drawn at once.")
@click.option("--size", type=Pixels(), metavar="WxH", help="[default: the size that the model was trained at]")
@click.option("--steps", type=click.IntRange(1), help="[default: the accelerator's or scheduler's]")
@click.option("--guidance", type=click.FloatRange(0), help="Up to 1 it is off.  [default: as for --steps]")
@click.option("--scheduler", type=SCHEDULERS, help="[default: what the model was merged for, else its own]")
@click.option("--accelerator", metavar="NAME", help="Draw as `lcmmerge accelerators` says of NAME.")
@click.option("--live", "style", metavar="STYLE", help="Draw as if STYLE were fused into MODEL. Nothing is written.")
@click.option(
    "--lambda", "lambdas", nargs=2, type=float, default=(1.0, 1.0), show_default=True, metavar="λ1 λ2",
    help="Strength of the live style and LCM-LoRA.",
)
@click.option("--lcm", metavar="REF|NAME", help="The live merge's acceleration LoRA, as in `lcmmerge fuse`.")
@click.option("--config-from", metavar="REF", help="Configs, scheduler and tokenizers for a single file.")
@click.option("--variant", help="Which weights of a diffusers folder, such as fp16.")
@click.option("--dtype", type=ADAPTER_DTYPE, help="[default: fp16 on a GPU, else fp32]")
@click.option("--device", help="cpu, cuda, cuda:1.  [default: a GPU where there is one]")
@click.option("--provider", type=PROVIDERS, help="What runs an export.  [default: the fastest that is usable here]")
@click.option("--force", is_flag=True, help="Replace images; merge again what MODEL already holds.")
@output_options
def generate(
    prompts: Sequence[str], prompt_file: Path | None, folder: Path, force: bool, output: Output, **given: Any
) -> None:
    """Draw the prompts with MODEL: a checkpoint of any layout, a live merge into it, or an export.

    The scheduler, the steps and the guidance are those that `lcmmerge fuse` recorded in MODEL. An image depends on its
    seed, and not on the batch; it says in its PNG text how it was drawn. Images are written one by one, and those that
    are finished stay when the command is interrupted.

    A folder that `lcmmerge export` wrote is drawn by ONNX Runtime, in the dtype of its graphs: on TensorRT or CUDA
    where they are usable, else on the CPU.

    \b
      lcmmerge generate merged.safetensors --prompt "a paper fox" -o images
      lcmmerge generate base --prompts prompts.txt --scheduler dpm-solver++ --steps 20 -o baseline
      lcmmerge generate base --live style.safetensors --lcm lcm --lambda 0.8 1.0 --prompt "a paper fox" -o live
    """
    quiet_libraries()
    from lcmmerge.sample import drawable, png, presets
    from lcmmerge.sample.jobs import jobs_of, read_prompts

    texts = [*prompts, *(read_prompts(prompt_file) if prompt_file else [])]
    if not texts:
        raise click.UsageError("Give a --prompt, or --prompts FILE.")
    opened = _export(given, output) if _is_export(given) else _checkpoint(given, force, output)
    preset = presets.choose(
        opened.model,
        opened.configs,
        accelerator=opened.accelerator or given["accelerator"],
        scheduler=given["scheduler"],
        steps=given["steps"],
        guidance=given["guidance"],
    )
    if given["negative"] and preset.guidance <= 1:
        output.warn("guidance is off, so --negative has no effect")
    size = given["size"] or drawable.native_size(opened.configs)
    jobs = jobs_of(texts, size, negative=given["negative"], seed=given["seed"], count=given["count"])
    png.check_folder(folder, png.names_of(jobs), force=force)
    pipeline = opened.load()
    written = _draw(pipeline, jobs, preset, given["batch"], folder, opened.origin, output)
    _show(written, jobs, preset, presets.evaluations_of(preset, pipeline), opened.origin, output)


@dataclass(frozen=True, slots=True)
class Opened:
    """What is drawn with, by its headers; ``accelerator``: of a live merge. ``load`` reads the weights."""

    model: Model
    configs: Path
    origin: Origin
    load: Callable[[], Any]
    accelerator: str | None = None


def _checkpoint(given: dict[str, Any], force: bool, output: Output) -> Opened:
    from lcmmerge.sample import drawable, live, load
    from lcmmerge.sample.png import Origin

    if given["provider"]:
        raise click.UsageError("--provider is of an export, a folder that `lcmmerge export` wrote.")
    device, dtype = load.pick_device(given["device"], given["dtype"])
    plan = _plan(given, force, output)
    model = plan.base if plan else load.open_model(given["model"], given["variant"])
    configs = drawable.configs_of(model, given["config_from"])
    origin = Origin.of(model, plan, dtype, device)
    if plan is None:
        return Opened(model, configs, origin, lambda: load.load_pipeline(model, configs, dtype, device))
    accelerator = plan.accelerator.name if plan.accelerator else None
    return Opened(model, configs, origin, lambda: live.load_live(plan, configs, dtype, device), accelerator)


def _is_export(given: dict[str, Any]) -> bool:
    """A live merge into an export is one into its weights, which diffusers reads."""
    from lcmmerge.graphs.manifest import is_export

    return is_export(Path(given["model"])) and not (given["style"] or given["lcm"])


def _export(given: dict[str, Any], output: Output) -> Opened:
    from lcmmerge.graphs.drawing import model_of, open_pipeline, origin_of

    for option in ("device", "dtype", "variant", "config_from"):
        if given[option]:
            name = option.replace("_", "-")
            raise click.UsageError(f"--{name} is not of an export: its graphs are as they are. Choose a --provider.")
    folder = Path(given["model"])
    model, pipeline = model_of(folder), open_pipeline(folder, given["provider"], output.note)
    return Opened(model, folder, origin_of(model, pipeline.runtime), lambda: pipeline)


def _plan(given: dict[str, Any], force: bool, output: Output) -> Plan | None:
    """The live merge, where one is asked for."""
    from lcmmerge.merge.request import Request
    from lcmmerge.sample.live import plan_live

    if not (given["style"] or given["lcm"]):
        if click.get_current_context().get_parameter_source("lambdas") != ParameterSource.DEFAULT:
            raise click.UsageError("--lambda is of a live merge: give --live STYLE, or --lcm.")
        return None
    asked = Request(
        given["model"],
        style=given["style"],
        strengths=given["lambdas"],
        lcm=given["lcm"],
        variant=given["variant"],
        accelerator=given["accelerator"],
    )
    plan = plan_live(asked, force=force)
    for doubt in plan.doubts:
        output.warn(doubt)
    if asked.strengths[1] and not (plan.accelerator or given["scheduler"]):
        output.warn(f"which accelerator {asked.lcm} is cannot be told: name it by --accelerator, or a --scheduler")
    return plan


def _draw(
    pipeline: Pipeline, jobs: Sequence[Job], preset: Preset, batch: int, folder: Path, origin: Origin, output: Output
) -> list[Path]:
    from lcmmerge.sample import png
    from lcmmerge.sample.draw import draw

    written: list[Path] = []
    try:
        with output.progress("draw", len(jobs) * preset.steps, "steps") as progress:
            drawing = draw(pipeline, jobs, preset, batch, say=output.warn, progress=progress)
            for name, drawn in zip(png.names_of(jobs), drawing, strict=True):
                png.save(drawn, folder / name, preset, origin)
                written.append(folder / name)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Interrupted; {len(written)} of {len(jobs)} images are in {folder}.") from None
    except LcmMergeError:
        output.note(f"{len(written)} of {len(jobs)} images are in {folder}.")
        raise
    return written


def _show(
    written: Sequence[Path], jobs: Sequence[Job], preset: Preset, evaluations: int, origin: Origin, output: Output
) -> None:
    from lcmmerge.sample import png

    if output.as_json:
        images = [
            {"file": str(path), **asdict(job)} for path, job in zip(written, jobs, strict=True)
        ]
        output.json({"images": images, "evaluations": evaluations, **png.manner(preset, origin)})
        return
    rows = [(path, job.seed, job.prompt) for path, job in zip(written, jobs, strict=True)]
    output.table("", ("image", "seed", "prompt"), rows)
    output.text(f"{preset}; {evaluations} evaluations of the U-Net per image; {origin.dtype} on {origin.device}")
