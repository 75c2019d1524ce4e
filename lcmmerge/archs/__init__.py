"""Architectures, one file each: how to recognise one, its components, and its names, canonical ↔ stored."""

from lcmmerge.archs.aliases import aliases, guess_architecture
from lcmmerge.archs.base import Architecture, Model, Parameter, is_ema
from lcmmerge.archs.identify import architectures, identify
from lcmmerge.archs.keymap import KeyMap, Slot
from lcmmerge.archs.targets import lora_parameters, lora_targets

__all__ = [
    "Architecture",
    "KeyMap",
    "Model",
    "Parameter",
    "Slot",
    "aliases",
    "architectures",
    "guess_architecture",
    "identify",
    "is_ema",
    "lora_parameters",
    "lora_targets",
]
