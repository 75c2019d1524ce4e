"""The kernel distance of the images' features to the teacher's: FID's kin, without its bias at few images."""

from __future__ import annotations

from collections.abc import Mapping

from lcmmerge.search.objectives.base import Objective, Samples
from lcmmerge.search.objectives.networks import INCEPTION, inception
from lcmmerge.search.statistics import Statistic, kernel_distance


def measure(cell: Samples, teacher: Samples, weights: str = INCEPTION) -> Mapping[str, Statistic]:
    ours, theirs = (one.seen(("features", weights), inception(weights)) for one in (cell, teacher))
    return {"KID": kernel_distance(ours, theirs)}


OBJECTIVE = Objective(
    title="KID of the images to the style model's",
    measure=measure,
    cost="95 MB of weights to download; every image decoded and looked at",
    source="https://arxiv.org/abs/1801.01401",
    weights=INCEPTION,
)
