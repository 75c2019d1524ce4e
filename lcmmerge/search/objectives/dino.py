"""How alike each image and the teacher's of the same prompt and seed are, in DINO's eyes: finer than CLIP's."""

from __future__ import annotations

from collections.abc import Mapping

from torch.nn import functional

from lcmmerge.search.objectives.base import Objective, Samples
from lcmmerge.search.objectives.networks import DINO, embeddings
from lcmmerge.search.statistics import Statistic, mean


def measure(cell: Samples, teacher: Samples, weights: str = DINO) -> Mapping[str, Statistic]:
    ours, theirs = (one.seen(("class token", weights), embeddings(weights)) for one in (cell, teacher))
    return {"DINO similarity": mean(functional.cosine_similarity(ours, theirs))}


OBJECTIVE = Objective(
    title="cosine of DINO's embeddings of the images and the style model's",
    measure=measure,
    cost="90 MB of weights to download; every image decoded and embedded",
    source="https://arxiv.org/abs/2208.12242",
    maximise=True,
    paired=frozenset({"DINO similarity"}),
    weights=DINO,
)
