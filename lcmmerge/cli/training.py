"""What `distill` and `train-style` share: options in sections, and the job that they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lcmmerge.cli.candidates import REFERENCE
from lcmmerge.cli.common import ADAPTER_DTYPE, IMAGES, RANK, THREADS, Number, output_options
from lcmmerge.cli.generate import SEEDS
from lcmmerge.draw.jobs import LONGEST, MOST_IMAGES
from lcmmerge.output import Output
from lcmmerge.tensors.dtypes import OUTPUT_DTYPES

if TYPE_CHECKING:
    from lcmmerge.train.job import TrainingJob
    from lcmmerge.train.run import TrainingResult

Command = Callable[..., None]
Declared = tuple[tuple[str, ...], dict[str, Any]]
MOST = 10**9  # steps
POSITIVE, COUNT = Number(0, min_open=True), click.IntRange(1, MOST)
OF_SETTINGS = (
    "steps", "accumulate", "warmup", "decay", "weight_decay", "optimizer", "precision", "gradient_checkpointing",
    "checkpoint_every", "validate_every", "seed",
)  # fmt: skip
OF_JOB = (
    "rank", "alpha", "resolution", "flip", "drop_captions", "skip_bad", "workers", "validate", "device", "variant",
    "config_from", "work", "resume", "force",
)  # fmt: skip
OF_OPTIONS = ("caption", "image_column", "text_column", "split")


class Sections(click.Command):
    """A command whose help has its options in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in sorted(self.get_params(ctx), key=lambda one: not isinstance(one, _Option)):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)):
                sections.setdefault(getattr(parameter, "section", "Other options"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


class _Option(click.Option):
    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


def option(*names: str, **attributes: Any) -> Declared:
    """As ``click.option``, for ``training_options``."""
    return names, attributes


DATA = (
    option("--data", type=REFERENCE, metavar="REF",
           help="A folder of images with captions in NAME.txt or metadata.jsonl, a dataset "
           "(hf://datasets/owner/name), tar shards ({000..099}.tar), or what --encode-only wrote."),
    option("--caption", help="One for all images, instead of their own."),
    option("--image-column", default="image", show_default=True, help="Of a dataset."),
    option("--text-column", default="text", show_default=True, help="Of a dataset, and of metadata.jsonl."),
    option("--split", default="train", show_default=True, help="Of a dataset."),
    option("--resolution", type=click.IntRange(1, LONGEST),
           help="Of the square cut out.  [default: what the U-Net is made for]"),
    option("--crop", type=click.Choice(["centre", "random"]), default="centre", show_default=True),
    option("--flip", is_flag=True, help="Mirror half of the images."),
    option("--drop-captions", type=Number(0, 1), default=0.0, show_default=True,
           help="The share of captions that is replaced by none."),
    option("--skip-bad", is_flag=True, help="Go on without images that cannot be read."),
    option("--workers", type=THREADS, default=2, show_default=True, help="Threads that read images."),
)  # fmt: skip
OPTIMISATION = (
    option("--warmup", type=click.IntRange(0, MOST), default=0, show_default=True, help="Steps of a rising rate."),
    option("--decay", type=click.Choice(["constant", "cosine"]), default="constant", show_default=True,
           help="Of the rate."),
    option("--weight-decay", type=Number(0), default=1e-2, show_default=True),
    option("--optimizer", type=click.Choice(["adamw", "adamw-8bit"]), default="adamw", show_default=True),
    option("--precision", type=click.Choice(["no", "fp16", "bf16"]), default="no", show_default=True,
           help="Of the passes through the networks; what is trained stays in fp32."),
    option("--gradient-checkpointing", is_flag=True, help="Less memory, and a third more time."),
    option("--seed", type=SEEDS, default=0, show_default=True),
    option("--device", help="cpu, cuda, cuda:1.  [default: a GPU where there is one]"),
)  # fmt: skip
PROGRESS = (
    option("--validate", type=click.IntRange(0, MOST_IMAGES), metavar="N",
           help="Hold N examples out to score the network by.  [default: 8, of 80 or more]"),
    option("--validate-every", type=click.IntRange(0, MOST), default=500, show_default=True, metavar="STEPS",
           help="The best network is what is written."),
    option("--checkpoint-every", type=COUNT, default=500, show_default=True, metavar="STEPS"),
    option("--work", type=click.Path(path_type=Path), metavar="FOLDER",
           help="Checkpoints, log, sheets.  [default: OUTPUT.training]"),
    option("--resume", is_flag=True, help="Go on from the last checkpoint, if there is one."),
    option("--force", is_flag=True, help="Begin anew, and replace the output; with --resume only the latter."),
)  # fmt: skip
PRODUCT = (
    option("-o", "--output", "target", type=click.Path(path_type=Path), help="The file or folder to write."),
    option("--dtype", type=ADAPTER_DTYPE, default="fp16", show_default=True, help="Of the output."),
    option("--config-from", type=REFERENCE, metavar="REF", help="Configs, scheduler and tokenizers for a single file."),
    option("--variant", help="Which weights of a diffusers folder, such as fp16."),
)


def training_options(
    *trained: Declared, rank: int, batch: int, learning_rate: str, instead: Sequence[Declared] = ()
) -> Callable[[Command], Command]:
    """Add every option of a training, and hand the command an ``output``.

    ``trained``: further ones that say what is trained; ``instead``: those that ask for something else.
    """
    sections = {
        "Data": DATA,
        "What is trained": (
            option("--rank", type=RANK, default=rank, show_default=True),
            option("--alpha", type=POSITIVE, help="The LoRA is weighed by alpha / rank.  [default: the rank]"),
            *trained,
        ),
        "Optimisation": (
            option("--steps", type=COUNT, default=1000, show_default=True),
            option("--batch", type=IMAGES, default=batch, show_default=True, help="Examples at once, on each device."),
            option("--accumulate", type=IMAGES, default=1, show_default=True, help="Batches for each step."),
            option("--learning-rate", type=POSITIVE, help=f"[default: {learning_rate}]"),
            *OPTIMISATION,
        ),
        "Checkpoints and validation": PROGRESS,
        "Base and output": PRODUCT,
        "Instead of training": instead,
    }

    def add(command: Command) -> Command:
        command = output_options(command)
        for title, options in reversed(sections.items()):
            for names, attributes in reversed(options):
                command = click.option(*names, cls=_Option, section=title, **attributes)(command)
        return command

    return add


def job_of(base: str, given: dict[str, Any], *, learning_rate: float, **others: Any) -> TrainingJob:
    """The job that the options make. Raises UsageError where one is missing."""
    from lcmmerge.train.data import Options
    from lcmmerge.train.job import TrainingJob
    from lcmmerge.train.settings import TrainingSettings

    for name, value in (("--data", given["data"]), ("-o", given["target"])):
        if value is None:
            raise click.UsageError(f"Missing option '{name}'.")
    settings = TrainingSettings(
        batch_size=given["batch"],
        learning_rate=given["learning_rate"] or learning_rate,
        **{name: given[name] for name in OF_SETTINGS},
    )
    return TrainingJob(
        base,
        given["data"],
        given["target"],
        settings=settings,
        options=Options(**{name: given[name] for name in OF_OPTIONS}),
        crop=given["crop"],
        dtype=OUTPUT_DTYPES[given["dtype"]],
        **{name: given[name] for name in OF_JOB},
        **others,
    )


def show_result(result: TrainingResult, output: Output) -> None:
    if output.as_json:
        output.json(result.as_dict())
    score = f", validation score {result.best.score:.5g}" if result.best else ""
    output.text(f"{result.output}  after step {result.step}{score}")
    output.note(f"Draw with {result.sampling}.")
