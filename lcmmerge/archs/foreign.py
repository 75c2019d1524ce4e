"""What a file that we do not take probably is: an error that says so spares a person an hour."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

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

# Part of a name that no other family has → the family. Adapters spell it with underscores.
FAMILIES = {
    "joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "Flux",
    "single_transformer_blocks.": "Flux",
    "text_encoder_3.": "Stable Diffusion 3",
    "lora_te3.": "Stable Diffusion 3",
    "adaln_single.": "PixArt",
    "clip_txt_mapper.": "Stable Cascade",
    "motion_modules.": "an AnimateDiff motion model",
    "control_model.": "a ControlNet",
    "controlnet_cond_embedding.": "a ControlNet",
} | dict.fromkeys(VIDEO, "Stable Video Diffusion")
# These several families have, also some of ours.
SHARED = dict.fromkeys(
    ("transformer.transformer_blocks.", "lora_transformer.", "text_encoders.t5xxl."),
    "Stable Diffusion 3, Flux or another diffusion transformer",
)
PARTS = {"decoder.conv_in.": "a VAE alone", "token_embedding.": "a text encoder alone"}


def refuse_foreign(source: TensorSource) -> None:
    """Raise UnknownArchitectureError for what might pass for a checkpoint of ours by its names."""
    if _any(source, QUANTISED):
        raise UnknownArchitectureError(
            f"{source.path}: its weights are quantised, and mean nothing without their scales",
            "take the fp16 or fp32 version of this checkpoint",
        )
    if _any(source, ADAPTER):
        raise UnknownArchitectureError(
            f"{source.path}: this is an adapter (a LoRA or a relative), not a checkpoint",
            "give the base checkpoint here, and the adapter as the style or with --adapter",
        )
    if _any(source, VIDEO):
        raise explain_unknown(source)


def explain_unknown(
    source: TensorSource, nearest: Architecture | None = None, missing: Sequence[str] = ()
) -> UnknownArchitectureError:
    """The error for a source without a denoiser of ours: what it looks like, or lacks to be the ``nearest``."""
    if family := guess_family(source.tensors):
        return UnknownArchitectureError(f"{source.path}: this looks like {family}", supported())
    if nearest:
        return UnknownArchitectureError(
            f"{source.path}: a {nearest.denoiser.kind} of no known structure; to be {nearest.title}, which is the "
            f"nearest, it lacks {len(missing)} tensors, the first of them {missing[0]!r}",
            supported(),
        )
    if family := guess_family(source.tensors, SHARED):
        return UnknownArchitectureError(f"{source.path}: this looks like {family}", supported())
    if part := _find(PARTS, source.tensors):
        return UnknownArchitectureError(f"{source.path}: this is {part}", "give a whole checkpoint, or its denoiser")
    return UnknownArchitectureError(f"{source.path}: no architecture has these names", supported())


def guess_family(names: Iterable[str], table: Mapping[str, str] = FAMILIES) -> str | None:
    """The family outside our architectures that one of these names gives away."""
    return _find(table, tuple(names))


def _find(table: Mapping[str, str], names: Collection[str]) -> str | None:
    """What the first part found in a name means; names may be dotted, or flattened with underscores."""
    for part, meaning in table.items():
        flat = part.replace(".", "_")
        if any(part in name or flat in name for name in names):
            return meaning
    return None


def supported() -> str:
    """The end of an error about anything else: a hint."""
    return f"supported are {', '.join(arch.title for arch in architectures().values())}"


def _any(source: TensorSource, parts: tuple[str, ...]) -> bool:
    return any(part in name for name in source.tensors for part in parts)
