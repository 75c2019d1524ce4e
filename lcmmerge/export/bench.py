"""How long an export's graphs take, beside torch with the same weights: eager, and compiled.

All that are compared for a component and a size take turns in one run, so that they meet the same machine; each has
been called before, and the median of its calls is what counts.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from lcmmerge.draw.drawable import native_size
from lcmmerge.draw.jobs import Size
from lcmmerge.errors import LcmMergeError
from lcmmerge.export.manifest import ExportManifest, parameters_of, read_manifest, versions
from lcmmerge.export.runtime import TORCH, Session, choose_provider, device_of, open_session
from lcmmerge.graphs.components import PipelinePart, Port, components_of
from lcmmerge.output import Output
from lcmmerge.tensors.dtypes import OUTPUT_DTYPES

EAGER, COMPILED = "torch eager", "torch.compile"
TIMESTEP = 499
Run = Callable[[], object]


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """What is to be timed.

    ``sizes``: width, height; the model's own where there are none. ``components``: all where there are none.
    """

    provider: str | None = None
    sizes: tuple[Size, ...] = ()
    components: tuple[str, ...] = ()
    batch: int = 1
    repeats: int = 7
    warmup: int = 2
    compiled: bool = True


@dataclass(frozen=True, slots=True)
class BenchRow:
    """Seconds of one call, ``by`` a runtime; ``speed``: torch eager's time over this one's."""

    component: str
    size: Size
    by: str
    median: float
    least: float
    speed: float


@dataclass(frozen=True, slots=True)
class Bench:
    """The times of an export's components beside torch's."""

    asked: BenchRequest
    device: str
    threads: int
    rows: tuple[BenchRow, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "asked": asdict(self.asked),
            "device": self.device,
            "threads": self.threads,
            "machine": platform.machine(),
            "versions": versions(),
            "rows": [asdict(row) for row in self.rows],
        }


def bench(folder: Path, asked: BenchRequest, output: Output) -> Bench:
    """Time each component at each size. Raises as ``open_export`` does."""
    manifest = read_manifest(folder)
    known = {component.name: component for component in components_of(folder)}
    if unknown := sorted(set(asked.components) - manifest.components.keys()):
        raise LcmMergeError(f"{folder}: has no component {unknown[0]!r}", f"it has {', '.join(manifest.components)}")
    todo = [known[name] for name in manifest.components if name in asked.components or not asked.components]
    dtypes = {str(manifest.components[component.name]["dtype"]) for component in todo}
    parameters = parameters_of(manifest, [component.name for component in todo])
    provider = choose_provider(asked.provider, dtypes, output.note, parameters=parameters)
    sizes = asked.sizes or (native_size(folder),)
    rows: list[BenchRow] = []
    with output.progress("bench", len(todo) * len(sizes), "sizes") as progress:
        for component in todo:
            contenders = Contenders(folder, manifest, component, provider, asked, output)
            for size in sizes:
                rows += contenders.race(size)
                progress(1)
    return Bench(asked, device_name(device_of(provider)), torch.get_num_threads(), tuple(rows))


class Contenders:
    """A component's graphs on a provider, and its module in torch, on the same device in the same dtype."""

    def __init__(
        self, folder: Path, manifest: ExportManifest, component: PipelinePart, provider: str, asked: BenchRequest,
        output: Output,
    ) -> None:  # fmt: skip
        said = manifest.components[component.name]
        self.component, self.asked, self.output = component, asked, output
        self.device, self.dtype = device_of(provider), OUTPUT_DTYPES[said["dtype"]].torch
        self.sessions: dict[str, Session] = {
            f"{'interpreter' if provider == TORCH else f'ONNX Runtime {provider}'}, {variant}": open_session(
                folder / graph["path"], provider
            )
            for variant, graph in said["graphs"].items()
        }
        self.module = component.filled(folder / said["weights"], self.dtype, self.device)
        # A graph takes any size; torch is given the best of its own, a program for each.
        self.compiled: Callable[..., Any] | None = None
        if asked.compiled:
            self.compiled = torch.compile(self.module, dynamic=False)

    def race(self, size: Size) -> Iterator[BenchRow]:
        inputs = example(self.component, size, self.asked.batch, self.dtype, self.device)
        runs: dict[str, Run] = {EAGER: lambda: self.module(*inputs.values())}
        if (compiled := self._compiled_for(inputs)) is not None:
            runs[COMPILED] = lambda: compiled(*inputs.values())
        for name, session in self.sessions.items():
            runs[name] = lambda session=session: session(inputs)  # type: ignore[misc]
        times = take_turns(runs, self.asked.repeats, self.asked.warmup, self.device)
        usual = median(times[EAGER])
        for by, seconds in times.items():
            yield BenchRow(self.component.name, size, by, median(seconds), min(seconds), usual / median(seconds))

    def _compiled_for(self, inputs: Mapping[str, Tensor]) -> Callable[..., Any] | None:
        """The module, compiled for these inputs; None where that is not asked for, or fails."""
        if self.compiled is not None:
            try:
                with torch.no_grad():
                    self.compiled(*inputs.values())
            except Exception as error:  # whatever its compilers raise: a machine without one has its other figures
                self.output.warn(f"{self.component.name}: torch.compile fails here: {str(error).splitlines()[0]}")
                self.compiled = None
        return self.compiled


def take_turns(runs: Mapping[str, Run], repeats: int, warmup: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of ``repeats`` calls of each, in turns, after ``warmup`` turns that do not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad():
        for turn in range(warmup + repeats):
            for name, run in runs.items():
                _wait(device)
                start = time.perf_counter()
                run()
                _wait(device)
                if turn >= warmup:
                    times[name].append(time.perf_counter() - start)
    return times


def example(
    component: PipelinePart, size: Size, batch: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Inputs of a component for images of a size, by name: noise, the middle of the schedule, an empty prompt."""
    width, height = size
    dims = {"batch": batch, "sequence": 77, "width": width, "height": height}
    dims |= {"latent_width": width // 8, "latent_height": height // 8}
    generator = torch.Generator().manual_seed(0)
    return {port.name: _given(port, dims, dtype, generator).to(device) for port in component.inputs}


def _given(port: Port, dims: Mapping[str, int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    shape = [dims[dim] if isinstance(dim, str) else dim for dim in port.dims]
    if port.dtype is not None:
        return torch.full(shape, 0 if shape else TIMESTEP, dtype=port.dtype)
    return torch.randn(shape, generator=generator).to(dtype)


def device_name(device: torch.device) -> str:
    """``NVIDIA H100 80GB HBM3``; ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table(rows: Sequence[BenchRow]) -> list[tuple[str, ...]]:
    """The rows in words."""
    return [
        (row.component, "×".join(map(str, row.size)), row.by, *figures)
        for row in rows
        for figures in [(f"{row.median * 1000:.1f}", f"{row.least * 1000:.1f}", f"{row.speed:.2f}")]
    ]
