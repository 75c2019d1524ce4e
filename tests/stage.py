"""A command in a folder of its own, and the judge of what it did there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from random import Random

from damage import RAN
from faultworld import Command, World
from trial import KNOWN, Ended, changes, faults, run, tree


@dataclass(frozen=True, slots=True)
class Verdict:
    """``way``: what exactly was done. ``wrong``: what is wrong with the outcome, "" where nothing is."""

    way: str
    code: int
    wrong: str


@dataclass(frozen=True, slots=True)
class Reference:
    """A command's run with no fault: its seconds, the bytes that it writes, and what it leaves."""

    ended: Ended
    nbytes: int
    tree: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Stage:
    """A command in a folder of its own."""

    command: Command
    world: World
    folder: Path
    reference: Reference

    def lay(self) -> dict[str, str]:
        self.command.lay(self.world, self.folder)
        return tree(self.folder)

    def judged(
        self, way: str, ended: Ended, before: Mapping[str, str], codes: Sequence[int] = KNOWN, *, all_of_it: bool = True
    ) -> Verdict:
        """By its end, and by what it left: nothing but its outputs, where it succeeded ``all_of_it`` or some."""
        wrong = faults(ended, codes) or self._left(ended, before, tree(self.folder), all_of_it)
        return Verdict(way, ended.code, wrong)

    def _left(self, ended: Ended, before: Mapping[str, str], after: Mapping[str, str], all_of_it: bool) -> str:
        changed = [name for name in changes(before, after) if name in before or not self._grows(name)]
        if any(Path(name).name == RAN for name in after):
            return "a pickle's or a recipe's code was run"
        if hidden := [name for name in after if ".partial" in name and name not in before]:
            return f"left {hidden[0]}"
        if ended.code == 0:
            if inputs := [name for name in changed if not name.startswith("out/")]:
                return f"changed {inputs[0]}"
            missing = self.reference.tree.keys() - after.keys() if all_of_it and not self.command.varies else ()
            return f"succeeded without {sorted(missing)[0]}" if missing else ""
        whole = {name for name in changed if ended.code == 130 and after.get(name) == self.reference.tree.get(name)}
        kept = [name for name in changed if not any(fnmatch(name, pattern) for pattern in self.command.keeps)]
        kept = [] if {*kept} <= whole else kept  # the signal came after the last rename
        return f"failed and left {kept[0]}" if kept else ""

    def _grows(self, name: str) -> bool:
        """Whether the file is one that a cache got."""
        return any(fnmatch(name, pattern) for pattern in self.command.caches)


def reference(command: Command, world: World, folder: Path) -> Reference:
    command.lay(world, folder)
    before = tree(folder)
    ended = run(command.arguments, folder)
    assert not (wrong := faults(ended, (0,))), f"{command.arguments}: {wrong}"
    after = tree(folder)
    new = [folder / name for name in changes(before, after) if name in after]
    nbytes = sum(path.stat().st_size for path in new if path.is_file())
    shutil.rmtree(folder)
    return Reference(ended, nbytes, after)


Fault = Callable[[Stage, Random], Verdict | None]  # None: cannot befall this command
