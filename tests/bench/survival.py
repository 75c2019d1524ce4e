"""What a merge keeps in quantised files: ``python tests/bench/survival.py [--json out.json]``.

Two ways to a file of each format: from bf16, rounded once, and from a base that is in the format already (decoded,
merged, encoded again). First on random weights of the real sizes, then on the embedded model, whose pictures are
judged. Gain and correlation are those that ``lcmmerge fuse`` reports. Prints Markdown; the load changes no number.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from embedded.claim import TEST_SEED  # noqa: E402 - a bench is run by hand, from anywhere
from embedded.folder import SHIPPED, Folder, prompts  # noqa: E402
from embedded.judge import LOOKS, Verdict, judged, proportion  # noqa: E402
from embedded.merging import merged, task_vector  # noqa: E402
from embedded.sampling import Method, sample  # noqa: E402
from embedded.vae import decoded  # noqa: E402
from machine import describe  # noqa: E402

from lcmmerge.bake.arithmetic import largest, measure_rounding, square  # noqa: E402
from lcmmerge.bake.outcome import Measured  # noqa: E402
from lcmmerge.tensors.encodings import Encoding, encodings  # noqa: E402

FORMATS = ("fp8_e4m3fn", "fp8_scaled", "mxfp8", "int8_convrot", "gguf:q8_0", "gguf:q4_0", "nvfp4")
ONCE, AGAIN = "from bf16", "from quantised"
WEIGHTS = {
    "FLUX.1's [3072, 3072], Gaussian": (3072, 3072, None),
    "Z-Image's [10240, 3840], Gaussian": (10240, 3840, None),
    "FLUX.1's [3072, 3072], Student's t of 5 degrees": (3072, 3072, 5),
}
RMS, RANK, RATIOS = 0.02, 16, (0.003, 0.01, 0.03)
ROWS = 256  # measured together: float32 sums stay short
STYLE, TERMS, METHOD = "neon", {"neon": 0.8, "lcm": 1.0}, Method("LCM", 4)

FOLDER = Folder(SHIPPED)
Row = dict[str, Any]


def stored(encoding: Encoding, weights: Tensor) -> Tensor:
    """``weights`` as a file in that encoding has them."""
    rows, parts = weights.reshape(len(weights), -1).contiguous(), encoding.allocate(weights.shape)
    encoding.encode(rows, parts, None, largest(rows))
    return encoding.decode(parts).float().reshape(weights.shape)


def survived(encoding: Encoding, before: Tensor, change: Tensor) -> tuple[Tensor, Measured]:
    """θ + Δ as it is stored, and what that keeps of Δ."""
    total, exact = Measured(), before + change
    written = stored(encoding, exact)
    for rows in zip(*(tensor.split(ROWS) for tensor in (before, exact, written)), strict=True):
        measured = Measured(square(rows[0]))
        measure_rounding(measured, *rows, ())
        total.add(measured)
    return written, total


def figures(measured: Measured) -> Row:
    """``relative``: ‖Δ‖/‖W‖. The correlation is None where nothing changed."""
    relative = (measured.change / measured.base_square) ** 0.5
    return {"relative": relative, "gain": measured.gain, "correlation": measured.correlation if measured.made else None}


def ways(encoding: Encoding, weights: Tensor) -> dict[str, Tensor]:
    """The base to which each way adds Δ."""
    return {ONCE: weights, AGAIN: stored(encoding, weights)}


def random_weights() -> Iterator[Row]:
    """Gain and correlation by weight, format, rms Δ / rms W and way."""
    table = encodings()
    for title, (rows, columns, degrees) in WEIGHTS.items():
        torch.manual_seed(0)
        weights = torch.randn(rows, columns)
        if degrees:
            weights /= torch.distributions.Chi2(torch.tensor(float(degrees))).sample(weights.shape).sqrt_()
        weights = (weights * RMS / weights.square().mean().sqrt()).bfloat16().float()
        change = torch.randn(rows, RANK) @ torch.randn(RANK, columns)
        change *= weights.norm() / change.norm()
        for name in ("bf16", *FORMATS):
            for way, before in ways(table[name], weights).items():
                for ratio in RATIOS:
                    measured = survived(table[name], before, change * ratio)[1]
                    yield {"weight": title, "format": name, "way": way, "ratio": ratio, **figures(measured)}


@dataclass(slots=True)
class Studio:
    """Where the embedded model draws. ``reference``: the bf16 merge's pictures and what the judge sees in them."""

    count: int
    reference: tuple[Tensor, Verdict] | None = None

    def rows(self) -> Iterator[Row]:
        """What is drawn with each way's weights, first the bf16 merge's. What does not fit a format is in bf16."""
        unet, table = FOLDER.load_unet(), encodings()
        base = {name: stored(table["bf16"], tensor) for name, tensor in unet.named_parameters()}
        vectors = {name: task_vector(FOLDER.lora(name), unet) for name in TERMS}
        tuned = dict(merged(unet, TERMS, vectors).named_parameters())
        changes = {name: tuned[name] - tensor for name, tensor in unet.named_parameters()}
        exact = {name: tensor + changes[name] for name, tensor in base.items()}
        merge = {name: stored(table["bf16"], tensor) for name, tensor in exact.items()}
        for name, weights in (("bf16", merge), ("fp32", exact), ("base alone", base)):
            yield {"format": name, "way": "", **self.drawn(unet, weights)}
        matrices = [key for key, tensor in base.items() if tensor.ndim > 1]
        for name in FORMATS:
            fitting = [key for key in matrices if table[name].fits(base[key].shape)]
            held, whole = (sum(base[key].numel() for key in keys) for keys in (fitting, base))
            where = {"matrices": len(fitting), "of": len(matrices), "share": held / whole}
            for way in (ONCE, AGAIN):
                total, weights = Measured(), dict(merge)
                for key in fitting:
                    before = ways(table[name], base[key])[way]
                    weights[key], measured = survived(table[name], before, changes[key])
                    total.add(measured)
                yield {"format": name, "way": way, **where, **figures(total), **self.drawn(unet, weights)}

    def drawn(self, unet: Any, weights: Mapping[str, Tensor]) -> Row:
        """Accuracy with its 95 % interval, and how far the pictures are from the reference."""
        unet.load_state_dict(weights)
        digits = torch.arange(self.count) % 10
        pictures = decoded(FOLDER.load_vae(), sample(unet, prompts(), digits, METHOD, TEST_SEED))
        verdict = judged(FOLDER.load_judge(), pictures)
        self.reference = self.reference or (pictures, verdict)
        right = (verdict.digits == digits) & (verdict.looks == list(LOOKS).index(STYLE))
        return {
            "accuracy": proportion(right),
            "greys": float((pictures - self.reference[0]).square().mean().sqrt()) * 127.5,  # of 255
            "otherwise": float((verdict.digits != self.reference[1].digits).float().mean()),
        }


