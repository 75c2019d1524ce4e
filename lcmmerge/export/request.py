"""What a user asks of an export, and everything about it that headers and configs tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lcmmerge.archs import Model
from lcmmerge.bake.outcome import Settings
from lcmmerge.draw import drawable
from lcmmerge.draw.presets import Preset, choose
from lcmmerge.export.names import check_names
from lcmmerge.export.targets import Target, named
from lcmmerge.export.weights import check_fit, plan_weights, source_of
from lcmmerge.graphs.cache import once, parameters
from lcmmerge.graphs.components import PipelinePart, components_of
from lcmmerge.graphs.profiles import Facts, Profile, profiles
from lcmmerge.history import RECIPE
from lcmmerge.merge.plan import Plan
from lcmmerge.merge.plan import plan as plan_merge
from lcmmerge.merge.spec import Merge
from lcmmerge.refs.weights import SCHEDULER, local_tree, read_json
from lcmmerge.tensors.dtypes import OUTPUT_DTYPES

if TYPE_CHECKING:
    from lcmmerge.export.whole import Loop


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What is to be exported, and how.

    ``merge``: a model as it is, or a merge that is made on the way; its output is the folder.

    ``vae_dtype``: None is as the model's VAE needs it. ``statics``: sizes (width, height) to build engines for.
    ``fused``: graphs with Attention nodes too. ``cache``: where graphs are kept, None is the user's own.
    ``parity``: compare the graphs with torch's modules. ``engines``: profiles to build engines for. ``whole``: how many
    steps of a whole pipeline to put into one more graph. ``nvidia``: also graphs with the names of NVIDIA's demo.
    ``accelerator``: how a model is drawn that does not say it.
    """

    merge: Merge
    to: str = "onnx"
    dtype: str = "fp16"
    vae_dtype: str | None = None
    statics: tuple[tuple[int, int], ...] = ()
    fused: bool = True
    cache: Path | None = None
    parity: bool = False
    engines: tuple[str, ...] = ()
    force: bool = False
    settings: Settings = field(default_factory=Settings)
    whole: int | None = None
    nvidia: bool = False
    accelerator: str | None = None

    @property
    def folder(self) -> Path:
        assert self.merge.output.path is not None
        return self.merge.output.path


@dataclass(frozen=True, slots=True)
class PreparedExport:
    """All that is known of an export before the first weight is read.

    ``plan``: of the weight files. ``dtypes``: graph's component → its dtype's name.
    """

    request: ExportRequest
    target: Target
    plan: Plan
    configs: Path
    preset: Preset
    components: tuple[PipelinePart, ...]
    dtypes: Mapping[str, str]
    loop: Loop | None = None

    @property
    def facts(self) -> Facts:
        return _facts(self.configs, self.components, self.preset)

    @property
    def profiles(self) -> tuple[Profile, ...]:
        return tuple(profiles(self.facts, self.request.statics))

    def variants(self, component: PipelinePart) -> Iterator[str]:
        yield "plain"
        if self.request.fused and component.fused and self.dtypes[component.name] in self.target.fused:
            yield "fused"


def prepare(request: ExportRequest) -> PreparedExport:
    """Raises LcmMergeError for an unknown target, and as ``merge.plan.plan`` and ``draw.drawable`` do."""
    target = named(request.to)
    merge = plan_merge(request.merge)
    drawable.check_drawable(merge.base)
    configs = drawable.configs_of(merge.base, request.merge.config_from)
    accelerator = merge.accelerator.name if merge.accelerator else request.accelerator
    preset = _preset(merge.base, configs, accelerator, request.cache)
    components = components_of(configs)
    chosen = dict.fromkeys(merge.base.arch.components, request.dtype)
    chosen["vae"] = request.vae_dtype or vae_dtype(merge.base, configs, request.dtype)
    plan = plan_weights(merge, request.folder, {name: OUTPUT_DTYPES[dtype] for name, dtype in chosen.items()})
    plan = replace(plan, configs=configs)
    dtypes = {component.name: chosen[source_of(component.name)] for component in components}
    _check(plan, components, configs, request.cache)
    if request.nvidia:
        check_names(request.to, components)
    loop = _loop(configs, replace(preset, steps=request.whole), merge.base) if request.whole else None
    prepared = PreparedExport(request, target, plan, configs, preset, components, dtypes, loop)
    if request.engines:
        from lcmmerge.export.engines import check_engines

        check_engines(request.engines, [profile.name for profile in prepared.profiles], request.to)
    return prepared


def _preset(model: Model, configs: Path, accelerator: str | None, cache: Path | None) -> Preset:
    """``presets.choose``, asked once of the same configs and merge: it loads diffusers."""
    tree = local_tree(configs)
    facts = {
        "accelerator": accelerator,
        "recorded": model.source.metadata.get(RECIPE),
        "family": asdict(model.arch.family),
        "prediction": asdict(model.prediction),
        "configs": [read_json(tree, name) for name in (SCHEDULER, "unet/config.json")],
    }
    said = once("preset", facts, lambda: choose(model, configs, accelerator=accelerator).as_dict(), cache)
    return Preset(**said)


def _loop(configs: Path, preset: Preset, model: Model) -> Loop:
    from lcmmerge.export.whole import plan_loop  # and with it the runtimes

    return plan_loop(configs, preset, model)


def vae_dtype(model: Model, configs: Path, dtype: str) -> str:
    """float32 in place of float16 for an SDXL VAE, whose activations overflow there.

    The weights do not tell, and the config does: diffusers' ``force_upcast``, by default true, is false in the VAE that
    was mended for float16 (https://huggingface.co/madebyollin/sdxl-vae-fp16-fix), and only SDXL's pipelines heed it.
    """
    config = read_json(local_tree(configs), "vae/config.json")
    overflows = model.arch.family.upcast_vae and config.get("force_upcast", True)
    return "fp32" if dtype == "fp16" and overflows else dtype


def tokens_of(components: Iterable[PipelinePart]) -> int:
    """How many tokens a prompt is padded to."""
    encoder = next(component for component in components if component.name == "text_encoder")
    length = encoder.inputs[0].dims[1]
    assert isinstance(length, int)
    return length


def _check(plan: Plan, components: tuple[PipelinePart, ...], configs: Path, cache: Path | None) -> None:
    files = {file.path.parent.name: file for file in plan.files}
    for component in components:
        check_fit(files[component.name], parameters(component, cache), configs)


def _facts(configs: Path, components: tuple[PipelinePart, ...], preset: Preset) -> Facts:
    ports = {component.name: {port.name: port.dims for port in component.inputs} for component in components}
    blocks = read_json(local_tree(configs), "vae/config.json")["block_out_channels"]
    guided = preset.guidance > 1 and "timestep_cond" not in ports["unet"]
    return Facts(drawable.native_size(configs), 2 ** (len(blocks) - 1), tokens_of(components), 2 if guided else 1)
