"""The U-Net: Stable Diffusion's, SDXL's with its added conditions, a full LCM's with its guidance embedding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcmmerge.errors import IncompatibleError
from lcmmerge.graphs.components.base import DIFFUSERS_WEIGHTS, ComponentKind, PipelinePart, Port, cut

if TYPE_CHECKING:
    from torch import Tensor, nn

TIME_IDS = 6  # original size, crop and target size, each height and width


def describe(name: str, folder: Path, config: dict[str, Any], source_class: str) -> PipelinePart:
    import torch

    added = config.get("addition_embed_type")
    if source_class != "UNet2DConditionModel" or added not in (None, "text_time"):
        raise IncompatibleError(f"{folder}: is not a U-Net that we export", "give a Stable Diffusion or SDXL model")

    def shrink(config: Mapping[str, Any]) -> PipelinePart:
        return describe(name, folder, tiny(config), source_class)

    size = ("latent_height", "latent_width")
    inputs = [
        Port("sample", ("batch", config["in_channels"], *size)),
        Port("timestep", (), torch.int64),
        Port("encoder_hidden_states", ("batch", "sequence", config["cross_attention_dim"])),
    ]
    if width := config.get("time_cond_proj_dim"):
        inputs.append(Port("timestep_cond", ("batch", width)))
    if added:
        width = config["projection_class_embeddings_input_dim"] - TIME_IDS * config["addition_time_embed_dim"]
        inputs += [Port("text_embeds", ("batch", width)), Port("time_ids", ("batch", TIME_IDS))]
    outputs = (Port("out_sample", ("batch", config["out_channels"], *size)),)
    return PipelinePart(name, folder, DIFFUSERS_WEIGHTS, config, tuple(inputs), outputs, build, shrink=shrink)


def tiny(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same kinds of blocks and the same conditions."""
    sizes: dict[str, Any] = {"attention_head_dim": 2, "num_attention_heads": None, "transformer_layers_per_block": 1,
             "reverse_transformer_layers_per_block": None, "cross_attention_dim": 16}  # fmt: skip
    if config.get("time_cond_proj_dim"):
        sizes["time_cond_proj_dim"] = 16
    if config.get("addition_embed_type"):
        sizes |= {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 8 * TIME_IDS + 20}
    return cut(config, "down_block_types", "up_block_types") | sizes


def build(config: Mapping[str, Any]) -> nn.Module:
    import torch
    from diffusers import UNet2DConditionModel

    class UNetModule(torch.nn.Module):
        """sample, timestep, encoder_hidden_states, [timestep_cond], [text_embeds, time_ids] → out_sample"""

        def __init__(self) -> None:
            super().__init__()
            self.model = UNet2DConditionModel.from_config(dict(config))
            self.guided = bool(config.get("time_cond_proj_dim"))
            if config.get("addition_embed_type"):
                # Sinusoids are made in float32; beside the text's they would make a Concat of two types.
                self.model.add_time_proj.register_forward_hook(
                    lambda module, inputs, output: output.to(self.model.dtype)
                )

        def forward(self, sample: Tensor, timestep: Tensor, context: Tensor, *more: Tensor) -> Tensor:
            condition, added = (more[0], more[1:]) if self.guided else (None, more)
            output: Tensor = self.model(
                sample,
                timestep,
                context,
                timestep_cond=condition,
                added_cond_kwargs=dict(zip(("text_embeds", "time_ids"), added, strict=True)) if added else None,
                return_dict=False,
            )[0]
            return output

    return UNetModule()


KIND = ComponentKind(("unet",), describe)
