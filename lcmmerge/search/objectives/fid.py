"""The Fréchet distance of the images' features to the teacher's. Of few images it is biased: compare within a study."""

from __future__ import annotations

from collections.abc import Mapping

from lcmmerge.search.objectives.base import Objective, Samples
from lcmmerge.search.objectives.networks import INCEPTION, inception
from lcmmerge.search.statistics import Statistic, frechet_distance


def measure(cell: Samples, teacher: Samples, weights: str = INCEPTION) -> Mapping[str, Statistic]:
    ours, theirs = (one.seen(("features", weights), inception(weights)) for one in (cell, teacher))
    return {"FID": frechet_distance(ours, theirs)}


OBJECTIVE = Objective(
    title="FID of the images to the style model's",
    measure=measure,
    cost="95 MB of weights to download; every image decoded and looked at; hundreds of images for a steady figure",
    source="https://arxiv.org/abs/1706.08500",
    weights=INCEPTION,
)
