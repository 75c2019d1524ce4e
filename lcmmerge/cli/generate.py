from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lcmmerge.cli.candidates import REFERENCE
from lcmmerge.cli.common import IMAGES, STEPS, Number, output_options
from lcmmerge.cli.options import (
    alpha_option,
    drawing_options,
    held_options,
    is_file,
    lambda_option,
    merge_of,
    method_option,
    named,
    seed_option,
    size_option,
)
from lcmmerge.draw import SAMPLERS, quiet_libraries
from lcmmerge.errors import LcmMergeError
from lcmmerge.extras import check_installed
from lcmmerge.output import Output

if TYPE_CHECKING:
    from lcmmerge.archs import Model
    from lcmmerge.draw.jobs import Job, Size
    from lcmmerge.draw.load import Pipeline
    from lcmmerge.draw.png import Origin
    from lcmmerge.draw.presets import Preset
    from lcmmerge.merge.spec import Merge

SCHEDULERS = click.Choice(SAMPLERS)
PROVIDERS = click.Choice(("tensorrt", "cuda", "cpu", "torch"))  # of graphs.runtime, which is heavier


@click.command(short_help="Draw images with a checkpoint, a live merge or an export.")
@click.argument("model", type=REFERENCE)
@click.option("--prompt", "prompts", multiple=True, help="What to draw; may be given more than once.")
@click.option("--prompts", "prompt_file", type=click.Path(path_type=Path), help="A file with one prompt a line.")
@click.option("-o", "--output", "folder", type=click.Path(path_type=Path), required=True, help="The images' folder.")
@click.option("--negative", default="", help="What not to draw; without guidance it has no effect.")
@seed_option
@click.option("--count", type=IMAGES, default=1, show_default=True, help="Images per prompt.")
@click.option("--batch", type=IMAGES, default=1, show_default=True, help="Images drawn at once.")
@size_option
@click.option("--steps", type=STEPS, help="[default: the accelerator's or scheduler's]")
@click.option("--guidance", type=Number(0), help="Up to 1 it is off.  [default: as for --steps]")
@click.option("--scheduler", type=SCHEDULERS, help="[default: what the model was merged for, else its own]")
@click.option(
    "--live", "style", type=REFERENCE, metavar="STYLE",
    help="Draw as if STYLE were fused into MODEL. Nothing is written.",
)
@lambda_option("live style and acceleration LoRA")
@held_options("--live or --lambda")
@alpha_option
@method_option
@drawing_options
@click.option("--provider", type=PROVIDERS, help="What runs an export.  [default: what suits the graphs here]")
@click.option("--force", is_flag=True, help="Replace images; merge again what MODEL already holds.")
@output_options
def generate(
    model: str, prompts: Sequence[str], prompt_file: Path | None, folder: Path, negative: str, seed: int, count: int,
    batch: int, size: Size | None, steps: int | None, guidance: float | None, scheduler: str | None,
    style: str | None, lambdas: tuple[float, float] | None, accelerator: Sequence[str], lcm: Sequence[str],
    alphas: Mapping[str, float], method: str,
    config_from: str | None, prediction: str | None, variant: str | None, dtype: str | None, device: str | None,
    provider: str | None, force: bool, output: Output,
) -> None:  # fmt: skip
    """Draw the prompts with MODEL: a checkpoint of any layout, a live merge into it, or an export.

    The scheduler, the steps and the guidance are those that `lcmmerge fuse` recorded in MODEL. An image depends on its
    seed, and not on the batch; it says in its PNG text how it was drawn. Images are written one by one, and those that
    are finished stay when the command is interrupted.

    A folder that `lcmmerge export` wrote is drawn by ONNX Runtime, in the dtype of its graphs: on TensorRT or CUDA
    where they are usable, else on the CPU.

    \b
      lcmmerge generate merged.safetensors --prompt "a paper fox" -o images
      lcmmerge generate base --prompts prompts.txt --scheduler dpm-solver++ --steps 20 -o baseline
      lcmmerge generate base --live style.safetensors --accelerator lcm --lambda 0.8 1.0 --prompt "a paper fox" -o live
    """
    given = (*lcm, *accelerator)
    live = bool(style or lcm or (accelerator and lambdas) or any(map(is_file, accelerator)))
    for name, value in {"--lambda": lambdas, "--alpha": alphas}.items():
        if value and not live:
            raise click.UsageError(f"{name} is of a live merge: give --live STYLE, or --accelerator.")
    exported = not live and _is_export(model)
    check_installed("export" if exported else "draw")
    quiet_libraries()
    from lcmmerge.draw import drawable, png, presets
    from lcmmerge.draw.jobs import jobs_of, read_prompts

    texts = [*prompts, *(read_prompts(prompt_file) if prompt_file else [])]
    if not texts:
        raise click.UsageError("Give a --prompt, or --prompts FILE.")
    if exported:
        _refuse({
            "--device": device, "--dtype": dtype, "--variant": variant, "--config-from": config_from,
            "--prediction": prediction,
        })  # fmt: skip
        opened = _export(Path(model), provider, output)
    elif provider:
        raise click.UsageError("--provider is of an export, a folder that `lcmmerge export` wrote.")
    elif live:
        merge = merge_of(
            model, style, lambdas, accelerators=given, alphas=alphas, variant=variant, config_from=config_from,
            method=method, prediction=prediction,
        )  # fmt: skip
        opened = _live(merge, scheduler, device, dtype, output, force=force)
    else:
        opened = _checkpoint(model, variant, config_from, prediction, device, dtype, output)
    preset = presets.choose(
        opened.model, opened.configs, accelerator=opened.accelerator or named(given), scheduler=scheduler, steps=steps,
        guidance=guidance,
    )  # fmt: skip
    if negative and preset.guidance <= 1:
        output.warn("guidance is off, so --negative has no effect")
    jobs = jobs_of(texts, size or drawable.native_size(opened.configs), negative=negative, seed=seed, count=count)
    png.check_folder(folder, png.names_of(jobs), force=force)
    pipeline = opened.load()
    written = _draw(pipeline, jobs, preset, batch, folder, opened.origin, output)
    _show(written, jobs, preset, presets.evaluations_of(preset, pipeline), opened.origin, output)


