"""A training from its job to its product: ``lcmmerge distill`` and ``lcmmerge train-style``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from lcmmerge.accelerators import Sampling
from lcmmerge.archs import Model, lora_parameters
from lcmmerge.draw.load import open_model, pick_device
from lcmmerge.errors import FormatError, LcmMergeError, OutputError
from lcmmerge.output import Output
from lcmmerge.refs.files import inside
from lcmmerge.tensors.blockio import output_error
from lcmmerge.tensors.staging import is_marked, mark
from lcmmerge.tensors.targets import check_target
from lcmmerge.train import base as bases
from lcmmerge.train.checkpoint import Best, Checkpoints
from lcmmerge.train.data import Indexed, open_data
from lcmmerge.train.data.encoded import Encoded
from lcmmerge.train.encode import EncodingPlan, encode
from lcmmerge.train.job import LCF, TrainingJob, refuse
from lcmmerge.train.monitor import BOARD, LOG, SCORES, SHEETS
from lcmmerge.train.product import card_path
from lcmmerge.train.training import Training, on_bad

HEADROOM = 1 << 20
PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ANEW = (LOG, SCORES, SHEETS, BOARD)  # what a work folder holds beside checkpoints


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A training that has ended.

    ``step``: after which the product stands; ``best``: the validation's, where there was one. ``sampling``: how to
    draw with the product.
    """

    output: Path
    folder: Path
    step: int
    best: Best | None
    sampling: Sampling

    def as_dict(self) -> dict[str, Any]:
        best = {"step": self.best.step, "score": self.best.score} if self.best else None
        facts = {"output": str(self.output), "work": str(self.folder), "step": self.step, "best": best}
        return facts | {"sampling": self.sampling.as_dict()}


def run(job: TrainingJob, output: Output) -> TrainingResult:
    """Train, and write the product and its card; the work folder keeps checkpoints, logs and sheets.

    Raises every error of the parts, and KeyboardInterrupt with a message that tells how to go on.
    """
    model = open_model(job.base, job.variant, job.prediction)
    first = _check(job, model)
    accelerator = _accelerator(job)
    if not accelerator.is_main_process:
        output = Output(quiet=True)
    if model.doubt and not job.config_from:
        output.warn(model.doubt)
    # A whole model's changes are too small for half precision; autocast computes in it all the same.
    dtype = torch.float32 if job.full else PRECISIONS[job.settings.precision]
    base = bases.load(job.base, model, job.config_from, accelerator.device, dtype)
    if job.kind == LCF and not base.is_marked_lcm:
        output.warn(f"{model.source.path}: nothing says that it is an LCM, and --finetune needs one")
    training = Training(job, base, job.objective(model.arch, base.noise.steps), accelerator, output)
    if accelerator.is_main_process and not job.resume:
        _begin(job.folder)
    accelerator.wait_for_everyone()
    with _interruptible(job), training.monitor(first) as monitor:
        trained = training.trainer(monitor).train(resume=job.resume)
    if accelerator.is_main_process:
        training.write(trained.step)
    accelerator.wait_for_everyone()
    return TrainingResult(job.target, job.folder, trained.step, trained.best, training.sampling)


def encode_only(job: TrainingJob, output: Output) -> int:
    """Fill the folder ``job.output`` with latents and texts; the number of examples.

    Raises what ``encode`` does, and KeyboardInterrupt with a message that tells how to go on.
    """
    device, _ = pick_device(job.device, None)
    data = open_data(job.data, job.options)
    if isinstance(data, Encoded):
        raise FormatError(f"{job.data}: is encoded already", "train on it: --data names it")
    model = open_model(job.base, job.variant, job.prediction)
    base = bases.load(job.base, model, job.config_from, device, PRECISIONS[job.settings.precision])
    transform = job.transform(base.unet.config.sample_size, base.pixels)
    plan = EncodingPlan(base.encoders, transform, job.settings.seed)
    skip = on_bad(job, output)
    total = len(data) if isinstance(data, Indexed) else None
    try:
        with output.progress("encode", total, "examples") as done:
            manifest = encode(data, base.encoder, base.vae, job.output, plan, job.workers, skip, done)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Interrupted; whole shards are kept: the same command goes on from them.") from None
    return sum(manifest.shards or ())


def _check(job: TrainingJob, model: Model) -> int:
    """Everything that can be refused before the weights are read; the step to go on from, 0 without one.

    Raises IncompatibleError, LcmMergeError, OutputError, FormatError (a link in the work folder).
    """
    refuse(job, model)
    shapes = {name: parameter.shape for name, parameter in model.parameters.items()}
    size = model.source.nbytes if job.full else lora_parameters(shapes, job.rank) * job.dtype.itemsize
    inputs = [model.source.path, *model.source.files]
    check_target(job.target, force=job.force, needed=size + HEADROOM, inputs=inputs, folder=job.full)
    if not job.full:
        check_target(card_path(job.target), force=job.force, needed=HEADROOM)
    steps = Checkpoints(job.folder).steps()
    if steps and not (job.resume or job.force):
        cure = "go on with --resume, or begin anew with --force"
        raise OutputError(f"{job.folder}: holds the checkpoint of step {steps[-1]}", cure)
    taken = [] if job.resume or job.force or is_marked(job.folder) else [*filter(_lies, _logs(job.folder))]
    if taken:
        cure = "choose another --work, or have it replaced with --force"
        raise OutputError(f"{taken[0]}: no training wrote it", cure)
    for name in ANEW if job.resume else ():
        inside(job.folder, name)
    first = steps[-1] if steps and job.resume else 0
    if first > job.settings.steps:
        cause = f"{job.folder}: stands at step {first}, beyond --steps {job.settings.steps}"
        raise LcmMergeError(cause, "ask for more --steps, or begin anew with --force")
    return first


def _accelerator(job: TrainingJob) -> Accelerator:
    """Raises LcmMergeError for a device that is not there, or that does not compute in the precision."""
    device, _ = pick_device(job.device, None)
    if device.type == "cuda" and device.index:
        torch.cuda.set_device(device)
    precision = job.settings.precision
    if "WORLD_SIZE" not in os.environ:  # accelerate keeps the first precision and device for the whole process
        AcceleratorState._reset_state(reset_partial_state=True)
    try:
        return Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
    except ValueError as error:
        reason = str(error).partition("\n")[0]
        raise LcmMergeError(f"--precision {precision}: not on this device ({reason})", "try --precision no") from None


def _begin(folder: Path) -> None:
    """Remove what is ours alone: the folder may be one of the user's. What is in it under our names is ours then."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        Checkpoints(folder).clear()
        for path in _logs(folder):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(folder, error) from None
    mark(folder)


def _logs(folder: Path) -> list[Path]:
    return [folder / name for name in ANEW]


def _lies(path: Path) -> bool:
    return path.exists() or path.is_symlink()


@contextmanager
def _interruptible(job: TrainingJob) -> Iterator[None]:
    """Says what is saved. Raises KeyboardInterrupt, and OutputError where the work folder cannot be written."""
    try:
        yield
    except KeyboardInterrupt:
        steps = Checkpoints(job.folder).steps()
        kept = f"step {steps[-1]} is saved: go on from it with --resume" if steps else "no step was saved"
        raise KeyboardInterrupt(f"Interrupted; {kept}.") from None
    except OSError as error:
        raise output_error(job.folder, error) from None
