"""How long a command takes to start: ``python tests/bench/startup.py [--json out.json]``.

``lcmmerge --help`` and ``lcmmerge inspect`` of the SDXL file of ``fuse.py``: the best of five, beside their goals.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from machine import describe
from measure import ENV, measure
from rich.console import Console
from rich.table import Table

RUNS = 5


@click.command(help="Time lcmmerge --help and lcmmerge inspect.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the results here.")
@click.option("--workdir", type=click.Path(path_type=Path), help="Keeps the files [default: temporary].")
def main(json_path: Path | None, workdir: Path | None) -> None:
    workdir = workdir or Path(tempfile.gettempdir()) / "lcmmerge-bench"
    maker = Path(__file__).with_name("models.py")
    subprocess.run([sys.executable, maker, "--size", "sdxl", "--workdir", workdir], env=ENV, check=True)
    goals = {("--help",): 0.25, ("inspect", str(workdir / "sdxl" / "base.safetensors")): 0.5}
    table = Table("command", "best of five", "goal", "peak RSS", title="start-up")
    rows = []
    for arguments, goal in goals.items():
        runs = [measure([sys.executable, "-m", "lcmmerge", *arguments]) for _ in range(RUNS)]
        best, peak = min(run.wall for run in runs), max(run.peak_rss for run in runs)
        command = f"lcmmerge {arguments[0]}"
        rows.append({"command": command, "wall_min": best, "goal": goal, "peak_rss_max": peak})
        table.add_row(command, f"{best:.3f} s", f"{goal} s", f"{peak / 2**20:.0f} MiB")
    Console().print(table)
    if json_path:
        result = {"machine": describe(workdir, ["lcmmerge"]), "commands": rows}
        json_path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
