"""Few-step and many-step sampling of a checkpoint; diffusers does the sampling."""

import os
import warnings

SAMPLERS = ("ddim", "dpm-solver", "dpm-solver++", "unipc", "euler", "lcm")  # of presets.BASELINES, which are heavier


def quiet_libraries() -> None:
    """Keep diffusers and transformers from logging what is no news to a person; before they are first imported."""
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")
