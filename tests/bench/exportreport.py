"""The tables of ``export.py``, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GB = 1e9
NAMES = {"sd1": "SD1.5", "sdxl": "SDXL"}


@dataclass(frozen=True, slots=True)
class Line:
    """A process: seconds and bytes. ``synced``: until its output was on the disk; ``load``: when it began."""

    title: str
    load: float
    wall: float
    synced: float
    cpu: float
    peak_rss: int


def render(lines: Sequence[Line], found: Mapping[str, Any]) -> str:
    tables = (_processes(lines), _goals({line.title: line for line in lines}, found), _parity(found),
              _opened(found), _latency(found), _parsed(found))  # fmt: skip
    return "\n\n".join("\n".join(rows) for table in tables if (rows := list(table))[2:])


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _head(first: str, *numbers: str) -> Iterator[str]:
    yield _row(first, *numbers)
    yield _row("---", *["---:"] * len(numbers))


def _processes(lines: Sequence[Line]) -> Iterator[str]:
    yield from _head("full size, random weights", "wall", "on disk", "CPU", "peak RSS", "load")
    for line in lines:
        name, _, rest = line.title.partition(" ")
        seconds = (f"{value:.1f} s" for value in (line.wall, line.synced, line.cpu))
        yield _row(f"{NAMES[name]} {rest}", *seconds, f"{line.peak_rss / GB:.2f} GB", f"{line.load:.1f}")


def _goals(lines: Mapping[str, Line], found: Mapping[str, Any]) -> Iterator[str]:
    """Those of which both sides were measured."""
    yield from _head("goal", "asked", "found")
    if large := lines.get("sdxl U-Net fp16, traced"):
        yield _row("SDXL U-Net fp16, peak RSS", "< 1.0 GB", f"{large.peak_rss / GB:.2f} GB")
    for title, said in found.items():
        if "U-Net" in title:
            seconds = max(said[name]["link"] for name in ("model.onnx", "model.fused.onnx"))
            count = said["model.onnx"]["parameters"]
            yield _row(f"link, {NAMES[title.split()[0]]}, {count} parameters", "< 0.1 s", f"{seconds:.3f} s")
    if peer := lines.get("sd1 U-Net fp32, by optimum"):
        ours = lines["sd1 U-Net fp32, traced"]
        yield _row("SD1.5 U-Net fp32 against optimum: wall", "≥ 2 × less", f"{peer.synced / ours.synced:.1f} ×")
        yield _row("the same: peak RSS", "≥ 4 × less", f"{peer.peak_rss / ours.peak_rss:.1f} ×")
    if changed := lines.get("sd1 merge fp16, another λ"):
        anew = lines["sd1 merge fp16, whole, traced"]
        yield _row("SD1.5, another λ against exporting anew", "≥ 20 ×", f"{anew.wall / changed.wall:.1f} ×")
    for name in NAMES:
        again = lines.get(f"{name} U-Net fp16, from the graph cache")
        if again:
            copied = lines[f"{name} U-Net fp16, cp + fsync of the weights"]
            ratio = f"{again.synced / copied.synced:.1f} × its time"
            yield _row(f"{NAMES[name]} U-Net from the graph cache", "bound by cp + fsync", ratio)


def _parity(found: Mapping[str, Any]) -> Iterator[str]:
    """The error relative to the largest output, the worst of six sizes."""
    dtypes = [dtype for dtype in ("fp32", "fp16") if f"parity {dtype}" in found]
    yield from _head("SD1.5 under ONNX Runtime, largest error", *(f"{dtype}, relative" for dtype in dtypes))
    graphs = {(name, variant) for dtype in dtypes for name, by in found[f"parity {dtype}"].items() for variant in by}
    for name, variant in sorted(graphs):
        yield _row(f"{name}, {variant}", *(f"{found[f'parity {d}'][name][variant]['relative']:.1e}" for d in dtypes))


def _opened(found: Mapping[str, Any]) -> Iterator[str]:
    yield from _head("opened by ONNX Runtime, CPU", "shapes told", "not told", "ratio", "bytes by them")
    for name, title in NAMES.items():
        for graph, said in found.get(f"open {name}", {}).items():
            ratio, more = said["bare"] / said["told"], said["bytes"] / said["bare_bytes"] - 1
            yield _row(f"{title} {graph}", f"{said['told']:.1f} s", f"{said['bare']:.1f} s", f"{ratio:.1f} ×",
                       f"+{more:.0%}")  # fmt: skip


def _latency(found: Mapping[str, Any]) -> Iterator[str]:
    said = found.get("latency", {"rows": (), "threads": 0, "load": 0.0})
    yield from _head(f"SD1.5 U-Net fp32, batch 1, {said['threads']} threads, load {said['load']:.1f}", "size", "median",
                     "× eager")  # fmt: skip
    for row in said["rows"]:
        yield _row(row["by"], "×".join(map(str, row["size"])), f"{row['median']:.2f} s", f"{row['speed']:.2f}")


def _parsed(found: Mapping[str, Any]) -> Iterator[str]:
    yield from _head("exported in fp16, by TensorRT-RTX's parser", "graphs", "seconds", "problems")
    for name, title in NAMES.items():
        graphs = found.get(f"parse {name}", {})
        problems = [f"{graph}: {what}" for graph, said in graphs.items() for what in said["broken"] + said["problems"]]
        if graphs:
            seconds = sum(said["seconds"] for said in graphs.values())
            yield _row(title, len(graphs), f"{seconds:.1f}", "; ".join(problems) or "none")
