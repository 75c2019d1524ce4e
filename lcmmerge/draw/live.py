"""θ(λ) straight into a pipeline: what ``fuse`` would write is drawn with, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import torch

from lcmmerge.bake.tensors import merged
from lcmmerge.draw.drawable import check_drawable
from lcmmerge.draw.load import Pipeline, load_pipeline
from lcmmerge.merge import provenance
from lcmmerge.merge.plan import Plan
from lcmmerge.merge.plan import plan as plan_merge
from lcmmerge.merge.spec import Merge


def plan_live(merge: Merge, *, force: bool = False) -> Plan:
    """Plan a merge as ``fuse`` does, and check that it can be drawn.

    ``force``: also of an adapter that the base already holds. Raises as ``merge.plan.plan`` does,
    AlreadyFusedError, IncompatibleError (the base draws no images).
    """
    plan = plan_merge(merge)
    check_drawable(plan.base)
    if not force:
        provenance.refuse_fused(plan)
    return plan


def load_live(plan: Plan, configs: Path, dtype: torch.dtype, device: torch.device) -> Pipeline:
    """The pipeline of θ(λ), with the weights of the baked checkpoint to the bit, then cast to ``dtype``.

    Raises NumericError, and as ``load_pipeline`` does.
    """
    plan.fetch()
    with merged(plan) as read:
        return load_pipeline(plan.base, configs, dtype, device, read)
