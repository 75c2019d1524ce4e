"""How well images show what their prompts say, in CLIP's eyes; the teacher's are not looked at."""

from __future__ import annotations

from collections.abc import Mapping

from lcmmerge.search.objectives.base import Objective, Samples
from lcmmerge.search.objectives.networks import CLIP, clip_images, clip_texts
from lcmmerge.search.statistics import Statistic, mean


def measure(cell: Samples, teacher: Samples, weights: str = CLIP) -> Mapping[str, Statistic]:
    images = cell.seen(("CLIP", weights), clip_images(weights))
    return {"CLIP score": mean(100 * (images * clip_texts(weights, cell.prompts)).sum(1).clamp(min=0))}


OBJECTIVE = Objective(
    title="CLIP score of the images and their prompts",
    measure=measure,
    cost="600 MB of weights to download; every image decoded and embedded",
    source="https://arxiv.org/abs/2104.08718",
    maximise=True,
    weights=CLIP,
)
