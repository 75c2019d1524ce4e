"""The scheduler that a diffusers folder gets of an accelerator, as diffusers reads it."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from lcmmerge.accelerators import ACCELERATORS
from lcmmerge.archs.prediction import FLOW, _scheduler
from lcmmerge.merge.configs import set_scheduler

QWEN = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_shift=0.9, shift_terminal=0.02)
WAN = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
FLOWS = [name for name, entry in ACCELERATORS.items() if entry.sampling.predicts == FLOW]


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_s_folder(name: str, tmp_path: Path) -> None:
    sampling = ACCELERATORS[name].sampling
    own = WAN if name.startswith("wan") else QWEN
    own.save_pretrained(tmp_path / "scheduler")
    (tmp_path / "model_index.json").write_text(json.dumps({"scheduler": ["diffusers", type(own).__name__], "x": 1}))
    set_scheduler(tmp_path, sampling)
    index = json.loads((tmp_path / "model_index.json").read_text("utf-8"))
    assert index.pop("boundary_ratio", None) == sampling.boundary
    assert index == {"scheduler": ["diffusers", sampling.scheduler], "x": 1}
    read = getattr(diffusers, sampling.scheduler).from_pretrained(tmp_path / "scheduler", local_files_only=True)
    assert sampling.settings.items() <= read.config.items()
    written = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    assert _scheduler(written).kind == FLOW  # what a merge of the merge takes it for
    if not sampling.settings:
        assert read.config.shift == own.config.shift
