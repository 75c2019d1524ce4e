"""The public acceleration LoRAs that obey θ′ = θ_pre + λ1·τ′ + λ2·τ_acc, as data, and how to draw with each.

A module here that defines ``ENTRIES`` has those of one base, or of several alike. Every fact is from the model card,
the paper or the graph that the entry names as its ``sources``; one that they do not state is named in ``unverified``.
An entry may be for an architecture that is not registered: it is listed, and no base is it. Third parties add theirs by
an entry point in the group ``lcmmerge.accelerators`` that leads to a tuple of ``Accelerator``.
"""

from lcmmerge.accelerators.base import (
    OF_THE_FLOW,
    OF_THE_MODEL,
    SCHEDULERS,
    TRAILING,
    Accelerator,
    Sampling,
    Span,
    flow,
)
from lcmmerge.accelerators.known import (
    ACCELERATORS,
    NAME,
    OFFICIAL,
    accelerator,
    bases,
    by_file,
    by_name,
    by_reference,
    file_of,
    names,
    obligations,
    usual_strength,
)

__all__ = [
    "ACCELERATORS",
    "NAME",
    "OFFICIAL",
    "OF_THE_FLOW",
    "OF_THE_MODEL",
    "SCHEDULERS",
    "TRAILING",
    "Accelerator",
    "Sampling",
    "Span",
    "accelerator",
    "bases",
    "by_file",
    "by_name",
    "by_reference",
    "file_of",
    "flow",
    "names",
    "obligations",
    "usual_strength",
]
