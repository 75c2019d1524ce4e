from __future__ import annotations

import pytest
from peft import LoraConfig
from pico import UNETS, pico
from published import shapes
from tiers import of_each

from lcmmerge.archs import lora_parameters, lora_targets
from lcmmerge.archs.targets import TARGETS


@pytest.mark.parametrize(
    ("name", "modules", "millions"), [("sd1", 278, 67.25), ("sdxl", 788, 196.75), ("ssd1b", 423, 105)]
)
def test_the_papers_table_of_trainable_parameters(name: str, modules: int, millions: float) -> None:
    """LCM-LoRA, arXiv 2311.05556: 67.5 M (printed; 67.25 M counted), 197 M and 105 M at rank 64."""
    real = shapes(name)
    assert len(lora_targets(real)) == modules
    assert lora_parameters(real, 64) / 1e6 == pytest.approx(millions, abs=0.1 if name == "ssd1b" else 0.005)


@pytest.mark.parametrize("name", of_each(name for name in UNETS if name != "sd1-inpainting"))
def test_as_many_as_peft_trains(name: str) -> None:
    """Oracle: PEFT's own count on the pico, with the training script's list of targets."""
    from copy import deepcopy

    unet = deepcopy(pico(name).pipeline.unet)
    unet.add_adapter(LoraConfig(r=3, target_modules=list(TARGETS)))
    trainable = sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad)
    state = {parameter: tuple(tensor.shape) for parameter, tensor in pico(name).state().items()}
    assert lora_parameters(state, 3) == trainable
