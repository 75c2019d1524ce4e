"""A component of a pipeline as something to export: named ports, and a module without weights.

Port names and dims are those of the folders that optimum's ONNX pipelines read
(https://github.com/huggingface/optimum-onnx).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcmmerge.errors import FormatError, IncompatibleError, NotFoundError
from lcmmerge.refs.files import read_object
from lcmmerge.registry import entries
from lcmmerge.tensors import open_source

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

MODEL_INDEX = "model_index.json"
CURE = "give a folder that diffusers wrote"
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
ORIGIN = ("architectures", "dtype", "torch_dtype", "transformers_version")
MODULE = "model."  # a wrapper's attribute for the module that it wraps: no part of a parameter's name

# What a graph is traced at. Odd latents: at a divisible size the U-Net takes shortcuts that fail at others.
# A batch of 1 would be taken for a constant.
EXAMPLE = {"batch": 2, "sequence": 77, "latent_height": 37, "latent_width": 45, "height": 40, "width": 56}


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output. A dim is a number or a name of ``EXAMPLE``; ``dtype`` None is the graph's own."""

    name: str
    dims: tuple[int | str, ...]
    dtype: torch.dtype | None = None

    @property
    def dynamic(self) -> dict[int, str]:
        """Axis → name, of the axes that are free."""
        return {axis: dim for axis, dim in enumerate(self.dims) if isinstance(dim, str)}

    def example(self, dtype: torch.dtype) -> Tensor:
        """A tensor without memory."""
        import torch

        shape = [EXAMPLE[dim] if isinstance(dim, str) else dim for dim in self.dims]
        return torch.empty(shape, dtype=self.dtype or dtype, device="meta")


