"""The benchmark of the search: ``PYTHONPATH=tests python tests/bench/search.py --json out.json``.

A 5×5 grid of λ on a U-Net of Stable Diffusion 1.5's layout, random weights, LoRAs of rank 32 and 64: the λ field, ways
in which diffusers does it, and as many plain samples with no λ at all. Each way is a process of its own, so that its
memory is its own; all are loaded first, and draw rows of the grid in turns. Ratios are taken within a turn and their
median is shown; of CPU seconds too, which other work on the machine changes less (with OMP_NUM_THREADS=1 they are the
work itself). Needs Linux.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import click
import gridmodel
import torch
from machine import describe
from measure import ENV
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from searchers import CPU, NETWORK, ROWS, SIDE, WALL, WAYS, WRITING

HERE = Path(__file__).parent
PACKAGES = ("diffusers", "lcmmerge", "peft", "torch", "transformers")
QUIET = {"DIFFUSERS_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error"}
MIB = 2**20
Turn = dict[str, Any]
log = Console(stderr=True)


class Searcher:
    """One way's process: it draws a row of the grid when it is told to."""

    def __init__(self, name: str, folder: Path, device: str, steps: int, images: int) -> None:
        self.name, self.turns = name, list[Turn]()
        self._target = folder / f"{name.replace('/', '-')}.latents"
        command = [sys.executable, HERE / "searchers.py", name, folder, device, str(steps), str(images), self._target]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENV | QUIET
        )
        self.once: float = self._told()["once"]

    def draw(self, row: int) -> Turn:
        self._process.stdin.write(f"{row}\n")
        self._process.stdin.flush()
        return self._told()

    def latents(self) -> dict[str, torch.Tensor]:
        """By cell; ends the process."""
        self._process.stdin.close()
        self._process.wait()
        return load_file(self._target)

    def _told(self) -> Turn:
        line = self._process.stdout.readline()
        if not line:
            raise click.ClickException(f"{self.name} failed")
        return json.loads(line)


def run(names: list[str], folder: Path, device: str, steps: int, images: int, repeats: int) -> dict[str, Turn]:
    """The first row is drawn once more before: texts are encoded, and libraries load what they load."""
    searchers = [Searcher(name, folder, device, steps, images) for name in names]
    for searcher in searchers:
        searcher.draw(0)
    for number in range(repeats * ROWS):
        for searcher in searchers:
            searcher.turns.append(searcher.draw(number % ROWS))
        took = ", ".join(f"{one.name} {one.turns[-1][WALL]['all']:.2f} s" for one in searchers)
        log.print(f"{steps} steps, turn {number + 1} of {repeats * ROWS}: {took}", highlight=False)
    return summarize(searchers)


def summarize(searchers: list[Searcher]) -> dict[str, Turn]:
    """Seconds of a cell, ratios to plain samples and to the field, memory, and how far the images are from its own."""
    turns = {one.name: one.turns for one in searchers}
    latents = {one.name: one.latents() for one in searchers}
    return {
        one.name: {
            "once": one.once,
            **{clock: median(turn[clock]["all"] for turn in one.turns) / len(SIDE) for clock in (WALL, CPU)},
            **{part: median(turn[CPU].get(part, 0.0) for turn in one.turns) / len(SIDE) for part in (WRITING, NETWORK)},
            **{f"{clock} / {other}": _ratio(one.turns, turns[other], clock)
               for clock in (WALL, CPU) for other in ("plain", "lcmmerge")},
            **{kind: max(turn[kind] for turn in one.turns) for kind in ("peak", "own")},
            "difference": None if one.name == "plain" else _difference(latents[one.name], latents["lcmmerge"]),
        }
        for one in searchers
    }  # fmt: skip


def _ratio(ours: list[Turn], theirs: list[Turn], clock: str) -> float:
    return median(one[clock]["all"] / other[clock]["all"] for one, other in zip(ours, theirs, strict=True))


def _difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The greatest difference of a latent, as a share of the latents' deviation."""
    return max(float((ours[cell] - found).abs().max() / found.std()) for cell, found in theirs.items())


HEADINGS = ("once", "wall", "CPU", WRITING, NETWORK, "rest", "÷ plain", "÷ lcmmerge", "peak RSS", "anonymous", "differ")


def render(title: str, rows: dict[str, Turn]) -> Table:
    """Seconds of CPU but for ``wall``; ratios of wall, and of CPU in brackets."""
    table = Table(title=title)
    table.add_column("seconds of a cell")
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in rows.items():
        rest = row[CPU] - row[WRITING] - row[NETWORK]
        table.add_row(
            name,
            f"{row['once']:.1f}",
            *(f"{value:.3f}" for value in (row[WALL], row[CPU], row[WRITING], row[NETWORK], rest)),
            *(f"{row[f'{WALL} / {other}']:.2f} ({row[f'{CPU} / {other}']:.2f})" for other in ("plain", "lcmmerge")),
            *(f"{row[kind] / MIB:.0f} MiB" for kind in ("peak", "own")),
            "–" if row["difference"] is None else f"{row['difference']:.0e}",
        )
    return table


@click.command(help="Draw a grid of λ by the field, by diffusers' ways and plainly, in turns, and print a table.")
@click.option("--size", type=click.Choice(list(gridmodel.SIZES)), default="small", show_default=True)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--stored", type=click.Choice(["fp32", "fp16"]), help="The base's dtype. [default: that it is drawn in]")
@click.option("--steps", multiple=True, default=(2, 4), show_default=True, help="Network evaluations per image.")
@click.option("--images", default=1, show_default=True, help="Per cell.")
@click.option("--ways", default=",".join(WAYS), show_default=True, help="plain and lcmmerge are always run.")
@click.option("--repeats", default=2, show_default=True, help="Of the grid.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the results here.")
def main(
    size: str, device: str, stored: str | None, steps: tuple[int, ...], images: int, ways: str, repeats: int,
    json_path: Path | None,
) -> None:  # fmt: skip
    names = [name for name in WAYS if name in {"plain", "lcmmerge", *ways.split(",")}]
    stored = stored or ("fp16" if device.startswith("cuda") else "fp32")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        gridmodel.make(size, Path(folder), {"fp32": torch.float32, "fp16": torch.float16}[stored])
        machine = describe(Path(folder), PACKAGES) | {
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        }
        for count in steps:
            load = os.getloadavg()[0]
            results[count] = run(names, Path(folder), device, count, images, repeats)
            title = f"{len(SIDE) ** 2} cells of {images} × {count} evaluations, {size}, stored {stored}"
            console = Console(width=None if sys.stdout.isatty() else 200)
            console.print(render(f"{title}; load {load:.1f} to {os.getloadavg()[0]:.1f}", results[count]))
    console.print(json.dumps(machine, ensure_ascii=False), highlight=False, soft_wrap=True)
    if json_path:
        found = {"size": size, "stored": stored, "images": images, "repeats": repeats, "machine": machine}
        json_path.write_text(json.dumps(found | {"steps": results}, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
