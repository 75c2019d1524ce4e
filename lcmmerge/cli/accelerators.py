from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from functools import reduce
from typing import TYPE_CHECKING

import click

from lcmmerge.cli import candidates
from lcmmerge.cli.candidates import NameType
from lcmmerge.cli.common import output_options
from lcmmerge.output import Output

if TYPE_CHECKING:
    from lcmmerge.accelerators import Accelerator


COMMON_WORDS = ("Scheduler", "Discrete", "Multistep", "Match")  # of schedulers' names, which have to fit a terminal


@click.command(short_help="List the public acceleration LoRAs, and how to draw with each.")
@click.argument("arch", type=NameType(candidates.accelerated), required=False)
@output_options
def accelerators(arch: str | None, output: Output) -> None:
    """List the names that `lcmmerge fuse --accelerator` takes, of all architectures or of ARCH (sd1, flux …).

    Steps, guidance and λ are where to begin, and in brackets the range that the authors give. Guidance 0 and 1 are both
    off; e: it is told to the model. With -v also the schedulers' settings, the files and the sources.

    \b
      lcmmerge accelerators sdxl
      lcmmerge accelerators flux
      lcmmerge fuse base.safetensors style.safetensors --accelerator hyper-8steps
    """
    from lcmmerge.accelerators import ACCELERATORS

    wanted = _meant(arch) if arch else None
    found = [entry for entry in ACCELERATORS.values() if wanted is None or wanted & entry.files.keys()]
    if output.as_json:
        output.json([entry.as_dict() for entry in found])
        return
    _show(found, output)


def _meant(word: str) -> set[str]:
    """The architectures of that name, else those whose names begin so, else the one that is spelled nearly so."""
    from lcmmerge.accelerators import bases
    from lcmmerge.archs import architectures

    squashed = {_squash(name): name for name in (*architectures(), *bases())}
    asked = _squash(word)
    found = {name for key, name in squashed.items() if asked == key}
    found = found or {name for key, name in squashed.items() if asked and key.startswith(asked)}
    found = found or {squashed[key] for key in get_close_matches(asked, squashed, n=1)}
    if not found:
        raise click.BadParameter(f"{word!r} is none of {', '.join(sorted(squashed.values()))}", param_hint="ARCH")
    return found


def _squash(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _show(found: Sequence[Accelerator], output: Output) -> None:
    head = ("name", "for", "scheduler", "steps", "guidance", "λ")
    output.table("", head, [_row(entry) for entry in found], numbers=3)
    said: dict[str, list[str]] = {}
    for entry in found:
        for text in _remarks(entry):
            said.setdefault(text, []).append(entry.name)
    for text, names in said.items():
        output.text(f"{', '.join(names)}: {text}.")
    for entry in found if output.verbose else ():
        output.text(f"{entry.name}: {entry.sampling}")
        for reference in (*entry.references, *entry.sources):
            output.text(f"  {reference}")


def _remarks(entry: Accelerator) -> Sequence[str]:
    *others, last = entry.unverified or ("",)
    unverified = f"unverified, its authors do not state its {' and '.join(filter(None, (', '.join(others), last)))}"
    arguments = [f"{key} {value:g}" for key, value in entry.sampling.arguments.items()]
    bounds = "; ".join(filter(None, (entry.restriction, entry.duty)))
    return [
        text
        for text in (
            f"for {entry.base}" if entry.base else "",
            f"drawn with {', '.join(arguments)}" if arguments else "",
            entry.remark,
            f"{entry.licence}, {bounds}" if bounds else "",
            unverified if entry.unverified else "",
        )
        if text
    ]


def _row(entry: Accelerator) -> tuple[object, ...]:
    sampling = entry.sampling
    scheduler = reduce(lambda name, word: name.replace(word, ""), COMMON_WORDS, sampling.scheduler)
    guidance = f"{sampling.guidance}{' e' if sampling.embedded else ''}"
    return entry.name, ", ".join(entry.files), scheduler, sampling.steps, guidance, f"{entry.strength.default:g}"