@dataclass(frozen=True, slots=True)
class Opened:
    """What is drawn with, by its headers; ``accelerator``: of a live merge. ``load`` reads the weights."""

    model: Model
    configs: Path
    origin: Origin
    load: Callable[[], Any]
    accelerator: str | None = None


def _checkpoint(
    reference: str, variant: str | None, config_from: str | None, prediction: str | None, device: str | None,
    dtype: str | None, output: Output,
) -> Opened:  # fmt: skip
    from lcmmerge.draw import drawable, load
    from lcmmerge.draw.png import Origin

    place, numbers = load.pick_device(device, dtype)
    model = load.open_model(reference, variant, prediction)
    if model.doubt and not config_from:
        output.warn(model.doubt)
    configs = drawable.configs_of(model, config_from)
    origin = Origin.of(model, None, numbers, place)
    return Opened(model, configs, origin, lambda: load.load_pipeline(model, configs, numbers, place))


def _live(
    merge: Merge, scheduler: str | None, device: str | None, dtype: str | None, output: Output, *, force: bool,
) -> Opened:  # fmt: skip
    from lcmmerge.draw import drawable, live, load
    from lcmmerge.draw.png import Origin

    place, numbers = load.pick_device(device, dtype)
    plan = live.plan_live(merge, force=force)
    for doubt in plan.doubts:
        output.warn(doubt)
    fast = merge.accelerated
    if fast and fast.source and fast.strength and not (plan.accelerator or scheduler):
        file = fast.source.reference
        output.warn(f"which accelerator {file} is cannot be told: name it by --accelerator, or a --scheduler")
    configs = drawable.configs_of(plan.base, merge.config_from)
    origin = Origin.of(plan.base, plan, numbers, place)
    name = plan.accelerator.name if plan.accelerator else None
    return Opened(plan.base, configs, origin, lambda: live.load_live(plan, configs, numbers, place), name)


def _is_export(reference: str) -> bool:
    from lcmmerge.export.manifest import is_export

    return is_export(Path(reference))


def _refuse(options: Mapping[str, str | None]) -> None:
    for name, value in options.items():
        if value:
            raise click.UsageError(f"{name} is not of an export: its graphs are as they are. Choose a --provider.")


def _export(folder: Path, provider: str | None, output: Output) -> Opened:
    from lcmmerge.export.pipeline import model_of, open_pipeline, origin_of

    model, pipeline = model_of(folder), open_pipeline(folder, provider, output.note)
    return Opened(model, folder, origin_of(model, pipeline.runtime), lambda: pipeline)


def _draw(
    pipeline: Pipeline, jobs: Sequence[Job], preset: Preset, batch: int, folder: Path, origin: Origin, output: Output
) -> list[Path]:
    from lcmmerge.draw import png
    from lcmmerge.draw.draw import draw

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
    from lcmmerge.draw import png

    if output.as_json:
        images = [
            {"file": str(path), **asdict(job)} for path, job in zip(written, jobs, strict=True)
        ]
        output.json({"images": images, "evaluations": evaluations, **png.manner(preset, origin)})
        return
    rows = [(path, job.seed, job.prompt) for path, job in zip(written, jobs, strict=True)]
    output.table("", ("image", "seed", "prompt"), rows)
    output.text(f"{preset}; {evaluations} evaluations of the U-Net per image; {origin.dtype} on {origin.device}")
