"""Architectures, one file each: how to recognise one, its components, and its names, canonical ↔ stored."""

from lcmmerge.archs.aliases import aliases, guess_architecture, kohya_name, likely_architectures, spellings
from lcmmerge.archs.base import Architecture, Model, Parameter, architectures, is_ema
from lcmmerge.archs.foreign import supported
from lcmmerge.archs.identify import identify
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
    "kohya_name",
    "likely_architectures",
    "lora_parameters",
    "lora_targets",
    "spellings",
    "supported",
]
