"""The steps of a run. A step's key tells whether it is done: sha256 of inputs, parameters and our version of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lcmmerge.recipe import card, exports, images, studies
from lcmmerge.recipe.builds import Build, step_key
from lcmmerge.recipe.loader import MatrixCell
from lcmmerge.recipe.manifest import EXPORTS, IMAGES, STUDIES, RunManifest

CARD = "README.md"
TARGETS = {"fuse": "{}", "card": f"{{}}/{CARD}", "search": f"{STUDIES}/{{}}", "generate": f"{IMAGES}/{{}}",
           "export": f"{EXPORTS}/{{}}"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """One product of a run, and whether it is due.

    ``due``: why it is to be done; None where it is done. ``reads``, ``downloads`` and ``writes`` are bytes.
    """

    kind: Literal["fuse", "card", "search", "generate", "export"]
    build: Build
    key: str
    due: str | None
    reads: int = 0
    downloads: int = 0
    writes: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind} {self.build.cell.name}"

    @property
    def target(self) -> str:
        """The folder, or of a card the file, below the run's own."""
        return TARGETS[self.kind].format(self.build.cell.name)

    def as_dict(self) -> dict[str, Any]:
        return {
            "step": self.name,
            "key": self.key,
            "done": self.due is None,
            "because": self.due,
            "reads": self.reads,
            "downloads": self.downloads,
            "writes": self.writes,
        }


def steps(builds: tuple[Build, ...], before: RunManifest, out: Path, description: str | None) -> Iterator[Step]:
    """In the order in which they are done."""
    for build in builds:
        due = _due(f"fuse {build.cell.name}", build.key, before, out)
        reads = sum(source.nbytes for source in build.plan.sources.values())
        yield Step("fuse", build, build.key, due, reads, build.plan.download, build.plan.nbytes)
        key = step_key("card", card.VERSION, {"of": build.key, **card.facts(build, description)})
        follows = f"follows fuse {build.cell.name}" if due else None
        yield Step("card", build, key, follows or _due(f"card {build.cell.name}", key, before, out))
        if build.cell.search:
            studies.check_linear(build)
            key = step_key("search", studies.VERSION, {"of": build.key, **build.cell.search.model_dump()})
            yield Step("search", build, key, follows or _due(f"search {build.cell.name}", key, before, out))
        if build.cell.generate:
            key = step_key("generate", images.VERSION, {"of": build.key, **build.cell.generate.model_dump()})
            yield Step("generate", build, key, follows or _due(f"generate {build.cell.name}", key, before, out))
        if build.cell.export:
            key = step_key("export", exports.VERSION, {"of": build.key, **build.cell.export.model_dump()})
            yield Step("export", build, key, follows or _due(f"export {build.cell.name}", key, before, out))


def extras(cells: tuple[MatrixCell, ...]) -> list[str]:
    """What must be installed for the steps of all of them."""
    needed = {"draw" for cell in cells if cell.generate} | {"export" for cell in cells if cell.export}
    if searches := [cell.search for cell in cells if cell.search]:
        from lcmmerge.search.objectives import objective

        needed |= {"search", *filter(None, (objective(search.objective).extra for search in searches))}
    return sorted(needed)


def _due(name: str, key: str, before: RunManifest, out: Path) -> str | None:
    record = before.steps.get(name)
    if record is None:
        return "not done yet"
    if record.key != key:
        return "its inputs or parameters changed"
    return None if record.intact(out) else "its output is gone or was changed"

