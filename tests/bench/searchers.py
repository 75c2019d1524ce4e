"""A grid of λ drawn in one of several ways: ``python searchers.py NAME FOLDER DEVICE STEPS IMAGES TARGET``.

Loads, says in a line of JSON what that took, then draws a row of the grid for each number that it reads and says what
that took; TARGET gets the latents. All sample by the same call of diffusers' pipeline; they differ in how a cell's λs
come into the U-Net.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch
from merging import merge_of
from safetensors.torch import save_file
from torch import Tensor

from lcmmerge.draw.draw import draw
from lcmmerge.draw.drawable import native_size
from lcmmerge.draw.encode import Encoder
from lcmmerge.draw.jobs import jobs_of
from lcmmerge.draw.load import Pipeline, load_pipeline
from lcmmerge.draw.presets import choose
from lcmmerge.merge.plan import plan
from lcmmerge.search.drawing import LATENTS, Drawing, FieldDrawer
from lcmmerge.search.field import Field, reached
from lcmmerge.search.order import Cell, ordered

SIDE = (0.2, 0.4, 0.6, 0.8, 1.0)
ROWS = len(SIDE)
WALL, CPU = "wall", "cpu"
WRITING, NETWORK = "writing θ", "U-Net"
Draw = Callable[[Iterable[Cell]], Iterator[Tensor]]


class Clock:
    """Seconds, of the wall and of the CPU, by what they went into."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.clear()

    def clear(self) -> None:
        self.seconds: dict[str, Counter[str]] = {WALL: Counter(), CPU: Counter()}

    def now(self) -> dict[str, float]:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return {WALL: time.perf_counter(), CPU: time.process_time()}

    @contextmanager
    def measured(self, what: str) -> Iterator[None]:
        begin = self.now()
        yield
        for clock, end in self.now().items():
            self.seconds[clock][what] += end - begin[clock]

    def watch(self, module: torch.nn.Module) -> None:
        """Count a module's forward passes."""
        forward = module.forward

        def watched(*arguments: Any, **named: Any) -> Any:
            with self.measured(NETWORK):
                return forward(*arguments, **named)

        module.forward = watched


class TimedField(Field):
    """A field that says how long it writes."""

    clock: Clock

    def set(self, cell: Cell) -> None:
        with self.clock.measured(WRITING):
            super().set(cell)


class Bench:
    """The model, the merge's plan, and what every cell draws: ``images`` of one prompt at ``steps``, no guidance."""

    def __init__(self, folder: Path, device: str, steps: int, images: int) -> None:
        base, self.loras = folder / "base", [folder / f"{name}.safetensors" for name in ("style", "lcm")]
        style, lcm = map(str, self.loras)
        self.plan = plan(merge_of(str(base), style=style, strengths=(1.0, 1.0), lcm=lcm, accelerator="lcm"))
        place = torch.device(device)
        dtype = torch.float16 if place.type == "cuda" else torch.float32
        self.pipeline: Pipeline = load_pipeline(self.plan.base, base, dtype, place)
        self.preset = choose(self.plan.base, base, accelerator="lcm", steps=steps)
        self.jobs = tuple(jobs_of(["a seven"], native_size(base), count=images))
        self.cells = ordered(map(Cell, product(SIDE, SIDE)), reached(self.plan), Cell((0.0, 0.0)))
        self.clock = Clock(place)

    def one_by_one(self, set_cell: Callable[[Cell], None]) -> Draw:
        encoder = Encoder(self.pipeline)

        def draw_cells(cells: Iterable[Cell]) -> Iterator[Tensor]:
            for cell in cells:
                with self.clock.measured(WRITING):
                    set_cell(cell)
                drawn = draw(self.pipeline, self.jobs, self.preset, len(self.jobs), wanted=LATENTS, encoder=encoder)
                yield torch.stack([one.latents for one in drawn])

        return draw_cells

    def by_field(self) -> Draw:
        """As a search draws."""
        field = TimedField(self.plan, self.pipeline)
        field.clock = self.clock
        drawer = FieldDrawer(field, len(self.jobs))

        def draw_cells(cells: Iterable[Cell]) -> Iterator[Tensor]:
            drawings = [Drawing("cell", cell, self.preset, self.jobs) for cell in cells]
            yield from (drawn.latents for drawn in drawer(drawings))

        return draw_cells

    def load_loras(self) -> None:
        for path in self.loras:
            self.pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=path.stem)

    def set_adapters(self, cell: Cell) -> None:
        self.pipeline.set_adapters([path.stem for path in self.loras], list(cell.lambdas))


def plain(bench: Bench) -> Draw:
    return bench.one_by_one(lambda cell: None)


def fuse(bench: Bench) -> Draw:
    bench.load_loras()
    fused = False

    def set_cell(cell: Cell) -> None:
        nonlocal fused
        if fused:
            bench.pipeline.unfuse_lora(components=["unet"])
        bench.set_adapters(cell)
        bench.pipeline.fuse_lora(components=["unet"])
        fused = True

    return bench.one_by_one(set_cell)


def unfused(bench: Bench) -> Draw:
    bench.load_loras()
    return bench.one_by_one(bench.set_adapters)


WAYS: dict[str, Callable[[Bench], Draw]] = {
    "plain": plain,
    "lcmmerge": Bench.by_field,
    "fuse/unfuse": fuse,
    "set_adapters": unfused,
}


def memory(device: torch.device) -> dict[str, int]:
    """Bytes: the largest resident set, and what of the present one is no file's page; on a GPU, of its memory."""
    if device.type == "cuda":
        return {"peak": torch.cuda.max_memory_allocated(), "own": torch.cuda.memory_allocated()}
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    fields = {line[0]: line[1] for line in lines if len(line) > 1}
    return {"peak": 1024 * int(fields["VmHWM:"]), "own": 1024 * int(fields["RssAnon:"])}


def serve(name: str, folder: str, device: str, steps: str, images: str, target: str) -> None:
    bench = Bench(Path(folder), device, int(steps), int(images))
    clock = bench.clock
    with clock.measured("once"):
        draw_cells = WAYS[name](bench)
    say({"once": clock.seconds[CPU]["once"]})
    clock.watch(bench.pipeline.unet)
    latents: dict[str, Tensor] = {}
    for line in sys.stdin:
        begin = int(line) * len(SIDE)
        row = bench.cells[begin : begin + len(SIDE)]
        clock.clear()
        with clock.measured("all"):
            found = list(draw_cells(row))
        latents |= zip(map(str, row), found, strict=True)
        say({**clock.seconds, **memory(bench.pipeline.unet.device)})
    save_file(latents, target)


def say(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve(*sys.argv[1:])
