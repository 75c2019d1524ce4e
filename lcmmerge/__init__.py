"""Merge style and acceleration LoRAs into standalone few-step Stable Diffusion checkpoints.

θ′ = θ_pre + λ1·τ′ + λ2·τ_LCM (LCM-LoRA, arXiv 2311.05556, section 3.3)
"""

__version__ = "0.1.0"
