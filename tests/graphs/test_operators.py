"""The table of operators beside torch: small parts of other families, single calls, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, T5Config, T5EncoderModel

from lcmmerge.errors import IncompatibleError
from lcmmerge.graphs.building import Builder
from lcmmerge.graphs.components import PipelinePart, Port
from lcmmerge.graphs.graph import OPSETS
from lcmmerge.graphs.lowering import lower
from lcmmerge.graphs.proof import prove

IMAGE = ("batch", 3, "height", "width")
PLAIN = {"plain": OPSETS["plain"]}
LATENTS = ("batch", 4, "latent_height", "latent_width")
T5 = {"vocab_size": 99, "d_model": 24, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 2,
      "feed_forward_proj": "gated-gelu"}  # fmt: skip
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 24, "patch_size": 8, "projection_dim": 20}  # fmt: skip
TINY = {"encoder_block_out_channels": [8, 8], "decoder_block_out_channels": [8, 8], "num_encoder_blocks": [1, 1],
        "num_decoder_blocks": [1, 1]}  # fmt: skip
Call = Callable[..., Any]


class Called(nn.Module):
    """A module's call, or a part of one."""

    def __init__(self, call: Call, model: nn.Module | None = None) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, *inputs: Tensor) -> Any:
        return self.call(*inputs) if self.model is None else self.call(self.model, *inputs)


def part(build: Callable[[], nn.Module], inputs: tuple[Port, ...], output: Port, **config: Any) -> PipelinePart:
    return PipelinePart("part", Path(), "w.safetensors", config, inputs, (output,), lambda config: build())


def vision_call(model: Any, pixels: Tensor) -> Tensor:
    """With positions that are made in the call: its own are a buffer."""
    embeddings = model.vision_model.embeddings
    patches = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    first = embeddings.class_embedding.expand(pixels.shape[0], 1, -1)
    places = torch.arange(patches.shape[1] + 1, device=pixels.device)[None]
    hidden = torch.cat([first, patches], 1) + embeddings.position_embedding(places)
    hidden = model.vision_model.encoder(model.vision_model.pre_layrnorm(hidden)).last_hidden_state
    return model.visual_projection(model.vision_model.post_layernorm(hidden[:, 0]))


MODELS = {
    "t5": part(
        lambda: Called(lambda model, ids: model(ids).last_hidden_state, T5EncoderModel(T5Config(**T5))),
        (Port("input_ids", ("batch", 12), torch.int64),), Port("hidden", ("batch", 12, 24)), vocab_size=99,
    ),
    "clip-vision": part(
        lambda: Called(vision_call, CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION))),
        (Port("pixels", ("batch", 3, 24, 24)),), Port("embeds", ("batch", 20)),
    ),
    "taesd-decoder": part(
        lambda: Called(lambda model, z: model.decode(z).sample, AutoencoderTiny(**TINY)),
        (Port("latents", LATENTS),), Port("sample", IMAGE),
    ),
    "taesd-encoder": part(
        lambda: Called(lambda model, x: model.encode(x).latents, AutoencoderTiny(**TINY)),
        (Port("sample", IMAGE),), Port("latents", LATENTS),
    ),
}  # fmt: skip


@pytest.mark.slow("each is traced twice")
@pytest.mark.parametrize("name", MODELS)
def test_a_small_part_of_another_family(name: str) -> None:
    """Beside torch, at another size than it was traced at."""
    prove(MODELS[name], torch.float32, OPSETS)


GRID = Port("x", ("batch", 6, "height", "width"))
CALLS: dict[str, Call] = {
    "relu": torch.relu,
    "select": lambda x: x.select(1, -1) + x[:, 2],
    "root mean square": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "mean": lambda x: x.mean((1, 2)),
    "where": lambda x: torch.where(x == 0, x, 2.0) + torch.where(x == x, x, x * 2),
    "split": lambda x: torch.cat(x.split([1, 3, 2], 1)[::-1], 1),
    "split evenly": lambda x: torch.cat(x.split(4, 1)[::-1], 1),
    "unflatten": lambda x: x.unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2),
    "unflatten and infer": lambda x: x.unflatten(1, (3, -1)) * 2,
    "flatten before free axes": lambda x: x.transpose(1, 2).flatten(0, 1),
    "a write to what is its own": lambda x: (x * 2).add_(x).relu_(),
    "softmax of a product": lambda x: (x @ x.transpose(-1, -2)).softmax(-1),
    "index": lambda x: x.transpose(0, 1)[torch.tensor([[2, 0], [1, 1]])],
}


@pytest.mark.parametrize("name", CALLS)
def test_an_operator(name: str) -> None:
    call = CALLS[name]
    rank = call(torch.zeros(2, 6, 4, 5)).ndim
    output = Port("y", tuple(f"size{axis}" for axis in range(rank)))
    prove(part(lambda: Called(call), (GRID,), output), torch.float32, PLAIN)


def written(x: Tensor) -> Tensor:
    y = x * 2
    y[:, :2] = 0
    return y


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (written, r"aten\.\w+_\.\w+ .*writes in place"),
        (lambda x: x.relu_(), r"aten\.relu_\.default .*writes in place"),
        (lambda x: (y := x * 2).view(-1).add_(1).sum() + y, r"aten\.add_\.Tensor .*writes in place"),
        (lambda x: x[x > 0], r"aten\.\w+"),
        (lambda x: x[:, torch.tensor([1, 0])], r"aten\.index\.Tensor"),
        (lambda x: x[torch.tensor([[0], [1]]), torch.tensor([2, 3])], r"aten\.index\.Tensor"),
        (lambda x: torch.add(x, x, alpha=2), r"aten\.add\.Tensor"),
        (lambda x: nn.functional.layer_norm(x, (5,)), r"aten\.layer_norm\.default"),
    ],
)
def test_what_would_be_wrong_is_refused(call: Call, message: str) -> None:
    program = torch.export.export(Called(call), (torch.empty(2, 6, 4, 5),))
    component = part(lambda: Called(call), (Port("x", (2, 6, 4, 5)),), Port("y", (2, 6, 4, 5)))
    with pytest.raises(IncompatibleError, match=message):
        lower(program, component, 18)


def test_a_lowering_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from lcmmerge.graphs.operators import OPERATORS

    def wrong(graph: Builder, node: Any, x: Any) -> ir.Value:
        return graph.add("Sigmoid", graph.value(x))

    component = part(lambda: Called(torch.tanh), (GRID,), Port("y", GRID.dims))
    prove(component, torch.float16, PLAIN)
    monkeypatch.setitem(OPERATORS, "aten.tanh.default", wrong)
    with pytest.raises(IncompatibleError, match="its plain graph, of the same configuration built tiny, gives y"):
        prove(component, torch.float16, PLAIN)
