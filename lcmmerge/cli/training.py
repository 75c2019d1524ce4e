"""What `distill` and `train-style` share: options in sections, and how the end of a training is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lcmmerge.cli.candidates import REFERENCE
from lcmmerge.cli.common import ADAPTER_DTYPE, IMAGES, RANK, SEEDS, THREADS, Number, TargetType, output_options
from lcmmerge.cli.options import Option, config_option, device_option, prediction_option, together, variant_option
from lcmmerge.draw.jobs import LONGEST, MOST_IMAGES
from lcmmerge.output import Output

if TYPE_CHECKING:
    from lcmmerge.train.run import TrainingResult

MOST = 10**9  # steps
POSITIVE, COUNT = Number(0, min_open=True), click.IntRange(1, MOST)
SECTIONS = {
    "data": "Data",
    "rank": "What is trained",
    "steps": "Optimisation",
    "validate": "Checkpoints and validation",
    "target": "Base and output",
    "encode_only": "Instead of training",
    "as_json": "Other options",
}  # the first option of each


class Sections(click.Command):
    """A command whose help has its options in ``SECTIONS``."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        title = ""
        for option in self.get_params(ctx):
            title = SECTIONS.get(option.name or "", title)
            if isinstance(option, click.Option) and (record := option.get_help_record(ctx)):
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def training_options(
    *trained: Option, rank: int, batch: int, learning_rate: str, instead: Sequence[Option] = ()
) -> Option:
    """Add every option of a training, and hand the command an ``output``.

    ``trained``: further ones that say what is trained; ``instead``: those that ask for something else, which needs no
    data, or no output.
    """
    return together(
        click.option("--data", type=REFERENCE, metavar="REF", required=not instead,
                     help="A folder of images with captions in NAME.txt or metadata.jsonl, a dataset "
                     "(hf://datasets/owner/name), tar shards ({000..099}.tar), or what --encode-only wrote."),
        click.option("--caption", help="One for all images, instead of their own."),
        click.option("--image-column", default="image", show_default=True, help="Of a dataset."),
        click.option("--text-column", default="text", show_default=True, help="Of a dataset, and of metadata.jsonl."),
        click.option("--split", default="train", show_default=True, help="Of a dataset."),
        click.option("--resolution", type=click.IntRange(1, LONGEST),
                     help="Of the square cut out.  [default: what the U-Net is made for]"),
        click.option("--crop", type=click.Choice(["centre", "random"]), default="centre", show_default=True),
        click.option("--flip", is_flag=True, help="Mirror half of the images."),
        click.option("--drop-captions", type=Number(0, 1), default=0.0, show_default=True,
                     help="The share of captions that is replaced by none."),
        click.option("--skip-bad", is_flag=True, help="Go on without images that cannot be read."),
        click.option("--workers", type=THREADS, default=2, show_default=True, help="Threads that read images."),

        click.option("--rank", type=RANK, default=rank, show_default=True),
        click.option("--alpha", type=POSITIVE, help="The LoRA is weighed by alpha / rank.  [default: the rank]"),
        *trained,

        click.option("--steps", type=COUNT, default=1000, show_default=True),
        click.option("--batch", type=IMAGES, default=batch, show_default=True,
                     help="Examples at once, on each device."),
        click.option("--accumulate", type=IMAGES, default=1, show_default=True, help="Batches for each step."),
        click.option("--learning-rate", type=POSITIVE, help=f"[default: {learning_rate}]"),
        click.option("--warmup", type=click.IntRange(0, MOST), default=0, show_default=True,
                     help="Steps of a rising rate."),
        click.option("--decay", type=click.Choice(["constant", "cosine"]), default="constant", show_default=True,
                     help="Of the rate."),
        click.option("--weight-decay", type=Number(0), default=1e-2, show_default=True),
        click.option("--optimizer", type=click.Choice(["adamw", "adamw-8bit"]), default="adamw", show_default=True),
        click.option("--precision", type=click.Choice(["no", "fp16", "bf16"]), default="no", show_default=True,
                     help="Of the passes through the networks; what is trained stays in fp32."),
        click.option("--gradient-checkpointing", is_flag=True, help="Less memory, and a third more time."),
        click.option("--seed", type=SEEDS, default=0, show_default=True),
        device_option,

        click.option("--validate", type=click.IntRange(0, MOST_IMAGES), metavar="N",
                     help="Hold N examples out to score the network by.  [default: 8, of 80 or more]"),
        click.option("--validate-every", type=click.IntRange(0, MOST), default=500, show_default=True, metavar="STEPS",
                     help="The best network is what is written."),
        click.option("--checkpoint-every", type=COUNT, default=500, show_default=True, metavar="STEPS"),
        click.option("--work", type=click.Path(path_type=Path), metavar="FOLDER",
                     help="Checkpoints, log, sheets.  [default: OUTPUT.training]"),
        click.option("--resume", is_flag=True, help="Go on from the last checkpoint, if there is one."),
        click.option("--force", is_flag=True,
                     help="Begin anew, and replace the output; with --resume only the latter."),

        click.option("-o", "--output", "target", type=TargetType(), required=not instead,
                     help="The file or folder to write, or a folder for the file."),
        click.option("--dtype", type=ADAPTER_DTYPE, default="fp16", show_default=True, help="Of the output."),
        config_option,
        prediction_option,
        variant_option,

        *instead,
        output_options,
    )  # fmt: skip


def show_result(result: TrainingResult, output: Output) -> None:
    if output.as_json:
        output.json(result.as_dict())
    score = f", validation score {result.best.score:.5g}" if result.best else ""
    output.text(f"{result.output}  after step {result.step}{score}")
    output.note(f"Draw with {result.sampling}.")