@dataclass(frozen=True, slots=True)
class PipelinePart:
    """A part of a pipeline with a graph of its own.

    ``folder`` holds its config.json (the decoder's and the encoder's is the VAE's), ``weights`` is its weight file's
    name. ``fused``: whether a graph with Attention nodes is of use. ``config`` is all that the graph depends on.
    ``shrink``: a config → the part of the same structure with tiny widths, by which its graphs are proved. ``lowered``:
    by the table of ``operators``, else by torch's own exporter.
    """

    name: str
    folder: Path
    weights: str
    config: Mapping[str, Any]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    build: Callable[[Mapping[str, Any]], nn.Module]
    fused: bool = True
    shrink: Callable[[Mapping[str, Any]], PipelinePart] | None = field(default=None, compare=False, repr=False)
    lowered: bool = True

    def module(self, dtype: torch.dtype) -> nn.Module:
        """Takes ``inputs`` in their order, gives ``outputs`` as a tensor or a tuple; on torch's meta device.

        Raises FormatError: the config describes no such module.
        """
        import torch
        from huggingface_hub.errors import StrictDataclassError

        try:
            with torch.device("meta"):
                module = self.build(self.config)
        except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise _no_such(self.name, self.folder, error) from None
        # Not the class's own .to(), which warns of modules to be kept in float32 where there are none.
        return torch.nn.Module.to(module, dtype=dtype).eval().requires_grad_(False)

    def filled(self, weights: Path, dtype: torch.dtype, device: torch.device | str = "cpu") -> nn.Module:
        """The module with its parameters, from the file that its graphs point at."""
        module, stored = self.module(dtype), open_source(weights)
        state = {name: stored[parameter_name(name)].read().to(device, dtype) for name, _ in module.named_parameters()}
        module.load_state_dict(state, assign=True)
        return module

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Name in the weight file → shape."""
        import torch

        module = self.module(torch.float32)
        return {parameter_name(name): tuple(tensor.shape) for name, tensor in module.named_parameters()}

    def buffers(self) -> dict[str, Tensor]:
        """What the module computes as it is built, by name, without memory for its parameters."""
        from accelerate import init_empty_weights

        with init_empty_weights(include_buffers=False):
            return {parameter_name(name): tensor for name, tensor in self.build(self.config).named_buffers()}

    def example(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return tuple(port.example(dtype) for port in self.inputs)


@dataclass(frozen=True, slots=True)
class ComponentKind:
    """How to describe a component from its name, and the folder, config and class of the part of the pipeline it is.

    ``sources``: the parts of a pipeline that are such. Where there may be several, a component has its part's name.
    """

    sources: tuple[str, ...]
    describe: Callable[[str, Path, dict[str, Any], str], PipelinePart]


def components_of(configs: Path) -> tuple[PipelinePart, ...]:
    """The components of a diffusers folder, whose weights are not looked at, by name.

    Raises NotFoundError, FormatError, IncompatibleError.
    """
    index = read_config(configs / MODEL_INDEX)
    found = []
    for registered, kind in entries("lcmmerge.graphs.components", "KIND").items():
        assert isinstance(kind, ComponentKind)
        for source in kind.sources:
            source_class = _class_of(index, source, configs)
            if source_class is not None:
                name = source if len(kind.sources) > 1 else registered
                config = read_config(configs / source / "config.json")
                found.append(_described(kind, name, configs / source, config, source_class))
    if not found:
        raise IncompatibleError(f"{configs}: is a pipeline without a part that we export", CURE)
    return tuple(found)


def _class_of(index: dict[str, Any], part: str, configs: Path) -> str | None:
    """None for a part that the pipeline does without. Raises FormatError."""
    match index.get(part):
        case [str() | None, str() | None as name]:
            return name
        case None:
            return None
    raise FormatError(f"{configs / MODEL_INDEX}: does not say what its {part} is", CURE)


def _described(kind: ComponentKind, name: str, folder: Path, config: dict[str, Any], source_class: str) -> PipelinePart:
    try:
        return kind.describe(name, folder, config, source_class)
    except (KeyError, TypeError) as error:
        raise _no_such(name, folder, error) from None


def _no_such(name: str, folder: Path, error: Exception) -> FormatError:
    reason = " ".join(str(error).split())
    return FormatError(f"{folder}/config.json: describes no {name} ({reason})", CURE)


def check_vae(folder: Path, source_class: str) -> None:
    """Of both halves of a VAE. Raises IncompatibleError."""
    if source_class != "AutoencoderKL":
        raise IncompatibleError(f"{folder}: is a {source_class}", "give a model with diffusers' AutoencoderKL")


def cut(config: Mapping[str, Any], down: str, up: str) -> dict[str, Any]:
    """The first and the last of a config's levels, and one of each kind that is between, of a layer and tiny widths.

    ``down``, ``up``: the keys of their kinds. What is said level by level is said of those that stay.
    """
    kinds, levels = list(config[down]), len(config[down])
    ends = {0, levels - 1}
    kept = sorted(ends | {kinds.index(kind) for kind in kinds if kind not in (kinds[0], kinds[-1])})
    pieces = {
        key: [value[level] for level in kept]
        for key, value in config.items()
        if isinstance(value, list | tuple) and len(value) == levels
    }
    pieces[up] = [config[up][levels - 1 - level] for level in reversed(kept)]
    widths = [8 * 2**level for level in range(len(kept))]
    return {**config, **pieces, "block_out_channels": widths, "norm_num_groups": 4, "layers_per_block": 1}


def parameter_name(name: str) -> str:
    """A module's parameter as the weight file calls it."""
    return name.removeprefix(MODULE)


def read_config(path: Path) -> dict[str, Any]:
    """Without what only tells where a config is from. Raises NotFoundError, FormatError."""
    try:
        value = read_object(path)
    except OSError as error:
        raise NotFoundError(f"{path}: cannot be read ({error.strerror})", CURE) from None
    except ValueError:
        raise FormatError(f"{path}: not a JSON object", CURE) from None
    return {key: item for key, item in value.items() if not key.startswith("_") and key not in ORIGIN}
