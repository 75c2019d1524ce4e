"""Does an output hold the merge that was asked for? ``python check.py FOLDER OUTPUT LAMBDA1 LAMBDA2`` prints JSON.

The reference is θ + λ1 τ_style + λ2 τ_LCM in float64, for the first rows of every parameter that an adapter touches
(so that a key that a tool dropped shows), and the base's own bytes for a sample of the others. An error is counted
in steps of the base's dtype at |θ| + Σ|λτ|: one rounding makes half a step at most, one per term and per sum two.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from plainfile import Plain, open_plain

ROWS = 16
UNTOUCHED = 40
AGREES = 2.0  # steps
Terms = list[tuple[Plain, str, float]]  # (adapter, module key, λ)


class Output:
    """A single file, or a diffusers folder in which some components may be missing, by canonical parameter."""

    def __init__(self, path: Path) -> None:
        single = path.is_file()
        self.single = open_plain(path) if single else None
        self.parts = {} if single else {file.parent.name: open_plain(file) for file in path.glob("*/*.safetensors")}

    def has_component(self, name: str) -> bool:
        return self.single is not None or name in self.parts

    def locate(self, parameter: str, stored: str) -> tuple[Plain, str] | None:
        component, _, name = parameter.partition(".")
        if self.single is not None:
            return (self.single, stored) if stored in self.single else None
        # transformers 5 leaves the first level of a text encoder's names out.
        names = (name, name.removeprefix("text_model."))
        part = self.parts[component]
        return next(((part, found) for found in names if found in part), None)


def delta(adapter: Plain, key: str, rows: int) -> np.ndarray:
    """float64 [rows, in·kh·kw]: alpha / rank · up @ down."""
    names = ("lora_up", "lora_down") if f"{key}.lora_up.weight" in adapter else ("lora_B", "lora_A")
    up = adapter.array(f"{key}.{names[0]}.weight", 0, rows).astype(np.float64).reshape(rows, -1)
    down = adapter.array(f"{key}.{names[1]}.weight").astype(np.float64)
    alpha = float(adapter.array(f"{key}.alpha")) if f"{key}.alpha" in adapter else len(down)
    return alpha / len(down) * up @ down.reshape(len(down), -1)


def nearest(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """Rounded to the dtype, ties to even."""
    if dtype != "BF16":
        return numbers.astype(np.float16)
    step = spacing(np.abs(numbers), dtype)
    return np.round(numbers / step) * step


def spacing(magnitude: np.ndarray, dtype: str) -> np.ndarray:
    """The step between two numbers of the dtype there."""
    if dtype != "BF16":
        return np.spacing(magnitude.astype(np.float16)).astype(np.float64)
    return np.exp2(np.floor(np.log2(np.maximum(magnitude, 1e-30))) - 7)


def compare(entry: dict[str, Any], base: Plain, terms: Terms, output: Output) -> dict[str, Any]:
    """One touched parameter: its worst error in steps, and how many of its elements are correctly rounded."""
    rows = min(ROWS, entry["shape"][0])
    found = output.locate(entry["parameter"], entry["stored"])
    if found is None:
        return {"verdict": "missing", "steps": float("inf"), "exact": 0, "elements": 1}
    plain, name = found
    first = entry["first_row"] if output.single is not None else 0
    before = base.array(entry["stored"], entry["first_row"], rows).reshape(rows, -1)
    after = plain.array(name, first, rows).reshape(rows, -1)
    reference = before.astype(np.float64)
    magnitude = np.abs(reference)
    for adapter, key, strength in terms:
        term = strength * delta(adapter, key, rows)
        reference, magnitude = reference + term, magnitude + np.abs(term)
    dtype = base.entries[entry["stored"]][0]
    step = spacing(magnitude, dtype)
    steps = float((np.abs(after.astype(np.float64) - reference) / step).max())
    verdict = "agrees" if steps <= AGREES else "unchanged" if np.array_equal(before, after) else "differs"
    exact = int((after == nearest(reference, dtype)).sum())
    return {"verdict": verdict, "steps": steps, "exact": exact, "elements": after.size}


def untouched(base: Plain, touched: set[str], output: Output) -> Iterator[tuple[str, bool]]:
    """Whether tensors that no adapter names kept their bytes; single files only (folders rename and reshape)."""
    if output.single is None:
        return
    names = [name for name in base.entries if name not in touched]
    for name in names[:: max(1, len(names) // UNTOUCHED)]:
        same = name in output.single and output.single.entries[name][:2] == base.entries[name][:2]
        yield name, same and np.array_equal(output.single.array(name), base.array(name))


def check(folder: Path, output: Output, lambdas: tuple[float, float]) -> dict[str, Any]:
    base, lcm, style = (open_plain(folder / f"{name}.safetensors") for name in ("base", "lcm", "style"))
    entries = json.loads((folder / "touched.json").read_text())
    results, where = [], Counter[str]()
    for entry in entries:
        component = entry["parameter"].partition(".")[0]
        if not output.has_component(component):
            continue
        pairs = ((style, entry["style"], lambdas[0]), (lcm, entry["lcm"], lambdas[1]))
        result = compare(entry, base, [term for term in pairs if term[1]], output)
        results.append(result)
        if result["verdict"] != "agrees":
            where[f"{result['verdict']} in {component}"] += 1
    kept = dict(untouched(base, {entry["stored"] for entry in entries}, output))
    where.update(f"untouched …{name.rpartition('.')[2]} changed" for name, same in kept.items() if not same)
    return {
        "parameters": len(results),
        "rows_of_each": ROWS,
        "untouched_tensors": len(kept),
        "worst_error_steps": round(max(result["steps"] for result in results), 3),
        "correctly_rounded": sum(result["exact"] for result in results) / sum(r["elements"] for r in results),
        "agrees": not where,
        "differs_where": dict(where),
    }


@click.command(help="Compare an output with the merge's float64 reference; prints JSON.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.argument("lambdas", type=float, nargs=2)
def main(folder: Path, output: Path, lambdas: tuple[float, float]) -> None:
    click.echo(json.dumps(check(folder, Output(output), lambdas)))


if __name__ == "__main__":
    main()
