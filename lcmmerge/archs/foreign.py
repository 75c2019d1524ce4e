"""What a file that we do not take probably is: an error that says so spares a person an hour."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from lcmmerge.archs.base import Architecture, architectures
from lcmmerge.errors import UnknownArchitectureError
from lcmmerge.tensors import TensorSource

QUANTISED = ("scaled_fp8", ".scale_weight", ".weight_scale", ".comfy_quant", ".quant_state", ".absmax")
ADAPTER = (
    ".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".lora.down.", "_lora.down.", ".lora_linear_layer.",
    ".hada_w1", ".lokr_w", ".oft_blocks", ".oft_diag",
)  # fmt: skip
# The video models have a whole Stable Diffusion 2 U-Net among their names.
VIDEO = ("time_stack.", "temporal_transformer_blocks.")


@dataclass(frozen=True)
class Kind:
    """A kind of file that is not taken.

    ``marks``: patterns that no other kind's names have; a dot is one, or an underscore, as adapters spell it. ``cure``:
    what to do, by default to take what is supported. ``beside``: where the marks alone are others', too, what some name
    has besides.
    """

    what: str
    marks: tuple[str, ...]
    cure: str = ""
    beside: str = ""

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(self.marks).replace(".", "[._]"))

    def has(self, names: Sequence[str]) -> bool:
        marked = any(self.pattern.search(name) for name in names)
        return marked and (not self.beside or any(self.beside in name for name in names))


BESIDE = "it is loaded beside a checkpoint, and is no change of its weights: omit it here"
CONTROLLED = "it steers a checkpoint while an image is drawn: merge without it, and load it beside the result"
# What people keep beside LoRAs and checkpoints.
KINDS = (
    Kind("a textual inversion (an embedding of a word)",
         ("^emb_params", "^string_to_param.", "^<", "^clip_g$", "^clip_l$", "^learned_embeds"), BESIDE),
    Kind("a Control-LoRA", ("^lora_controlnet",), CONTROLLED),
    Kind("a control LoRA of FLUX.1 (Canny, Depth)", (".key_norm.scale$",), CONTROLLED, ".lora_A."),
    Kind("a ControlNet (ControlLLLite)", ("^lllite_",), CONTROLLED),
    Kind("a ControlNet", ("^control_model.", "^controlnet.", "control_add_embedding.", "controlnet_cond_embedding.",
                          "controlnet_down_blocks.", "controlnet_mid_block.", "^input_hint_block."), CONTROLLED),
    Kind("an IP-Adapter", ("^ip_adapter.", "^image_proj.", "^image_proj_model.", "to_k_ip"), CONTROLLED),
    Kind("PuLID", ("^id_adapter", "^pulid_"), CONTROLLED),
    Kind("a T2I-Adapter", ("^style_embedding$", "^adapter.body.", "^body.0.in_conv.", "^body.0.block1.",
                           "^body.1.in_conv."), CONTROLLED),
    Kind("PhotoMaker's encoder", ("^id_encoder.",), CONTROLLED),
    Kind("a hypernetwork", ("^320.0.linear", "^640.0.linear", "^768.0.linear", "^1024.0.linear", "^1280.0.linear"),
         BESIDE),
    Kind("an AnimateDiff motion model", ("motion_modules.",), CONTROLLED),
    Kind("an upscaler",
         ("RDB1.", "rdb1.", "RRDB_trunk.", ".residual_group.", "^before_RG.", r"^body.\d+.weight"), BESIDE),
    Kind("a face restorer", ("^stylegan_decoder.", "params_ema.stylegan_decoder.", "fuse_convs_dict."), BESIDE),
    Kind("a safety checker", ("special_care_embeds",), BESIDE),
    Kind("an adapter with set_weight, which replaces a weight and adds nothing to it: that is not supported",
         (".set_weight", ".reshape_weight"), "merge the checkpoint that it was made from"),
    Kind("the first LoRA format's .pt, a list without names (cloneofsimo's lora_diffusion)", ("^0$",),
         "convert it to safetensors with lora_diffusion, which names them"),
)  # fmt: skip
FAMILIES = (
    Kind("Hunyuan-DiT", (r"blocks.\d+.attn1.Wqkv",)),
    Kind("PixArt", ("^adaln_single.", "^transformer.adaln_single."), beside="pos_embed"),
    Kind("Stable Cascade", ("clip_txt_mapper.",)),
    Kind("Stable Video Diffusion", VIDEO),
)
# These several families have, also some of ours.
SHARED = (
    Kind("Stable Diffusion 3, Flux or another diffusion transformer",
         ("(?<!temporal_)transformer.transformer_blocks.", "lora_transformer.", "text_encoders.t5xxl.", "^lora_te3.")),
)  # fmt: skip
PARTS = (
    Kind("a CLIP image encoder alone", ("vision_model.", "^visual.transformer.")),
    Kind("a VAE alone", ("decoder.conv_in.", r"^(taesd_)?(en|de)coder.\d+.")),
    Kind("a text encoder alone", ("token_embedding.", ".SelfAttention.q.", "embed_tokens.")),
)
DENOISERS = Kind("a denoiser", ("input_blocks.", "down_blocks.0.attentions.", "output_blocks.", "transformer_blocks."))
WIDTHS = (768, 1024, 1280)  # of the text encoders


def refuse_foreign(source: TensorSource) -> None:
    """Raise UnknownArchitectureError for what might pass for a checkpoint of ours by its names."""
    if any(part in name for name in source.tensors for part in QUANTISED):
        raise UnknownArchitectureError(
            f"{source.path}: its weights are quantised, and mean nothing without their scales",
            "take the fp16 or fp32 version of this checkpoint",
        )
    if any(part in name for name in source.tensors for part in VIDEO):
        raise explain_unknown(source)


def foreign_kind(source: TensorSource) -> Kind | None:
    """What people keep beside checkpoints and LoRAs, where the file is that."""
    names = tuple(source.tensors)
    vectors = names and all(
        "." not in info.name and 0 < len(info.shape) < 3 and info.shape[-1] in WIDTHS for info in source
    )
    return next((kind for kind in KINDS if kind.has(names)), KINDS[0] if vectors else None)


def patches_foreign(modules: Iterable[str]) -> bool:
    """Whether an adapter is for such a kind alone, such as a motion model's LoRA."""
    return all(any(kind.pattern.search(module) for kind in KINDS) for module in modules)


