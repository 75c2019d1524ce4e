from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lcmmerge.cli.candidates import REFERENCE
from lcmmerge.cli.common import STEPS, Number
from lcmmerge.cli.options import is_given
from lcmmerge.cli.training import Sections, show_result, training_options
from lcmmerge.draw import quiet_libraries
from lcmmerge.extras import check_installed
from lcmmerge.output import Output, count
from lcmmerge.tensors.dtypes import OUTPUT_DTYPES

if TYPE_CHECKING:
    from lcmmerge.train.count import Count

LORA_RATE, FULL_RATE = 1e-4, 1e-6


@click.command(cls=Sections, short_help="Make a base's own LCM-LoRA: latent consistency distillation.")
@click.argument("base", type=REFERENCE)
@training_options(
    click.option("--full", is_flag=True, help="The whole U-Net with a guidance embedding, instead of a LoRA."),
    click.option("--finetune", is_flag=True, help="BASE is an LCM: fine-tune it on the data, without a teacher."),
    click.option("--w", nargs=2, type=float, metavar="LOW HIGH",
                 help="Range of w; the guidance scale is 1 + w.  [default: 5 15, SDXL 3 15]"),
    click.option("--skip", type=STEPS, default=20, show_default=True, metavar="k",
                 help="Timesteps from one point of the grid to the next."),
    click.option("--distance", type=click.Choice(["huber", "l2"]), default="huber", show_default=True),
    click.option("--mu", type=Number(0, 1), default=0.95, show_default=True,
                 help="EMA rate of the target of --full."),
    rank=64, batch=12, learning_rate=f"{LORA_RATE:g}, with --full {FULL_RATE:g}",
    instead=(
        click.option("--encode-only", is_flag=True,
                     help="Write latents and encoded captions to the folder -o, to train on."),
        click.option("--count-parameters", "counting", is_flag=True,
                     help="Print how many parameters a LoRA of --rank has."),
    ),
)  # fmt: skip
def distill(
    base: str, data: str | None, caption: str | None, image_column: str, text_column: str, split: str,
    resolution: int | None, crop: str, flip: bool, drop_captions: float, skip_bad: bool, workers: int, rank: int,
    alpha: float | None, full: bool, finetune: bool, w: tuple[float, float] | None, skip: int, distance: str, mu: float,
    steps: int, batch: int, accumulate: int, learning_rate: float | None, warmup: int, decay: str, weight_decay: float,
    optimizer: str, precision: str, gradient_checkpointing: bool, seed: int, device: str | None, validate: int | None,
    validate_every: int, checkpoint_every: int, work: Path | None, resume: bool, force: bool, target: Path | None,
    dtype: str, config_from: str | None,
    prediction: str | None, variant: str | None, encode_only: bool, counting: bool, output: Output,
) -> None:  # fmt: skip
    """Distil BASE into a few-step model: Algorithm 1 of LCM-LoRA, https://arxiv.org/abs/2311.05556.

    The output is a LoRA under kohya's names, for `lcmmerge fuse`, diffusers, web UIs and others; with --full it is a
    diffusers folder. Beside it stands a work folder with checkpoints, log.csv and sheets of samples.
    Several GPUs: `accelerate launch -m lcmmerge distill …`.

    \b
      lcmmerge distill base.safetensors --data images -o lcm.safetensors
      lcmmerge distill base --data images -o encoded --encode-only
      lcmmerge distill base --data encoded -o lcm.safetensors --precision fp16 --gradient-checkpointing
      lcmmerge distill lcm-folder --finetune --data images -o tuned.safetensors
      lcmmerge distill base.safetensors --count-parameters
    """
    if counting:
        _count(base, variant, rank, output)
        return
    if data is None or target is None:
        raise click.UsageError(f"Missing option '{'-o' if data else '--data'}'.")
    if full and (alpha or is_given("rank")):
        raise click.UsageError("--rank and --alpha are a LoRA's, and --full trains none.")
    check_installed("train")
    quiet_libraries()
    from lcmmerge.train.data import Options
    from lcmmerge.train.job import LCD, LCF, TrainingJob
    from lcmmerge.train.run import encode_only as encode
    from lcmmerge.train.run import run
    from lcmmerge.train.settings import TrainingSettings

    settings = TrainingSettings(
        steps, batch, accumulate, learning_rate or (FULL_RATE if full else LORA_RATE), warmup, decay, weight_decay,
        optimizer=optimizer, precision=precision, gradient_checkpointing=gradient_checkpointing,
        checkpoint_every=checkpoint_every, validate_every=validate_every, seed=seed,
    )  # fmt: skip
    job = TrainingJob(
        base, data, target, LCF if finetune else LCD, settings, rank, alpha, full, mu, w, distance, skip,
        options=Options(caption, image_column, text_column, split), resolution=resolution, crop=crop, flip=flip,
        drop_captions=drop_captions, skip_bad=skip_bad, workers=workers, validate=validate, dtype=OUTPUT_DTYPES[dtype],
        device=device, variant=variant, config_from=config_from,
        prediction=prediction, work=work, resume=resume, force=force,
    )  # fmt: skip
    if encode_only:
        examples = encode(job, output)
        if output.as_json:
            output.json({"output": str(job.output), "examples": examples})
        output.text(f"{job.output}  {examples} examples")
        return
    show_result(run(job, output), output)


def _count(base: str, variant: str | None, rank: int, output: Output) -> None:
    from lcmmerge.archs import identify
    from lcmmerge.tensors.remote import open_reference
    from lcmmerge.train.count import count as counted

    found = counted(identify(open_reference(base, "base", variant)), rank)
    if output.as_json:
        output.json(found.as_dict())
        return
    _show(found, output)


def _show(found: Count, output: Output) -> None:
    columns = ("architecture", "U-Net", "rank", "modules", "trainable", "share")
    share = f"{found.parameters / found.unet:.2%}"
    row = (found.architecture, count(found.unet), found.rank, found.modules, count(found.parameters), share)
    output.table("", columns, [row], numbers=5)
    if output.verbose:
        rows = [(target, modules, count(number)) for target, (modules, number) in found.targets.items()]
        output.table("", ("target", "modules", "trainable"), rows, numbers=2)
