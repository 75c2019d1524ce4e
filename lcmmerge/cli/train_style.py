from __future__ import annotations

from pathlib import Path

import click

from lcmmerge.cli.candidates import REFERENCE
from lcmmerge.cli.training import POSITIVE, Sections, show_result, training_options
from lcmmerge.draw import quiet_libraries
from lcmmerge.extras import check_installed
from lcmmerge.output import Output
from lcmmerge.tensors.dtypes import OUTPUT_DTYPES

RATE = 1e-4


@click.command(cls=Sections, short_help="Make a style LoRA τ′: plain diffusion training.")
@click.argument("base", type=REFERENCE)
@training_options(
    click.option(
        "--snr-gamma", type=POSITIVE, help="γ of min-SNR weighting, such as 5.  [default: all timesteps alike]"
    ),
    rank=16,
    batch=4,
    learning_rate=f"{RATE:g}",
)
def train_style(
    base: str, data: str, caption: str | None, image_column: str, text_column: str, split: str, resolution: int | None,
    crop: str, flip: bool, drop_captions: float, skip_bad: bool, workers: int, rank: int, alpha: float | None,
    snr_gamma: float | None, steps: int, batch: int, accumulate: int, learning_rate: float | None, warmup: int,
    decay: str, weight_decay: float, optimizer: str, precision: str, gradient_checkpointing: bool, seed: int,
    device: str | None, validate: int | None, validate_every: int, checkpoint_every: int, work: Path | None,
    resume: bool, force: bool, target: Path, dtype: str, config_from: str | None,
    prediction: str | None, variant: str | None, output: Output,
) -> None:  # fmt: skip
    """Tune a LoRA of BASE's U-Net on images, as θ_pre + λ1·τ′ + λ2·τ_LCM needs it.

    It trains the modules that the LCM-LoRA has. Beside the output stands a work folder with checkpoints, log.csv
    and sheets of samples. Several GPUs: `accelerate launch -m lcmmerge train-style …`.

    \b
      lcmmerge train-style base.safetensors --data images -o style.safetensors
      lcmmerge train-style base --data images --caption "in papercut style" --steps 500 -o style.safetensors
    """
    check_installed("train")
    quiet_libraries()
    from lcmmerge.train.data import Options
    from lcmmerge.train.job import DIFFUSION, TrainingJob
    from lcmmerge.train.run import run
    from lcmmerge.train.settings import TrainingSettings

    settings = TrainingSettings(
        steps, batch, accumulate, learning_rate or RATE, warmup, decay, weight_decay, optimizer=optimizer,
        precision=precision, gradient_checkpointing=gradient_checkpointing, checkpoint_every=checkpoint_every,
        validate_every=validate_every, seed=seed,
    )  # fmt: skip
    job = TrainingJob(
        base, data, target, DIFFUSION, settings, rank, alpha, snr_gamma=snr_gamma,
        options=Options(caption, image_column, text_column, split), resolution=resolution, crop=crop, flip=flip,
        drop_captions=drop_captions, skip_bad=skip_bad, workers=workers, validate=validate, dtype=OUTPUT_DTYPES[dtype],
        device=device, variant=variant, config_from=config_from,
        prediction=prediction, work=work, resume=resume, force=force,
    )  # fmt: skip
    show_result(run(job, output), output)
