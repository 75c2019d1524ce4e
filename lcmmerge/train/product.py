"""What a training leaves: a LoRA in the official LCM-LoRA's grammar, or a pipeline's folder, with a model card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lcmmerge.archs import Model, kohya_name, modelspec
from lcmmerge.bake.tensors import Read, stored
from lcmmerge.errors import NoEffectError
from lcmmerge.history import RECIPE, canonical_json
from lcmmerge.lora import lorafile
from lcmmerge.lora.lorafile import LoraOrigin
from lcmmerge.merge.configs import copy_configs, set_scheduler
from lcmmerge.merge.outputs import weights_stem
from lcmmerge.refs.files import read_object
from lcmmerge.refs.weights import DIFFUSERS
from lcmmerge.tensors import DTYPES, DType
from lcmmerge.tensors.layout import TensorSpec
from lcmmerge.tensors.staging import Staging
from lcmmerge.tensors.writer import TensorWriter
from lcmmerge.train.card import TrainingOrigin, card
from lcmmerge.train.networks import FullNetworks, LoraNetworks
from lcmmerge.version import __version__

FP16 = DTYPES["F16"]


def write_lora(target: Path, networks: LoraNetworks, origin: TrainingOrigin, *, dtype: DType = FP16) -> int:
    """The LoRA under kohya's names, by which programs that draw find every module of it.

    Writes ``target`` and its card beside it, ``card_path(target)``; the number of modules. Raises OutputError,
    NumericError (``dtype`` has no such number), NoEffectError (nothing was learnt).
    """
    modules = {name: (up, down) for name, up, down in networks.factors()}
    if not any(bool(up.any()) for up, _ in modules.values()):
        raise NoEffectError(f"{target}: would hold no change at all", "train for more --steps")
    shapes = {name: (up.shape[0], *down.shape[1:]) for name, (up, down) in modules.items()}
    keys = {name: kohya_name(f"unet.{name}", origin.base.arch) or name for name in modules}
    specs = {name: list(lorafile.low_rank_specs(keys[name], shapes[name], networks.rank, dtype)) for name in modules}

    variant = modelspec.variant_of(origin.base)
    made = LoraOrigin(origin.base.arch, variant, target.stem, origin.recipe(), origin.metadata())

    def describe(sha256: str | None) -> dict[str, str]:
        return made.metadata(sha256, {networks.rank: networks.alpha})

    with Staging(target) as staging:
        (staging.folder / card_path(target).name).write_text(card(origin, target.name), encoding="utf-8")
        every = [spec for found in specs.values() for spec in found]
        with TensorWriter(staging.folder / target.name, every, describe) as writer:
            for name, (up, down) in modules.items():
                for spec, part in zip(specs[name], _scaled(up, down, networks.alpha, dtype), strict=True):
                    writer.write(spec.name, lorafile.rounded(spec, part.cpu()))
            writer.finish()
        staging.commit_files()
    return len(modules)


def card_path(target: Path) -> Path:
    """Of a LoRA; a folder has a README.md within."""
    return target.with_suffix(".md")


def _scaled(up: Tensor, down: Tensor, alpha: float, dtype: DType) -> tuple[Tensor, Tensor, Tensor]:
    """``up`` makes good what rounding does to alpha, such as bf16's 257."""
    stored_alpha = torch.tensor(alpha).to(dtype.torch)
    return up * (alpha / float(stored_alpha)), down, stored_alpha


def write_full(
    target: Path, networks: FullNetworks, origin: TrainingOrigin, configs: Path, *, dtype: DType = FP16
) -> None:
    """A diffusers pipeline's folder: the trained U-Net, the base's other components, LCMScheduler, a README.md.

    ``configs``: the base's folder of configs and tokenizers. Raises OutputError, NumericError.
    """
    components = set(origin.base.components)
    with Staging(target) as staging:
        folder = staging.folder / target.name
        folder.mkdir()
        copy_configs(configs, folder, components, origin.base)
        set_scheduler(folder, origin.sampling)
        config = folder / "unet" / "config.json"
        config.write_text(json.dumps(_unet_config(config, networks), indent=2) + "\n", encoding="utf-8")
        for component in sorted(components):
            (folder / component).mkdir(exist_ok=True)
            _write_component(folder, component, _reader(component, networks, origin.base), origin, dtype)
        (folder / "README.md").write_text(card(origin, target.name), encoding="utf-8")
        staging.commit_folder()


def _unet_config(path: Path, networks: FullNetworks) -> dict[str, Any]:
    return read_object(path) | {"time_cond_proj_dim": networks.model.config.time_cond_proj_dim}


def _reader(component: str, networks: FullNetworks, base: Model) -> tuple[dict[str, tuple[int, ...]], Read]:
    """The component's parameters by their names in its file → shape, and how to read one."""
    if component == "unet":
        state = networks.model.state_dict()
        return {name: tuple(tensor.shape) for name, tensor in state.items()}, lambda name: state[name].cpu()
    read, prefix = stored(base), f"{component}."
    shapes = {
        name.removeprefix(prefix): parameter.shape
        for name, parameter in base.parameters.items()
        if name.startswith(prefix)
    }
    return shapes, lambda name: read(prefix + name)


def _write_component(
    folder: Path, component: str, content: tuple[Mapping[str, tuple[int, ...]], Callable[[str], Tensor]],
    origin: TrainingOrigin, dtype: DType,
) -> None:  # fmt: skip
    shapes, read = content
    specs = [TensorSpec(name, dtype, shape) for name, shape in sorted(shapes.items())]
    path = folder / component / f"{weights_stem(component)}.safetensors"

    def describe(sha256: str | None) -> dict[str, str]:
        said = modelspec.spec_of(origin.base, DIFFUSERS, folder.name, sha256 or lorafile.UNKNOWN)
        return said | origin.metadata() | {RECIPE: canonical_json({"version": __version__, **origin.recipe()})}

    with TensorWriter(path, specs, describe) as writer:
        for spec in specs:
            writer.write(spec.name, lorafile.rounded(spec, read(spec.name)))
        writer.finish()
