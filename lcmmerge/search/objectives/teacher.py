"""Fidelity to the style model's many-step samples, with nothing to download: the default."""

from __future__ import annotations

from collections.abc import Mapping

from lcmmerge.search.objectives.base import Objective, Samples
from lcmmerge.search.statistics import Statistic, energy_distance, paired_error, spectrum_error


def measure(cell: Samples, teacher: Samples) -> Mapping[str, Statistic]:
    return {
        "energy distance": energy_distance(cell.latents, teacher.latents),
        "paired error": paired_error(cell.latents, teacher.latents),
        "spectrum": spectrum_error(cell.latents, teacher.latents),
    }


OBJECTIVE = Objective(
    title="distance of few-step latents to the style model's many-step ones",
    measure=measure,
    cost="beside the teacher's samples nothing",
    source="https://doi.org/10.1016/j.jspi.2013.03.018",  # the energy distance
    paired=frozenset({"paired error"}),
)
