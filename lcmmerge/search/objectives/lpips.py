"""How far each image is from the teacher's of the same prompt and seed, as people see it."""

from __future__ import annotations

from collections.abc import Mapping

from lcmmerge.search.objectives.base import Objective, Samples
from lcmmerge.search.objectives.networks import VGG, perceptual
from lcmmerge.search.statistics import Statistic, mean


def measure(cell: Samples, teacher: Samples, weights: str = VGG) -> Mapping[str, Statistic]:
    return {"LPIPS": mean(cell.seen(("LPIPS", weights, teacher), perceptual(weights, teacher.images())))}


OBJECTIVE = Objective(
    title="LPIPS distance of the images to the style model's",
    measure=measure,
    cost="torchmetrics, and 550 MB of weights to download; every image decoded, with the teacher's beside it",
    source="https://arxiv.org/abs/1801.03924",
    paired=frozenset({"LPIPS"}),
    weights=VGG,
    extra="metrics",
)
