"""θ(λ) straight into a pipeline: what ``fuse`` would write is drawn with, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import torch

from lcmmerge.merge import provenance
from lcmmerge.merge.plan import Plan
from lcmmerge.merge.request import Request
from lcmmerge.merge.request import plan as plan_merge
from lcmmerge.merge.tensors import merged
from lcmmerge.sample.drawable import check_drawable
from lcmmerge.sample.load import Pipeline, load_pipeline


def plan_live(request: Request, *, force: bool = False) -> Plan:
    """Plan a merge as ``fuse`` does; ``request`` says nothing of an output.

    ``force``: also of an adapter that the base already holds. Raises as ``merge.request.plan`` does,
    AlreadyFusedError, IncompatibleError (the base draws no images).
    """
    plan, _ = plan_merge(request)
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
