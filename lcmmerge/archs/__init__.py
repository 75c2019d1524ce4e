"""Architectures, one file each: how to recognise one, its components, and its names, canonical ↔ stored."""

from lcmmerge.archs.base import Architecture, Family, Model, Parameter, Variant, architectures, is_ema
from lcmmerge.archs.component import Component
from lcmmerge.archs.foreign import explain_unknown, foreign_kind, patches_foreign, supported
from lcmmerge.archs.identify import identify
from lcmmerge.archs.names import (
    Home,
    guess_architecture,
    kohya_name,
    likely_architectures,
    module_of,
    names_in,
    names_of,
)
from lcmmerge.archs.tables import KeyMap, Slot
from lcmmerge.archs.targets import lora_parameters, lora_targets
from lcmmerge.archs.views import View, tiles

__all__ = [
    "Architecture",
    "Component",
    "Family",
    "Home",
    "KeyMap",
    "Model",
    "Parameter",
    "Slot",
    "Variant",
    "View",
    "architectures",
    "explain_unknown",
    "foreign_kind",
    "guess_architecture",
    "identify",
    "is_ema",
    "kohya_name",
    "likely_architectures",
    "lora_parameters",
    "lora_targets",
    "module_of",
    "names_in",
    "names_of",
    "patches_foreign",
    "supported",
    "tiles",
]
