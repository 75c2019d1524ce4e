"""Negative controls on the embedded model: what accelerates nothing is said to beat nothing."""

from pathlib import Path

import pytest
import torch
from merging import merge_of
from safetensors.torch import load_file, save_file

import lcmmerge
from lcmmerge.search.request import SearchRequest
from lcmmerge.search.run import search

pytestmark = pytest.mark.e2e

PROMPTS = tuple(f"a {digit}" for digit in ("zero", "two", "five", "seven"))
BEATEN, NOT_BEATEN = "the best cell beats", "NO CELL IS SHOWN TO BEAT"
DPM, CONTROL = " DPM-Solver++ at as many evaluations", " the few-step scheduler with no accelerator (λ = 0)"


@pytest.fixture(scope="module")
def digits():
    return Path(lcmmerge.__file__).parent / "zoo" / "digits"


def nothing(name, tensor):
    """τ = 0."""
    return torch.zeros_like(tensor) if name.endswith("lora_up.weight") else tensor


def another_base_s(name, tensor):
    """Of the same shapes, sizes and norms, and of other weights: each tensor's entries are shuffled."""
    generator = torch.Generator().manual_seed(len(name))
    return tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].view(tensor.shape)


def gain(found):
    """How much nearer to the teacher than the control the best cell is, as a share of the control's distance."""
    (control,) = (row for row in found.rows if row.control)
    ours, theirs = (row.figures["energy distance"].value for row in (found.best, control))
    return 1 - ours / theirs


def searched(digits, lcm, work):
    merge = merge_of(str(digits / "base"), style=str(digits / "neon.safetensors"), lcm=str(lcm), accelerator="lcm")
    axes = {"style": (1.0,), "lcm": (0.5, 1.0)}
    return search(SearchRequest(merge, work, PROMPTS, axes, count=2, guidance=2.5, batch=8, steps=2)).scored


def changed(change, digits, tmp_path):
    tensors = load_file(digits / "lcm.safetensors")
    path = tmp_path / "lcm.safetensors"
    save_file({name: change(name, tensor).contiguous() for name, tensor in tensors.items()}, path)
    return searched(digits, path, tmp_path / "work")


def test_no_lora_at_all(digits, tmp_path):
    found = changed(nothing, digits, tmp_path)
    assert found.verdict[:2] == (NOT_BEATEN + DPM, NOT_BEATEN + CONTROL)
    assert gain(found) == 0
    assert len(found.ties) == 2


def test_a_lora_of_another_base(digits, tmp_path):
    """It is said to beat no solver. The control it may: a shift of all images alike can be one for the better.

    In pairs that shows however small it is. Next to what acceleration gains it is little.
    """
    found = changed(another_base_s, digits, tmp_path)
    assert found.verdict[0] == NOT_BEATEN + DPM
    assert gain(found) < 0.2


def test_what_accelerates_is_said_to(digits, tmp_path):
    """So that the above says something: the same study, with the model's own LCM-LoRA."""
    found = searched(digits, digits / "lcm.safetensors", tmp_path / "work")
    assert BEATEN + CONTROL in found.verdict
    assert found.best.cell.lambdas == (1.0, 1.0)
    assert gain(found) > 0.4
