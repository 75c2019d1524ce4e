"""How much of the style is kept, whatever is drawn in it: the palette and the texture of latents, as Gram matrices."""

from __future__ import annotations

from collections.abc import Mapping

from lcmmerge.search.objectives.base import Objective, Samples
from lcmmerge.search.statistics import Statistic, gram_distance


def measure(cell: Samples, teacher: Samples) -> Mapping[str, Statistic]:
    return {"style distance": gram_distance(cell.latents, teacher.latents)}


OBJECTIVE = Objective(
    title="distance of the latents' Gram matrices to the style model's",
    measure=measure,
    cost="beside the teacher's samples nothing",
    source="https://arxiv.org/abs/1508.06576",
)