def explain_unknown(
    source: TensorSource, nearest: Architecture | None = None, missing: Sequence[str] = ()
) -> UnknownArchitectureError:
    """The error for a source without a denoiser of ours: what it looks like, or lacks to be the ``nearest``."""
    path, names = source.path, tuple(source.tensors)
    if kind := foreign_kind(source):
        return UnknownArchitectureError(f"{path}: this is {kind.what}", kind.cure)
    if any(part in name for name in names for part in ADAPTER):
        return UnknownArchitectureError(
            f"{path}: this is an adapter (a LoRA or a relative), not a checkpoint",
            "give the base checkpoint here, and the adapter as the style or with --adapter",
        )
    if family := guess_family(names):
        return UnknownArchitectureError(f"{path}: this looks like {family}", supported())
    if nearest:
        return UnknownArchitectureError(
            f"{path}: a {nearest.denoiser.kind} of no known structure; to be {nearest.title}, which is the "
            f"nearest, it lacks {len(missing)} tensors, the first of them {missing[0]!r}",
            supported(),
        )
    if family := guess_family(names, SHARED):
        return UnknownArchitectureError(f"{path}: this looks like {family}", supported())
    part = next((kind for kind in PARTS if kind.has(names)), None)
    if part and not DENOISERS.has(names):
        return UnknownArchitectureError(f"{path}: this is {part.what}", "give a whole checkpoint, or its denoiser")
    first = f", such as {names[0]!r}" if names else ""
    return UnknownArchitectureError(f"{path}: no architecture and no adapter has these names{first}", supported())


def guess_family(names: Iterable[str], table: Sequence[Kind] = FAMILIES) -> str | None:
    """The family outside our architectures that one of these names gives away."""
    names = tuple(names)
    return next((kind.what for kind in table if kind.has(names)), None)


def supported() -> str:
    """The end of an error about anything else: a hint."""
    return f"supported are {', '.join(arch.title for arch in architectures().values())}"
