"""--block-weights in the merge-block-weight convention."""

import re

import pytest
import torch
from fusing import canonical, fuse
from tiers import of_each

from lcmmerge.archs import identify
from lcmmerge.archs.blocks import block_of, blocks, parse_block_weights
from lcmmerge.errors import LcmMergeError
from lcmmerge.tensors import open_source

BLOCKS = {"sd1": 12, "sd2": 12, "sdxl": 9, "ssd1b": 9}  # inputs, and as many outputs


def convention(name, outputs):
    """A canonical parameter's block: LDM counts two layers and a downsampler going down, three layers going up."""
    if not name.startswith("unet."):
        return "BASE"
    if found := re.match(r"unet\.down_blocks\.(\d)\.(resnets|attentions)\.(\d)", name):
        return f"IN{1 + 3 * int(found[1]) + int(found[3]):02}"
    if found := re.match(r"unet\.down_blocks\.(\d)\.downsamplers", name):
        return f"IN{3 + 3 * int(found[1]):02}"
    if found := re.match(r"unet\.up_blocks\.(\d)\.(?:(?:resnets|attentions)\.(\d)|upsamplers)", name):
        return f"OUT{3 * int(found[1]) + int(found[2] or 2):02}"
    if name.startswith("unet.mid_block."):
        return "M00"
    return f"OUT{outputs - 1:02}" if name.startswith(("unet.conv_norm_out", "unet.conv_out")) else "IN00"


@pytest.fixture
def model(files):
    return lambda name: identify(open_source(files(name).base()))


@pytest.mark.parametrize("layout", ["single-file", pytest.param("diffusers", marks=pytest.mark.e2e)])
@pytest.mark.parametrize("name", BLOCKS)
def test_every_parameter_has_its_block(name, layout, files):
    base = identify(open_source(files(name).base() if layout == "single-file" else files(name).folder()))
    names = blocks(base)
    assert len(names) == 2 * BLOCKS[name] + 2
    assert names[:2] == ("BASE", "IN00")
    assert names[BLOCKS[name] + 1 : BLOCKS[name] + 3] == ("M00", "OUT00")
    found = {parameter: block_of(parameter, base) for parameter in base.parameters}
    assert found == {parameter: convention(parameter, BLOCKS[name]) for parameter in base.parameters}
    assert set(found.values()) == set(names)


@pytest.mark.parametrize("name", of_each(["sd1", "sdxl"]))
def test_lambda_is_multiplied_by_the_blocks_weight(name, files, tmp_path):
    """One number per block, each another; and the other term keeps its own λ."""
    inputs = files(name)
    order = ["BASE", *(f"IN{i:02}" for i in range(BLOCKS[name])), "M00", *(f"OUT{i:02}" for i in range(BLOCKS[name]))]
    factors = {block: round(0.2 + 0.1 * number, 1) for number, block in enumerate(order)}
    text = ",".join(map(str, factors.values()))
    base = inputs.base("fp32")
    fuse(base, tmp_path / "style.safetensors", inputs.style, strengths=(0.5, 0))
    fuse(base, tmp_path / "lcm.safetensors", lcm=inputs.lcm, strengths=(0, 1))
    fuse(base, tmp_path / "both.safetensors", inputs.style, inputs.lcm, (0.5, 1.0), block_weights={"style": text})
    before = canonical(base)
    style, lcm = canonical(tmp_path / "style.safetensors"), canonical(tmp_path / "lcm.safetensors")
    seen = set()
    for parameter, tensor in canonical(tmp_path / "both.safetensors").items():
        block = convention(parameter, BLOCKS[name])
        origin = before[parameter].double()
        exact = origin + factors[block] * (style[parameter] - origin) + (lcm[parameter] - origin)
        assert (tensor - exact).norm() <= 1e-6 * exact.norm()
        seen |= {block} if not torch.equal(style[parameter], before[parameter]) else set()
    assert len(seen) >= 10


def test_a_weight_of_zero_leaves_the_blocks_bytes(files, tmp_path):
    inputs = files("sd1")
    report = fuse(inputs.base(), tmp_path / "fused.safetensors", inputs.style, block_weights={"style": "IN00-OUT11=0"})
    assert [row.component for row in report.rows] == ["text_encoder"]
    before = canonical(inputs.base())
    for parameter, tensor in canonical(tmp_path / "fused.safetensors").items():
        assert torch.equal(tensor, before[parameter]) or parameter.startswith("text_encoder.")


def test_numbers_with_and_without_base(model):
    sd1 = model("sd1")
    with_base = parse_block_weights(",".join(map(str, range(26))), sd1)
    without = parse_block_weights(" , ".join(map(str, range(1, 26))), sd1)
    assert with_base.factors == {"BASE": 0.0, **without.factors}
    assert (without.factors["IN00"], without.factors["M00"], without.factors["OUT11"]) == (1, 13, 25)
    assert without.of("text_encoder.text_model.final_layer_norm.weight", sd1) == 1


def test_pairs_and_ranges(model):
    found = parse_block_weights("IN04=0.5, OUT00-OUT02=0,M00=-1", model("sdxl"))
    assert found.factors == {"IN04": 0.5, "OUT00": 0, "OUT01": 0, "OUT02": 0, "M00": -1}
    kinds = parse_block_weights("IN=0.5,M=0,OUT=2,BASE=3", model("sd1"))
    assert {name: kinds.factors[name] for name in ("IN00", "IN11", "M00", "OUT00", "OUT11", "BASE")} == {
        "IN00": 0.5, "IN11": 0.5, "M00": 0, "OUT00": 2, "OUT11": 2, "BASE": 3,
    }  # fmt: skip
    assert len(kinds.factors) == 26
    last = parse_block_weights("IN11-OUT=0", model("sd1"))
    assert set(last.factors) == {"IN11", "M00", *(f"OUT{n:02}" for n in range(12))}
    assert found.of("unet.conv_in.weight", model("sdxl")) == 1
    assert found.of("unet.mid_block.resnets.0.conv1.weight", model("sdxl")) == -1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1,2,3", "3 numbers, for 26 blocks (25 without BASE)"),
        ("", "0 numbers"),
        ("M00", "1 numbers"),
        ("IN12=1", "no block 'IN12'; the blocks are BASE, IN00"),
        ("IN00-OUT99=1", "no block 'OUT99'"),
        ("OUT03-IN02=0", "OUT03 comes after IN02"),
        ("IN02,IN04=0.5", "'IN02' has no number"),
        ("out=1", "and IN, M, OUT for all of a kind"),
        ("M00=strong", "'strong' is not a number"),
        ("M00=nan", "'nan' is not a finite number"),
        ("M00=", "'' is not a number"),
    ],
)
def test_what_cannot_be_read_is_explained(text, reason, model):
    with pytest.raises(LcmMergeError) as caught:
        parse_block_weights(text, model("sd1"))
    assert reason in caught.value.message
    assert "IN04=0.5" in caught.value.hint


def test_weights_of_a_term_that_is_not_there(files, tmp_path):
    with pytest.raises(LcmMergeError, match="'stile': no such term") as caught:
        fuse(
            files("sd1").base(),
            tmp_path / "fused",
            files("sd1").style,
            files("sd1").lcm,
            block_weights={"stile": "M00=0"},
        )
    assert caught.value.hint == "the terms are style, lcm"
