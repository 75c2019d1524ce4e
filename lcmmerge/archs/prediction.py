"""What a model's denoiser predicts: a property of its weights, which single files mark and folders' schedulers say.

Marks are tensors that name it by being there: ``v_pred`` and ``ztsnr`` (empty), ``edm_mean`` and ``edm_std``
(Playground 2.5), ``edm_vpred.sigma_max`` (CosXL), as ComfyUI, Forge and A1111 read them. Zero terminal SNR: the last
timestep is noise alone (https://arxiv.org/abs/2305.08891), where images must begin: with trailing timesteps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lcmmerge.errors import OptionError
from lcmmerge.refs.files import read_object
from lcmmerge.refs.weights import DIFFUSERS, SCHEDULER
from lcmmerge.tensors import TensorSource

EPSILON, V, FLOW, EDM, UNKNOWN = "epsilon", "v_prediction", "flow", "edm", "unknown"
V_MARK, ZERO_SNR_MARK = "v_pred", "ztsnr"
EDM_MARKS = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
MARKS = (V_MARK, ZERO_SNR_MARK, *EDM_MARKS)
METADATA = "modelspec.prediction_type"  # epsilon or v: https://github.com/Stability-AI/ModelSpec
KEYS = (METADATA, "modelspec.predict_key")  # the second as ComfyUI writes it
SPELLED = {EPSILON: "epsilon", V: "v"}
SAID = {"epsilon": EPSILON, "v": V, V: V}
ASKED, BY_SCHEDULER = "as asked", "by its scheduler"
# What a scheduler of diffusers must be to begin at noise alone; others take the first in its place.
FROM_NOISE = (
    "DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler",
    "TCDScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
SHOWN = {EPSILON: "ε", V: "v", FLOW: "flow matching's velocity", EDM: "in EDM's scaling", UNKNOWN: "what nothing says"}


@dataclass(frozen=True, slots=True)
class Prediction:
    """``kind``: ``epsilon``, ``v_prediction``, ``flow``, ``edm``, ``unknown``, or another word of a scheduler's.

    ``zero_snr``: whether its last timestep is noise alone, None where nothing says it. ``told_by``: what says all this,
    empty where it is what the family usually predicts.
    """

    kind: str = EPSILON
    zero_snr: bool | None = None
    told_by: str = ""

    @classmethod
    def named(cls, text: str) -> Prediction:
        """As ``--prediction`` names it. Raises OptionError."""
        if text not in CHOICES:
            raise OptionError(f"prediction {text!r}: unknown", f"choose one of {', '.join(CHOICES)}")
        kind, zero_snr = CHOICES[text]
        return cls(kind, zero_snr, ASKED)

    def scheduler(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A scheduler's config for this model; as it is where it says so already, or nothing else tells."""
        found = _scheduler(config)
        changed: dict[str, Any] = {}
        if self.told_by not in ("", BY_SCHEDULER) and self.kind in (EPSILON, V):
            if self.kind != found.kind:
                changed["prediction_type"] = self.kind
            if self.zero_snr and not found.zero_snr:
                changed |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
                if config.get("_class_name") not in FROM_NOISE:
                    changed["_class_name"] = FROM_NOISE[0]
            if self.zero_snr is False and found.zero_snr:
                changed["rescale_betas_zero_snr"] = False
        return {**config, **changed}

    def fits(self, config: Mapping[str, Any]) -> bool:
        """Whether a scheduler of this config may draw the model: EDM's numbers are in EDM's schedulers alone."""
        return not self.told_by or (self.kind == EDM) == (_scheduler(config).kind == EDM)

    @property
    def marks(self) -> tuple[str, ...]:
        """The empty tensors by which a single file says so."""
        return ((V_MARK,) if self.kind == V else ()) + ((ZERO_SNR_MARK,) if self.zero_snr else ())

    def metadata(self, usual: str, said: Mapping[str, str], *, mixed: bool) -> dict[str, str]:
        """What ModelSpec has for it, where it is told and not what everybody expects, or the file ``said`` anything."""
        if not self.told_by or self.kind not in SPELLED:
            return {}
        keys = (METADATA, *said) if mixed or self.kind != usual else said
        return {key: SPELLED[self.kind] for key in keys if key in KEYS}

    def as_dict(self) -> dict[str, Any]:
        return {"type": self.kind, "zero_terminal_snr": self.zero_snr, "told_by": self.told_by or None}

    def __str__(self) -> str:
        zero = ", with zero terminal SNR" if self.zero_snr else ""
        told = f" ({self.told_by})" if self.told_by else "" if self.kind == UNKNOWN else " (as usual)"
        return f"predicts {SHOWN.get(self.kind, self.kind)}{zero}{told}"


CHOICES = {"epsilon": (EPSILON, False), "v": (V, None), "v-zero-snr": (V, True)}


def prediction_of(source: TensorSource, usual: str) -> Prediction:
    """By its marks, its scheduler, its metadata; else what is usual in its family."""
    if found := _marked(source.tensors):
        return found
    if source.layout == DIFFUSERS:
        with suppress(OSError, ValueError):  # whoever draws with it will say what is wrong with it
            config = read_object(source.path / SCHEDULER)
            if config.get("_class_name") or config.get("prediction_type"):
                return _scheduler(config)
    said = (SAID.get(source.metadata.get(key, "").strip().lower()) for key in KEYS)
    kind = next(filter(None, said), None)
    return Prediction(kind, None, "by its metadata") if kind else Prediction(usual)


def _marked(names: Collection[str]) -> Prediction | None:
    by = f"by {', '.join(name for name in MARKS if name in names)}"
    if any(name in names for name in EDM_MARKS):
        return Prediction(EDM, False, by)
    if V_MARK in names:
        return Prediction(V, ZERO_SNR_MARK in names, by)
    return Prediction(EPSILON, True, by) if ZERO_SNR_MARK in names else None


def _scheduler(config: Mapping[str, Any]) -> Prediction:
    name, by = str(config.get("_class_name", "")), BY_SCHEDULER
    if name.startswith("EDM"):
        return Prediction(EDM, False, by)
    if name.startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction":
        return Prediction(FLOW, None, by)
    return Prediction(str(config.get("prediction_type") or EPSILON), bool(config.get("rescale_betas_zero_snr")), by)
