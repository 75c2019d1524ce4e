"""What a search found, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lcmmerge.merge.request import Request
from lcmmerge.studies.cost import Choice
from lcmmerge.studies.diagnostics import Overlap
from lcmmerge.studies.request import Prepared
from lcmmerge.studies.score import Scored
from lcmmerge.studies.winner import command
from lcmmerge.version import __version__

VERSION = 1


@dataclass(frozen=True, slots=True)
class Result:
    """``way``: how cells were drawn; None where all were drawn before."""

    prepared: Prepared
    scored: Scored
    way: Choice | None
    diagnostics: tuple[Overlap, ...]

    @property
    def merge(self) -> Request:
        """What was searched, at the λs found."""
        return self.prepared.merge(self.scored.best.strengths)

    @property
    def command(self) -> str:
        return command(self.merge)

    def as_dict(self) -> dict[str, Any]:
        """Plain data: what study.json holds."""
        return {
            "version": VERSION,
            "lcmmerge": __version__,
            "terms": list(self.prepared.names),
            "objective": self.prepared.request.objective,
            **self.scored.as_dict(),
            "command": self.command,
            "inputs": dict(self.prepared.inputs),
            "prompts": list(self.prepared.request.prompts),
            "way": self.way and self.way.as_dict(),
            "diagnostics": [found.as_dict() for found in self.diagnostics],
        }
