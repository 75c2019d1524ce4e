"""The benchmark of ``lcmmerge fuse``: ``python tests/bench/fuse.py --size sdxl --peers all --json out.json``.

Makes real-size random files once (in ``--workdir``), then runs every contender in turns, ``--repeats`` rounds. Before
each run the last output is deleted, the disks are synced and the inputs are read once, so that all start with the
inputs in the page cache; a first copy, not counted, has touched the memory that outputs will use. Ratios are taken
within a round and their median is shown. Needs Linux, and free memory for the inputs and one output.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import click
from contenders import CONTENDERS, LAMBDAS, PEER_NAMES, SHARES, YARDSTICKS, Contender, quantising
from machine import describe, version_of
from measure import ENV, CommandFailedError, measure, settle
from report import Runs, render, summarize
from rich.console import Console
from sizes import SIZES, TransformerSize

HERE = Path(__file__).parent
log = Console(stderr=True)


def run_once(runs: Runs, folder: Path, number: int) -> None:
    contender = runs.contender
    output = folder / contender.output if contender.output else None
    settle([folder / f"{name}.safetensors" for name in ("base", "style", "lcm")], *outputs(folder))
    try:
        measurement = measure(contender.command(folder, output or folder), output)
    except CommandFailedError as error:
        runs.failure = str(error)
        return
    if contender.self_timed:
        said = json.loads(measurement.stdout)
        wall, cpu = said["wall"], said["cpu"]
        measurement = replace(measurement, wall=wall, synced=wall, user=cpu, system=0.0)
    runs.measurements[number] = measurement
    if contender.merges and runs.agreement is None and output is not None:
        command = [sys.executable, HERE / "check.py", folder, output, *LAMBDAS]
        checked = subprocess.run(command, env=ENV, capture_output=True, text=True, check=True)
        runs.agreement = json.loads(checked.stdout)


def outputs(folder: Path) -> list[Path]:
    return [folder / name for name in ("out", "out.gguf", "out.safetensors")]


def run_all(contenders: dict[str, Contender], folder: Path, repeats: int) -> dict[str, Runs]:
    table = {name: Runs(contender) for name, contender in contenders.items()}
    run_once(Runs(contenders["cp"]), folder, 0)
    for number in range(repeats):
        for name, runs in table.items():
            if runs.failure:
                continue
            run_once(runs, folder, number)
            took = f"{runs.measurements[number].wall:.1f} s" if number in runs.measurements else runs.failure
            log.print(f"round {number + 1}/{repeats}  {name}  {took}", highlight=False, markup=False)
    settle([], *outputs(folder))
    return table


def chosen(peers: str, kind: str) -> list[str]:
    """Contenders of a kind of model, in the order in which they take turns."""
    if peers == "all":
        names = [name for name in PEER_NAMES if kind in CONTENDERS[name].kinds]
        wanted = [name for name in names if all(version_of(p) for p in CONTENDERS[name].packages)]
        for name in sorted(set(names) - set(wanted)):
            log.print(f"{name} is left out: install {', '.join(CONTENDERS[name].packages)}")
    else:
        wanted = [name for name in peers.split(",") if name and name != "none"]
    if unknown := set(wanted) - set(PEER_NAMES):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}; there are {', '.join(PEER_NAMES)}, all and none")
    return [*YARDSTICKS, "lcmmerge", *wanted]


@click.command(help="Run lcmmerge fuse, the yardsticks and the peers in turns, and print a table.")
@click.option("--size", type=click.Choice(list(SIZES)), default="sdxl", show_default=True)
@click.option("--peers", default="all", show_default=True, help=f"all, none, or some of {','.join(PEER_NAMES)}.")
@click.option("--encoding", type=click.Choice(list(SHARES)), help="Into it, beside what quantises alone.")
@click.option("--repeats", default=3, show_default=True, help="Rounds.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the results here.")
@click.option("--workdir", type=click.Path(path_type=Path), help="Keeps the files [default: temporary].")
def main(
    size: str, peers: str, encoding: str | None, repeats: int, json_path: Path | None, workdir: Path | None
) -> None:
    if encoding:
        contenders = quantising(encoding)
        contenders = {name: each for name, each in contenders.items() if all(map(version_of, each.packages))}
    else:
        names = chosen(peers, "transformer" if isinstance(SIZES[size], TransformerSize) else "unet")
        contenders = {name: CONTENDERS[name] for name in names}
    workdir = workdir or Path(tempfile.gettempdir()) / "lcmmerge-bench"
    subprocess.run([sys.executable, HERE / "models.py", "--size", size, "--workdir", workdir], env=ENV, check=True)
    table = run_all(contenders, workdir / size, repeats)
    rows = {name: summarize(runs, table) for name, runs in table.items()}
    packages = {package for contender in contenders.values() for package in contender.packages}
    machine = describe(workdir, packages)
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(render(size, rows))
    console.print(json.dumps(machine, ensure_ascii=False), highlight=False, soft_wrap=True)
    if json_path:
        asked = {"size": size, "encoding": encoding, "lambdas": LAMBDAS, "repeats": repeats}
        result = asked | {"machine": machine, "contenders": rows}
        json_path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
