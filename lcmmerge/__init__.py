"""Merge style and acceleration LoRAs into standalone few-step Stable Diffusion checkpoints.

θ′ = θ_pre + λ1·τ′ + λ2·τ_LCM (LCM-LoRA, arXiv 2311.05556, section 3.3)
"""

from lcmmerge.api import export, fuse, inspect, plan, run, search
from lcmmerge.errors import LcmMergeError
from lcmmerge.version import __version__

__all__ = ["LcmMergeError", "__version__", "export", "fuse", "inspect", "plan", "run", "search"]
