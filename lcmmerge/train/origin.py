"""How a product of training came about: what its metadata and its card say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lcmmerge.accelerators import Sampling
from lcmmerge.archs import Model, modelspec
from lcmmerge.refs import name_of


@dataclass(frozen=True, slots=True)
class TrainingOrigin:
    """How a product came about. ``command``: that made it; ``repo``: the base's on the Hub, "" for a local one.

    ``facts``: the objective, the settings, the data and the step, JSON-ready, without paths or a clock.
    ``sampling``: how to draw with the product.
    """

    command: str
    base: Model
    repo: str
    base_sha256: str
    facts: Mapping[str, Any]
    sampling: Sampling

    def recipe(self) -> dict[str, Any]:
        named = {"name": name_of(self.base.source.path), "sha256": self.base_sha256}
        named |= {"variant": self.base.source.variant} if self.base.source.variant else {}
        return {"type": self.command, "base": named, **self.facts}

    def metadata(self) -> dict[str, str]:
        """What the data tell: their size, and the caption that all images of a style have."""
        data = self.facts["data"]
        size, caption = data.get("resolution"), data.get("caption")
        styled = self.facts["objective"]["objective"] == "diffusion"
        return {
            **({modelspec.RESOLUTION: f"{size}x{size}"} if size else {}),
            **({modelspec.TRIGGER: caption} if caption and styled else {}),
        }
