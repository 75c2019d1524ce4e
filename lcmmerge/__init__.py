"""Merge style and acceleration LoRAs into standalone few-step Stable Diffusion checkpoints.

θ′ = θ_pre + λ1·τ′ + λ2·τ_LCM (LCM-LoRA, arXiv 2311.05556, section 3.3)
"""

from lcmmerge.api import Merge, inspect
from lcmmerge.errors import LcmMergeError
from lcmmerge.merge.spec import Source, Term
from lcmmerge.version import __version__

__all__ = ["LcmMergeError", "Merge", "Source", "Term", "__version__", "inspect"]