def noted(rows: Iterator[Row]) -> Iterator[Row]:
    for row in rows:
        click.echo(f"{row.get('weight', 'the embedded model')}: {row['format']} {row['way']}", err=True)
        yield row


def random_tables(rows: Sequence[Row]) -> Iterator[str]:
    """A table a weight."""
    for title in WEIGHTS:
        yield f"{title}:\n"
        yield line("rms Δ / rms W", *(f"{percent(ratio)}, {way}" for ratio in RATIOS for way in (ONCE, AGAIN)))
        yield line("---", *["---"] * len(RATIOS) * 2)
        for name in ("bf16", *FORMATS):
            mine = {(row["ratio"], row["way"]): row for row in rows if (row["weight"], row["format"]) == (title, name)}
            yield line(name, *(kept(mine[ratio, way]) for ratio in RATIOS for way in (ONCE, AGAIN)))
        yield ""


def drawn_table(rows: Sequence[Row]) -> Iterator[str]:
    heads = ("matrices, parameters", "way", "rms Δ / rms W", "gain", "accuracy", "grey levels", "judged otherwise")
    yield line("format", *heads)
    yield line("---", *["---"] * len(heads))
    for row in rows:
        where = ["", "", "", ""]
        if row["way"]:
            matrices = f"{row['matrices']} of {row['of']}, {percent(row['share'])}"
            where = [matrices, row["way"], percent(row["relative"]), kept(row)]
        share, low, high = row["accuracy"]
        accuracy = f"{share:.2f} ±{(high - low) / 2:.2f}"
        yield line(row["format"], *where, accuracy, f"{row['greys']:.1f}", percent(row["otherwise"]))


def kept(row: Row) -> str:
    return f"{row['gain']:z.2f} ({'–' if row['correlation'] is None else format(row['correlation'], 'z.2f')})"


def percent(share: float) -> str:
    return f"{share * 100:.3g} %"


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


@click.command(help="Measure what a merge keeps in each format.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the results here.")
@click.option("--count", default=500, show_default=True, help="Pictures of the embedded model, a row.")
def main(json_path: Path | None, count: int) -> None:
    weights, embedded = list(noted(random_weights())), list(noted(Studio(count).rows()))
    click.echo("\n".join([*random_tables(weights), *drawn_table(embedded)]))
    if json_path:
        result = {"machine": describe(HERE, ["torch"]), "weights": weights, "count": count, "embedded": embedded}
        json_path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
