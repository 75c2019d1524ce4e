"""The benchmark of ``lcmmerge export``: ``python tests/bench/export.py --json out.json``.

Stable Diffusion 1.5's and SDXL's real sizes, random weights (made once, in ``--workdir``). Prints Markdown. Every line
of the first table is a process of its own with its inputs in the page cache, and the load that it began under. Parts:

``unet``      the U-Net's export in fp16: traced, again from the graph cache, beside cp + fsync of its weight file
``peer``      SD1.5's U-Net in fp32, beside optimum's export of it, which gets an environment of its own
``relambda``  SD1.5 with a style and an LCM-LoRA: exported anew, again, and given another λ
``parity``    SD1.5 in fp32 and fp16 under ONNX Runtime against torch in float32
``open``      every graph of both in fp16, opened by ONNX Runtime as exported, and with no shapes told of inner values
``latency``   SD1.5's U-Net in fp32 on the CPU: ONNX Runtime, torch eager and torch.compile in turns
``parse``     the graphs of both by TensorRT-RTX's parser; without the extra ``tensorrt-rtx`` the part is left out

Needs Linux, 16 GB of memory for optimum's turn, and 50 GB of disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from exportreport import Line, render
from machine import describe
from measure import ENV, Measurement, measure, settle
from optimum_clients import environment
from rich.console import Console

HERE = Path(__file__).parent
LCMMERGE = (sys.executable, "-m", "lcmmerge")
COPY = ("sh", "-c", 'cp --reflink=never "$1" "$2" && sync "$2"', "sh")
SIZES, DTYPES = ("sd1", "sdxl"), ("fp32", "fp16")
GRAPHS, WEIGHTS = ("model.onnx", "model.fused.onnx"), "diffusion_pytorch_model.safetensors"
COMPONENTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
LAMBDAS, OTHER_LAMBDAS = ("0.8", "1.0"), ("0.6", "1.0")
PACKAGES = ("diffusers", "lcmmerge", "onnx", "onnxruntime-gpu", "torch", "transformers")
Found = dict[str, Any]
log = Console(stderr=True)


class Bench:
    """``lines``: the processes that were measured; ``found``: what else the parts say."""

    def __init__(self, workdir: Path, optimum: Path, pixels: tuple[str, ...]) -> None:
        self.workdir, self.optimum, self.pixels = workdir, optimum, pixels
        self.lines: list[Line] = []
        self.found: dict[str, Found] = {}

    def model(self, size: str) -> Path:
        return self.workdir / size / ("pipeline" if size == "sd1" else "base.safetensors")

    def inputs(self, size: str) -> list[Path]:
        model = self.model(size)
        return [model] if model.is_file() else sorted(model.rglob("*.safetensors"))

    def measure(
        self, title: str, command: Sequence[Any], inputs: Sequence[Path], output: Path, *leftovers: Path
    ) -> Measurement:
        """A line of the table, its ``leftovers`` deleted before."""
        settle(inputs, *leftovers)
        load = os.getloadavg()[0]
        found = measure(_texts(command), output)
        self.lines.append(Line(title, load, found.wall, found.synced, found.user + found.system, found.peak_rss))
        log.print(f"{title}: {found.wall:.1f} s, {found.peak_rss / 1e9:.2f} GB, load {load:.1f}", highlight=False)
        return found

    def unet(self, size: str, dtype: str) -> Path:
        """Leaves the export at the path returned."""
        folder, title = self.workdir / size, f"{size} U-Net {dtype}"
        out, cache = folder / f"unet-{dtype}", folder / f"cache-{dtype}"
        command = [*_task("unet"), self.model(size), folder / "pipeline", dtype, out, cache]
        traced = self.measure(f"{title}, traced", command, self.inputs(size), out, out, cache)
        self.found[title] = {"traced": json.loads(traced.stdout)} | {
            name: _told([*_task("link"), out / "unet" / name, out / "unet" / WEIGHTS]) for name in GRAPHS
        }
        again = self.measure(f"{title}, from the graph cache", command, self.inputs(size), out, out)
        self.found[title]["again"] = json.loads(again.stdout)
        return out

    def unets(self) -> None:
        for size in SIZES:
            out, copied = self.unet(size, "fp16"), self.workdir / size / "copied"
            weights = out / "unet" / WEIGHTS
            title = f"{size} U-Net fp16, cp + fsync of the weights"
            self.measure(title, [*COPY, weights, copied], [weights], copied, copied)
            settle([], out, copied)

    def peer(self) -> None:
        ours = self.unet("sd1", "fp32")
        out = self.workdir / "sd1" / "optimum"
        command = [environment(self.optimum), HERE / "peers" / "optimum_export.py", "unet", self.model("sd1"), out]
        self.measure("sd1 U-Net fp32, by optimum", command, self.inputs("sd1"), out, out)
        settle([], ours, out)

    def relambda(self) -> None:
        folder = self.workdir / "sd1"
        out, cache, style, lcm = (folder / name for name in ("merged", "cache-merge", "style.safetensors",
                                                             "lcm.safetensors"))  # fmt: skip
        command = [*LCMMERGE, "export", self.model("sd1"), style, "--lambda", *LAMBDAS, "--lcm", lcm, "--quiet",
                   "--accelerator", "lcm", "--cache", cache, "-o", out]  # fmt: skip
        inputs, title = [*self.inputs("sd1"), style, lcm], "sd1 merge fp16"
        self.measure(f"{title}, whole, traced", command, inputs, out, out, cache)
        self.measure(f"{title}, whole, from the graph cache", command, inputs, out, out)
        command = [*LCMMERGE, "relambda", out, "--lambda", *OTHER_LAMBDAS, "--source", folder, "--quiet"]
        self.measure(f"{title}, another λ", command, inputs, out)
        settle([], out)

    def export(self, size: str, dtype: str) -> Path:
        """A whole export, made once."""
        folder, title = self.workdir / size, f"{size} {dtype}, whole"
        out = folder / f"export-{dtype}"
        if not out.exists():
            command = [*LCMMERGE, "export", self.model(size), "--config-from", folder / "pipeline", "--dtype", dtype,
                       "--cache", folder / f"cache-{dtype}", "-o", out, "--quiet"]  # fmt: skip
            self.measure(title, command, self.inputs(size), out, out)
        return out

    def parity(self) -> None:
        for dtype in DTYPES:
            self.found[f"parity {dtype}"] = _told([*_task("parity"), self.export("sd1", dtype), *COMPONENTS])

    def open(self) -> None:
        for size in SIZES:
            folder = self.export(size, "fp16")
            found = _told([*_task("opened"), *sorted(folder.rglob("*.onnx"))])
            self.found[f"open {size}"] = {str(Path(path).relative_to(folder)): said for path, said in found.items()}

    def latency(self) -> None:
        sizes = [item for size in self.pixels for item in ("--size", size)]
        command = [*LCMMERGE, "bench", self.export("sd1", "fp32"), "--component", "unet", *sizes, "--json"]
        load = os.getloadavg()[0]
        self.found["latency"] = {"load": load, **_told([*command, "--repeats", 3, "--warmup", 1])}

    def parse(self) -> None:
        for size in SIZES:
            folder = self.export(size, "fp16")
            found = _told([*_task("parse"), *sorted(folder.rglob("*.onnx"))])
            self.found[f"parse {size}"] = {str(Path(path).relative_to(folder)): said for path, said in found.items()}


PARTS: dict[str, Callable[[Bench], None]] = {
    "unet": Bench.unets,
    "peer": Bench.peer,
    "relambda": Bench.relambda,
    "parity": Bench.parity,
    "open": Bench.open,
    "latency": Bench.latency,
    "parse": Bench.parse,
}


def _task(name: str) -> list[Any]:
    return [sys.executable, HERE / "exporters.py", name]


def _told(command: Sequence[Any]) -> Found:
    return json.loads(measure(_texts(command)).stdout)


def _texts(command: Sequence[Any]) -> list[str]:
    return [str(item) for item in command]


def make(workdir: Path) -> None:
    for size in SIZES:
        for maker in ("models.py", "exportmodels.py"):
            command = [sys.executable, HERE / maker, "--size", size, "--workdir", workdir]
            subprocess.run(command, env=ENV, check=True)


@click.command(help="Export real sizes, beside optimum and torch, and print tables in Markdown.")
@click.option("--part", "parts", type=click.Choice(list(PARTS)), multiple=True, help="[default: all]")
@click.option("--optimum", type=click.Path(path_type=Path), help="Where its environment is, or is to be made.")
@click.option("--pixels", multiple=True, default=("256x256",), show_default=True, help="Sizes of the latencies.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the results here.")
@click.option("--workdir", type=click.Path(path_type=Path), help="Keeps the files [default: temporary].")
def main(
    parts: tuple[str, ...], optimum: Path | None, pixels: tuple[str, ...], json_path: Path | None, workdir: Path | None
) -> None:
    workdir = workdir or Path(tempfile.gettempdir()) / "lcmmerge-bench"
    make(workdir)
    bench = Bench(workdir, optimum or workdir / "optimum", pixels)
    for part in parts or PARTS:
        if part == "parse" and find_spec("tensorrt_rtx_bindings") is None:
            log.print("parse is left out: pip install 'lcmmerge[tensorrt-rtx]'", markup=False)
            continue
        PARTS[part](bench)
    machine = describe(workdir, PACKAGES)
    click.echo(render(bench.lines, bench.found))
    click.echo(f"\n{json.dumps(machine, ensure_ascii=False)}")
    if json_path:
        found = {"machine": machine, "lines": [asdict(line) for line in bench.lines], "found": bench.found}
        json_path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
