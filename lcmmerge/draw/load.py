"""A checkpoint of any layout as the modules that draw: diffusers' U-Net and VAE, transformers' text encoders.

The modules are made from configs without memory for weights, and get ours, read through the architecture's key map.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import nn
from transformers import CLIPTokenizer

from lcmmerge.archs import Model, identify
from lcmmerge.bake.tensors import Read, stored
from lcmmerge.draw.drawable import check_drawable
from lcmmerge.draw.presets import own_scheduler
from lcmmerge.errors import FormatError, LcmMergeError, NotFoundError, ShapeMismatchError
from lcmmerge.merge.configs import CURE
from lcmmerge.refs.weights import MODEL_INDEX, local_tree, read_json
from lcmmerge.tensors.remote import open_reference

Pipeline: TypeAlias = StableDiffusionPipeline | StableDiffusionXLPipeline
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LONGEST = 1 << 20  # tokens; CLIP takes 77


def open_model(reference: str, variant: str | None = None, prediction: str | None = None) -> Model:
    """The checkpoint by its headers; ``prediction``: as ``--prediction`` says.

    Raises NotFoundError, FormatError, OptionError, IncompatibleError (it draws no images).
    """
    model = identify(open_reference(reference, "model", variant, pickles=True)).predicting(prediction)
    check_drawable(model)
    return model


def pick_device(device: str | None, dtype: str | None) -> tuple[torch.device, torch.dtype]:
    """Those that are asked for, else a GPU in float16 where there is one, else the CPU in float32.

    Raises LcmMergeError for a device that is not there.
    """
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):
        raise LcmMergeError(f"device {name!r}: there is none here", "omit --device to use the CPU") from None
    return place, DTYPES[dtype or ("fp32" if place.type == "cpu" else "fp16")]


def load_pipeline(
    model: Model, configs: Path, dtype: torch.dtype, device: torch.device, read: Read | None = None
) -> Pipeline:
    """A text-to-image pipeline; ``configs`` and ``read`` as in ``load_components``, whose errors it raises."""
    return assembled(load_components(model, configs, dtype, read), model, configs).to(device)


def assembled(components: Mapping[str, Any], model: Model, configs: Path) -> Pipeline:
    """The pipeline of what ``load_components`` gave; each part stays where it is. Raises FormatError."""
    family = model.arch.family
    kind: type[Pipeline] = getattr(diffusers, family.pipeline)
    if family.micro_conditioning:
        zeros = read_json(local_tree(configs), MODEL_INDEX).get("force_zeros_for_empty_prompt", True)
        given = {"force_zeros_for_empty_prompt": zeros, "add_watermarker": False}
    else:
        given = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    try:
        pipeline = kind(**components, **given)
    except Exception:  # it looks into its parts' configs, of whatever they are
        raise FormatError(f"{configs}: its configs make no {kind.__name__}", CURE) from None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_components(model: Model, configs: Path, dtype: torch.dtype, read: Read | None = None) -> dict[str, Any]:
    """``unet``, ``vae``, ``text_encoder``, ``tokenizer`` (and ``…_2``), ``scheduler``, as diffusers names them.

    Modules are on the CPU in ``dtype``, in eval mode and without gradients. ``configs``: see ``configs_of``;
    ``read``: where weights come from, else from the model's files, which are downloaded where they are on the Hub.
    Raises NotFoundError, FormatError, ShapeMismatchError.
    """
    if model.source.awaited:
        model.source.awaited.fetch()
    read = read or stored(model)
    components: dict[str, Any] = {"scheduler": own_scheduler(configs, model)}
    for encoder in model.arch.text_encoders:
        name = encoder.name.replace("text_encoder", "tokenizer")
        components[name] = clip_tokenizer(configs / name, CURE)
    for component, module in _empty_modules(model, configs).items():
        _fill(module, component, model, dtype, read)
        components[component] = module.eval().requires_grad_(False)
    return components


def clip_tokenizer(folder: Path, cure: str) -> CLIPTokenizer:
    """Raises NotFoundError."""
    try:
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        is_bounded = 0 < tokenizer.model_max_length <= LONGEST  # 10³⁰, where no config says it
    except Exception:  # transformers checks little of what it reads: a damaged file can end in anything
        raise NotFoundError(f"{folder}: holds no CLIP tokenizer", cure) from None
    if not is_bounded:
        raise NotFoundError(f"{folder}: its tokenizer_config.json gives no model_max_length", cure)
    return tokenizer


def _empty_modules(model: Model, configs: Path) -> dict[str, nn.Module]:
    """The components' modules, with parameters on torch's meta device."""
    modules: dict[str, nn.Module] = {}
    for part in model.arch.parts:
        folder = configs / part.name
        try:
            with init_empty_weights():
                if part in model.arch.text_encoders:
                    kind = getattr(transformers, part.module)
                    config = kind.config_class.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
                    if not part.is_described(config.to_dict()):
                        raise ValueError  # before as many layers are made
                    modules[part.name] = kind(config)
                else:
                    kind = getattr(diffusers, part.module)
                    modules[part.name] = kind.from_config(kind.load_config(folder, local_files_only=True))
            if part.name == "vae":
                1 / float(cast(Any, modules[part.name].config).scaling_factor)  # what latents are divided by
        except Exception:  # nor do diffusers' modules check their configs
            raise FormatError(f"{folder}/config.json: describes no {part.name} of ours", CURE) from None
    return modules


def _fill(module: nn.Module, component: str, model: Model, dtype: torch.dtype, read: Read) -> None:
    """Give the module its weights; of ours and its own parameters none may be left over."""
    own = {canonical(component, name): (name, tuple(tensor.shape)) for name, tensor in module.state_dict().items()}
    shapes = {name: info.shape for name, info in model.leftovers.items()}  # a full LCM's `cond_proj` is one of them
    shapes |= {name: parameter.shape for name, parameter in model.parameters.items()}
    ours = {name for name in model.parameters if name.startswith(f"{component}.")}
    if unlike := sorted(name for name in own.keys() | ours if name not in own or own[name][1] != shapes.get(name)):
        raise _unlike(unlike, model, own, shapes)
    module.load_state_dict({name: read(ours).to(dtype) for ours, (name, _) in own.items()}, assign=True)


def canonical(component: str, name: str) -> str:
    """transformers 5 leaves a prefix away that its files have."""
    shortened = name.startswith(("embeddings.", "encoder.layers.", "final_layer_norm."))
    return f"{component}.text_model.{name}" if shortened else f"{component}.{name}"


def _unlike(
    unlike: list[str], model: Model, own: Mapping[str, tuple[str, tuple[int, ...]]], shapes: Mapping[str, Any]
) -> ShapeMismatchError:
    name = unlike[0]
    found = list(shapes[name]) if name in shapes else "missing"
    described = list(own[name][1]) if name in own else "no such parameter"
    return ShapeMismatchError(
        f"{model.source.path}: {len(unlike)} parameters are not as the configs describe them, the first of them "
        f"{name}: {found}, by the configs {described}",
        CURE,
    )
