"""Every command under every fault, many times: ``python tests/bench/reliability.py [--rounds N] [--json out.json]``.

Prints docs/reliability.md's tables, and on stderr each run that ended otherwise than it should. A run is repeated by
the seed that is printed with it: ``--only COMMAND,FAULT --again SEED``.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random

import click

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

# Before torch is loaded: a child forked beside OpenMP's threads waits for them forever.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import faultworld  # noqa: E402 - a bench is run by hand, from anywhere
from faultcases import FAULTS  # noqa: E402
from machine import describe  # noqa: E402
from reliabilityreport import tables  # noqa: E402
from stage import Reference, Stage, Verdict, reference  # noqa: E402

# How often a fault is tried in one round, where that is not once: chance has more to choose from.
OFTEN = {
    **dict.fromkeys(("hostile onnx", "hostile png", "hostile sqlite", "hostile yaml"), 12),
    **{"hostile json": 4, "hostile safetensors": 4, "hostile pickle": 4, "odd file": 3, "no disk": 2},
    **{"no permission": 2, "Ctrl-C": 2, "kill -9": 2},
}
LONG = 4  # seconds
PACKAGES = ("lcmmerge", "torch", "diffusers", "transformers", "safetensors", "onnx", "onnxruntime", "optuna", "rich")


@dataclass(frozen=True, slots=True)
class Case:
    number: int  # of the command
    fault: str
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    command: str
    line: str
    fault: str
    seed: int
    way: str
    code: int
    wrong: str


def attempt(case: Case, world: faultworld.World, references: Sequence[Reference], scratch: Path) -> Outcome | None:
    command = faultworld.COMMANDS[case.number]
    folder = Path(tempfile.mkdtemp(dir=scratch)) / "case"
    folder.parent.chmod(0o755)
    stage = Stage(command, world, folder, references[case.number])
    try:
        verdict: Verdict | None = FAULTS[case.fault](stage, Random(case.seed))
    except Exception as error:
        raise RuntimeError(f"the campaign itself failed in {command.arguments} {case}") from error
    finally:
        shutil.rmtree(folder.parent)
    return verdict and Outcome(command.name, " ".join(command.arguments), case.fault, case.seed, **asdict(verdict))


def cases(
    rounds: int, seed: int, only: tuple[str, str], again: int | None, references: Sequence[Reference | None]
) -> Iterator[Case]:
    """Of a command that takes long there are fewer."""
    for turn in range(rounds):
        for number, known in enumerate(references):
            for fault in FAULTS:
                if known and only[1] in ("", fault):
                    for often in range(-(-OFTEN.get(fault, 1) // (1 if known.ended.seconds < LONG else 4))):
                        place = f"{seed}/{turn}/{number}/{fault}/{often}"
                        yield Case(number, fault, Random(place).randrange(2**32) if again is None else again)


def _may(fault: str, command: faultworld.Command) -> bool:
    """Whether the fault can befall the command, as far as its name tells."""
    return not fault.startswith("hostile ") or fault.removeprefix("hostile ") in command.readers.values()


def import_all() -> None:
    """What the commands would import one by one: a child has it already."""
    import diffusers
    import onnxruntime
    import optuna  # noqa: F401
    import transformers

    import lcmmerge
    from lcmmerge.draw import quiet_libraries

    onnxruntime.set_default_logger_severity(3)
    diffusers.StableDiffusionPipeline, transformers.CLIPTextModel  # noqa: B018 - they are imported when first named
    quiet_libraries()
    for module in pkgutil.walk_packages(lcmmerge.__path__, "lcmmerge."):
        if ".zoo" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)


@click.command()
@click.option("--rounds", default=1, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--only", default=",", metavar="COMMAND,FAULT", help="One of either may be left out.")
@click.option("--without", multiple=True, metavar="COMMAND")
@click.option("--again", type=int, metavar="SEED", help="Of a run that this program complained about.")
@click.option("--minutes", type=float, help="Stop after so many; the cases are in a random order.")
@click.option("--jobs", default=2, show_default=True)
@click.option("--workdir", type=click.Path(path_type=Path), help="Keeps the inputs.  [default: temporary]")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the outcomes here.")
def main(
    rounds: int, seed: int, only: str, without: tuple[str, ...], again: int | None, minutes: float | None, jobs: int,
    workdir: Path | None, json_path: Path | None,
) -> None:  # fmt: skip
    """Try every command under every fault."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and its children
    import_all()
    chosen = only.partition(",")[::2]
    with tempfile.TemporaryDirectory() as temporary:
        Path(temporary).chmod(0o755)
        world = faultworld.World(workdir or Path(temporary, "world"))
        world.root.mkdir(parents=True, exist_ok=True)
        references = [
            reference(command, world, Path(temporary, "reference"))
            if chosen[0] in ("", command.name) and command.name not in without and _may(chosen[1], command)
            else None
            for command in faultworld.COMMANDS
        ]
        todo = list(cases(rounds, seed, chosen, again, references))
        Random(seed).shuffle(todo)
        act = partial(attempt, world=world, references=references, scratch=Path(temporary))
        outcomes, end = [], time.monotonic() + 60 * (minutes or 1e9)
        with get_context("fork").Pool(jobs) as pool:
            for outcome in filter(None, pool.imap_unordered(act, todo)):
                outcomes.append(outcome)
                if outcome.wrong:
                    run = f"{outcome.line} | {outcome.fault} {outcome.seed} | {outcome.way}"
                    click.echo(f"{run} | {outcome.wrong}", err=True)
                if time.monotonic() > end:
                    break
    machine = describe(Path(tempfile.gettempdir()), PACKAGES)
    click.echo(tables([asdict(outcome) for outcome in outcomes]))
    if json_path:
        rows = [asdict(outcome) for outcome in outcomes]
        found = {"machine": machine, "rounds": rounds, "seed": seed, "outcomes": rows}
        json_path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
