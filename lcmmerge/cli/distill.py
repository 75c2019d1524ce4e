from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from lcmmerge.cli.candidates import REFERENCE
from lcmmerge.cli.common import STEPS, Number
from lcmmerge.cli.training import Sections, job_of, option, show_result, training_options
from lcmmerge.draw import quiet_libraries
from lcmmerge.extras import check_installed
from lcmmerge.output import Output, count

if TYPE_CHECKING:
    from lcmmerge.train.count import Count

LORA_RATE, FULL_RATE = 1e-4, 1e-6


@click.command(cls=Sections, short_help="Make a base's own LCM-LoRA: latent consistency distillation.")
@click.argument("base", type=REFERENCE)
@training_options(
    option("--full", is_flag=True, help="The whole U-Net with a guidance embedding, instead of a LoRA."),
    option("--finetune", is_flag=True, help="BASE is an LCM: fine-tune it on the data, without a teacher."),
    option("--w", nargs=2, type=float, metavar="LOW HIGH",
           help="Range of w; the guidance scale is 1 + w.  [default: 5 15, SDXL 3 15]"),
    option("--skip", type=STEPS, default=20, show_default=True, metavar="k",
           help="Timesteps from one point of the grid to the next."),
    option("--distance", type=click.Choice(["huber", "l2"]), default="huber", show_default=True),
    option("--mu", type=Number(0, 1), default=0.95, show_default=True,
           help="EMA rate of the target of --full."),
    rank=64, batch=12, learning_rate=f"{LORA_RATE:g}, with --full {FULL_RATE:g}",
    instead=(
        option("--encode-only", is_flag=True, help="Write latents and encoded captions to the folder -o, to train on."),
        option("--count-parameters", "counting", is_flag=True, help="Print how many parameters a LoRA of --rank has."),
    ),
)  # fmt: skip
def distill(
    base: str, full: bool, finetune: bool, counting: bool, encode_only: bool, output: Output, **given: Any
) -> None:
    """Distil BASE into a few-step model: Algorithm 1 of LCM-LoRA, https://arxiv.org/abs/2311.05556.

    The output is a LoRA in the official LCM-LoRA's format, for `lcmmerge fuse`, diffusers and others; with --full it is
    a diffusers folder. Beside it stands a work folder with checkpoints, log.csv and sheets of samples.
    Several GPUs: `accelerate launch -m lcmmerge distill …`.

    \b
      lcmmerge distill base.safetensors --data images -o lcm.safetensors
      lcmmerge distill base --data images -o encoded --encode-only
      lcmmerge distill base --data encoded -o lcm.safetensors --precision fp16 --gradient-checkpointing
      lcmmerge distill lcm-folder --finetune --data images -o tuned.safetensors
      lcmmerge distill base.safetensors --count-parameters
    """
    if counting:
        _count(base, given["variant"], given["rank"], output)
        return
    source = click.get_current_context().get_parameter_source
    if full and (given["alpha"] or source("rank") != ParameterSource.DEFAULT):
        raise click.UsageError("--rank and --alpha are a LoRA's, and --full trains none.")
    check_installed("train")
    quiet_libraries()
    from lcmmerge.train.job import LCD, LCF
    from lcmmerge.train.run import encode_only as encode
    from lcmmerge.train.run import run

    own = {name: given.pop(name) for name in ("skip", "distance", "mu")}
    kind, rate = LCF if finetune else LCD, FULL_RATE if full else LORA_RATE
    job = job_of(base, given, learning_rate=rate, kind=kind, full=full, w=given.pop("w") or None, **own)
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
