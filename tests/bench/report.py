"""From measurements to the table and the JSON. Times in seconds, memory in bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

from contenders import LAMBDAS, Contender
from measure import Measurement
from rich.table import Table

GIB = 2**30


@dataclass(slots=True)
class Runs:
    """One contender's measurements by round, its output's agreement with the reference, and why it failed."""

    contender: Contender
    measurements: dict[int, Measurement] = field(default_factory=dict)
    agreement: dict[str, Any] | None = None
    failure: str = ""


def summarize(runs: Runs, table: dict[str, Runs]) -> dict[str, Any]:
    """``synced_over_cp`` compares until the output is on the disk, the other ratios each tool as it runs by itself."""
    contender, measured = runs.contender, list(runs.measurements.values())
    result: dict[str, Any] = {"title": contender.title, "note": contender.note, "rounds": len(measured)}
    if runs.failure:
        result["failure"] = runs.failure
    if measured:
        result |= {
            "wall_min": min(m.wall for m in measured),
            "wall_median": median(m.wall for m in measured),
            "synced_median": median(m.synced for m in measured),
            "user_median": median(m.user for m in measured),
            "system_median": median(m.system for m in measured),
            "peak_rss_max": None if contender.self_timed else max(m.peak_rss for m in measured),
            "synced_over_cp": _ratio(runs, table.get("cp"), "synced"),
            "wall_over_gemms": _ratio(runs, table.get("gemms"), "wall"),
            "wall_over_lcmmerge": _ratio(runs, table.get("lcmmerge"), "wall"),
            "agreement": runs.agreement,
        }
    return result


def _ratio(runs: Runs, other: Runs | None, seconds: str) -> float | None:
    """The median over the rounds of this contender's seconds over another's in the same round."""
    if other is None:
        return None
    pairs = [(m, other.measurements[n]) for n, m in runs.measurements.items() if n in other.measurements]
    return median(getattr(a, seconds) / getattr(b, seconds) for a, b in pairs) if pairs else None


def render(size: str, rows: dict[str, dict[str, Any]]) -> Table:
    table = Table(title=f"fuse, {size}, ranks 64 + 32, λ = {', '.join(LAMBDAS)}", show_lines=True)
    table.add_column("contender")
    for heading in ("wall: min / median", "on disk", "user + sys", "peak RSS", "÷ cp", "÷ GEMMs", "÷ lcmmerge"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("output against the float64 reference")
    for row in rows.values():
        cells = _numbers(row) if row["rounds"] else ["–"] * 7
        table.add_row(f"{row['title']}\n[dim]{row['note']}[/dim]", *cells, _verdict(row))
    return table


def _numbers(row: dict[str, Any]) -> list[str]:
    rss = row["peak_rss_max"]
    ratios = [row[key] for key in ("synced_over_cp", "wall_over_gemms", "wall_over_lcmmerge")]
    return [
        f"{row['wall_min']:.1f} / {row['wall_median']:.1f} s",
        f"{row['synced_median']:.1f} s",
        f"{row['user_median']:.1f} + {row['system_median']:.1f} s",
        f"{rss / GIB:.2f} GiB" if rss else "–",
        *(f"{value:.2f}" if value else "–" for value in ratios),
    ]


def _verdict(row: dict[str, Any]) -> str:
    agreement = row.get("agreement")
    if agreement is None:
        return row.get("failure", "–")
    rounded = f"{agreement['correctly_rounded']:.2%} correctly rounded, ≤ {agreement['worst_error_steps']} steps"
    where = ", ".join(f"{what} ×{count}" for what, count in agreement["differs_where"].items())
    return f"differs: {where}; {rounded}" if where else f"agrees: {rounded}"
