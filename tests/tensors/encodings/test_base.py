"""Which linears are taken, by the canonical names and shapes of published models."""

import re

import pytest
from accelerate import init_empty_weights
from families import CASES, class_of, each_family

from lcmmerge.archs.ltx2 import ATTENTIONS
from lcmmerge.tensors.encodings.base import linears

# Matrices of two blocks (three of SD 3) that are taken, and what a block has that is not.
TAKEN = {
    "auraflow": (42, {"norm1.linear", "norm1_context.linear"}),
    "chroma": (34, set()),
    "cosmos2": (20, {f"norm{i}.linear_{j}" for i in (1, 2, 3) for j in (1, 2)}),
    "ernie_image": (14, set()),
    "flux1": (34, {"norm.linear", "norm1.linear", "norm1_context.linear"}),
    "flux2": (28, set()),
    "flux3": (48, set()),
    "hidream": (90, {"block.adaLN_modulation.1", "block.ff_i.gate"}),
    "hunyuan_video": (34, {"norm.linear", "norm1.linear", "norm1_context.linear"}),
    "hunyuan_video15": (24, {"norm1.linear", "norm1_context.linear"}),
    "ideogram4": (14, {"adaln_modulation"}),
    "krea2": (16, set()),
    "ltx2": (56, {f"{name}.to_gate_logits" for name in ATTENTIONS}),
    "lumina2": (14, {"norm1.linear"}),
    "minimax_h3": (14, set()),
    "qwen_image": (24, {"img_mod.1", "txt_mod.1"}),
    "qwen_image21": (14, set()),
    "sana": (16, set()),
    "sd3": (41, {"norm1.linear", "norm1_context.linear"}),
    "wan": (24, set()),
    "wan_animate": (24, set()),
    "wan_vace": (53, set()),
    "z_image": (14, {"adaLN_modulation.0"}),
}
BLOCK = re.compile(r"(?:\w*blocks|layers)(?:\.[a-z_]+)?\.\d+\.(.+)\.weight")


@pytest.mark.parametrize("name", each_family())
def test_the_blocks_linears_but_for_norms_and_modulations(name):
    with init_empty_weights():
        state = class_of(name)(**CASES[name].few).state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items() if tensor.dim() == 2}
    taken = {key for key, shape in shapes.items() if linears(f"transformer.{key}", shape)}
    left = {found[1] for key in shapes.keys() - taken if (found := BLOCK.fullmatch(key))}
    assert (len(taken), left) == TAKEN[name]
    assert all(BLOCK.fullmatch(key) for key in taken)


@pytest.mark.parametrize(
    ("name", "shape", "taken"),
    [
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj.weight", (5120, 640), True),
        ("unet.mid_block.attentions.0.proj_in.weight", (1280, 1280), True),
        ("unet.mid_block.attentions.0.proj_in.weight", (1280, 1280, 1, 1), False),
        ("unet.up_blocks.0.resnets.1.time_emb_proj.weight", (1280, 1280), False),
        ("unet.time_embedding.linear_2.weight", (1280, 1280), False),
        ("transformer_2.blocks.39.ffn.net.2.weight", (5120, 13824), True),
        ("transformer.blocks.39.ffn.net.2.bias", (5120, 5120), False),
        ("transformer.blocks.39.ffn.net.2.weight", (5120, 96), False),
        ("transformer.blocks.39.ffn.net.2.weight", (5120, 13825), False),
        ("text_encoder.layers.0.mlp.fc1.weight", (3072, 768), False),
    ],
)
def test_of_others_too(name, shape, taken):
    assert linears(name, shape) == taken
