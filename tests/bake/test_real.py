"""Third parties' real adapters and name maps, from the folder that LCMMERGE_REAL names; skipped without it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hollow import hollow_model
from torch import Tensor

from lcmmerge.archs import architectures
from lcmmerge.archs.views import part
from lcmmerge.bake.tensors import merged
from lcmmerge.merge.plan import plan
from lcmmerge.merge.spec import Merge, Source, Term
from lcmmerge.terms.match import Adapted

FOLDER = os.environ.get("LCMMERGE_REAL", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="LCMMERGE_REAL names no folder")
STRENGTH = 0.8
Roles = dict[str, Tensor]


def product(scale: float) -> Callable[[Roles], Tensor]:
    return lambda roles: scale * roles["up"].double().flatten(1) @ roles["down"].double().flatten(1)


def kronecker(roles: Roles) -> Tensor:
    """alpha = dim in this file. Convolutions are factorised flattened, as LyCORIS did before LoKr's release."""
    halves = []
    for half in ("lokr_w1", "lokr_w2"):
        pair = [roles[f"{half}_{side}"].double().flatten(1) for side in "ab" if f"{half}_{side}" in roles]
        halves.append(pair[0] @ pair[1] if pair else roles[half].double().flatten(1))
    return torch.from_numpy(np.kron(halves[0].numpy(), halves[1].numpy()))


REAL: dict[str, tuple[Callable[[Roles], Tensor], int]] = {  # file → its ΔW in float64, and how many modules it has
    "catundchat-sd15-processor.safetensors": (product(1), 128),
    "cloneofsimo-analog_svd_rank4.safetensors": (product(1), 192),
    "hyper07-sd15-peft.adapter_model.safetensors": (product(16 / 4), 128),
    "lycoris-smart_falcon_4_lokr.safetensors": (kronecker, 350),
}


@pytest.mark.e2e
@pytest.mark.parametrize("name", REAL)
def test_a_real_adapter_at_real_size_is_float64_s_rounded(name: str, tmp_path: Path) -> None:
    """Into a base of zeros, which takes no room: what is written is λΔW, within one unit of fp16's last place."""
    adapter = tmp_path / "adapter_model.safetensors"
    shutil.copyfile(Path(FOLDER, name), adapter)
    if "adapter_model" in name:
        config = name.replace("adapter_model.safetensors", "adapter_config.json")
        shutil.copyfile(Path(FOLDER, config), tmp_path / "adapter_config.json")
    base = hollow_model(tmp_path / "base.safetensors", "sd1")
    planned = plan(Merge(str(base), [Term("style", Source(str(adapter)), STRENGTH)]))
    delta_of, modules = REAL[name]
    assert len(planned.contributions) == modules
    with merged(planned) as read:
        for parameter, (contribution,) in planned.contributions.items():
            assert isinstance(contribution, Adapted)
            roles = {role: info.read() for role, info in contribution.patch.roles.items()}
            exact = STRENGTH * delta_of(roles)
            found = read(parameter).double().flatten(1)
            unit = torch.from_numpy(np.spacing(exact.abs().numpy().astype(np.float16))).double()
            assert bool(((found - exact).abs() <= unit).all()), parameter


BEGINS = {"unet": "unet.", "vae": "vae.", "te": "text_encoder.", "te0": "text_encoder.", "te1": "text_encoder_2."}
MAPS = {"sd1": "sd1", "sd2": "sd2", "sdxl": "sdxl", "sdxl_refiner": "refiner", "ssd1b": "ssd", "segmind_vega": "vega"}


@pytest.mark.parametrize("name", [name for name in MAPS if name in architectures()])
def test_another_project_s_map_of_the_published_file(name: str) -> None:
    """LDM's names ↔ diffusers', made from the two published layouts by ostris/ai-toolkit."""
    listed = json.loads(Path(FOLDER, f"aitoolkit-keymap-{MAPS[name]}.json").read_text("utf-8"))
    slots = {slot.parameter: slot for slot in architectures()[name].keymap("single-file").slots.values()}

    def canonical(theirs: str) -> str:
        component, _, inner = theirs.partition("_")
        return BEGINS[component] + inner

    for stored, theirs in listed["ldm_diffusers_keymap"].items():
        slot = slots.get(canonical(theirs))
        # CLIP-G's projection has two spellings, of which either is read.
        assert slot is None or slot.stored in (stored, stored.replace("text_projection.weight", "text_projection"))
    known = [theirs for theirs in listed["ldm_diffusers_keymap"].values() if canonical(theirs) in slots]
    assert len(known) > 0.95 * len(listed["ldm_diffusers_keymap"])
    for stored, parts in listed["ldm_diffusers_operator_map"].items():
        for number, theirs in enumerate(parts.get("cat", ())):
            slot = slots[canonical(theirs)]
            assert (slot.stored, slot.view) == (stored, part(number, number + 1, 3))
