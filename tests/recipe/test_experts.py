"""A term whose source is a file for each of a model's experts."""

from __future__ import annotations

from pathlib import Path

import pytest
from experts import lora_of_wan, two_experts
from fusing import load
from recipefile import contents, due, run

from lcmmerge.errors import IncompatibleError

TEXT = """\
version: 1
sources: {base: base, high: fast_high_noise.safetensors, low: fast_low_noise.safetensors}
fuse:
  base: base
  terms:
"""
PAIR = TEXT + "    lcm: {transformer: high, transformer_2: {source: low, lambda: 0.5}}\n"
TWO = TEXT + """\
    lcm-transformer: {source: high, expert: transformer}
    lcm-transformer_2: {source: low, lambda: 0.5, expert: transformer_2}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    two_experts(tmp_path / "base")
    lora_of_wan(tmp_path / "fast_high_noise.safetensors", "diffusion_model.", 1)
    lora_of_wan(tmp_path / "fast_low_noise.safetensors", "", 2)
    return tmp_path / "pair.yaml"


def test_it_is_two_terms(path: Path, tmp_path: Path) -> None:
    """And is recorded as these: a run of one form is also done for the other."""
    path.write_text(PAIR)
    record = run(path, tmp_path / "out").steps["fuse pair"]
    assert record.figures["coverage"] == {"lcm-transformer": 1.0, "lcm-transformer_2": 1.0}
    path.write_text(TWO)
    assert set(due(path, tmp_path / "out").values()) == {None}
    run(path, tmp_path / "again")
    assert contents(tmp_path / "out" / "pair") == contents(tmp_path / "again" / "pair")
    before, after = load(tmp_path / "base"), load(tmp_path / "out" / "pair")
    changed = {name.partition(".")[0] for name in after if not after[name].equal(before[name])}
    assert changed == {"transformer", "transformer_2"}


@pytest.mark.parametrize("expert", ["transformer_3", "vae"])
def test_an_expert_that_the_base_has_not(path: Path, tmp_path: Path, expert: str) -> None:
    path.write_text(PAIR.replace("transformer_2", expert))
    with pytest.raises(IncompatibleError, match=f"has no expert '{expert}'") as raised:
        due(path, tmp_path / "out")
    assert raised.value.hint == "its experts are transformer, transformer_2"
