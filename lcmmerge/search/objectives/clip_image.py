"""How alike each image and the teacher's of the same prompt and seed are, in CLIP's eyes: what they show."""

from __future__ import annotations

from collections.abc import Mapping

from lcmmerge.search.objectives.base import Objective, Samples
from lcmmerge.search.objectives.networks import CLIP, clip_images
from lcmmerge.search.statistics import Statistic, mean


def measure(cell: Samples, teacher: Samples, weights: str = CLIP) -> Mapping[str, Statistic]:
    ours, theirs = (one.seen(("CLIP", weights), clip_images(weights)) for one in (cell, teacher))
    return {"CLIP similarity": mean((ours * theirs).sum(1))}


OBJECTIVE = Objective(
    title="cosine of CLIP's embeddings of the images and the style model's",
    measure=measure,
    cost="600 MB of weights to download; every image decoded and embedded",
    source="https://arxiv.org/abs/2208.12242",
    maximise=True,
    paired=frozenset({"CLIP similarity"}),
    weights=CLIP,
)
