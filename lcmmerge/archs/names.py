"""How adapter files name a module, and whose names they are.

A name is looked up without what programs put before it, and with ``_`` for every ``.`` and ``-``, in the union of the
architecture's canonical and single-file names:

| name | who writes it |
| --- | --- |
| ``lora_unet_down_blocks_0_…``, ``lora_te_…`` | kohya for SD 1 and 2; the official LCM-LoRA files |
| ``lora_unet_input_blocks_1_…``, ``lora_te1_…``, ``lora_te2_…`` | kohya for SDXL |
| ``lycoris_down_blocks_0_…`` | LyCORIS outside kohya |
| ``unet.down_blocks.0.…``, ``transformer.…``, ``text_encoder.…`` | diffusers |
| ``down_blocks.0.…``, ``text_model.…``, ``base_model.model.…`` | PEFT, on one model |
| ``diffusion_model.input_blocks.1.…``, ``text_encoders.clip_l.transformer.…`` | ComfyUI |
| ``model.diffusion_model.input_blocks.1.…`` | a single file's own names |
| ``unet.base_model.model.…``, ``module.…``, ``_orig_mod.…`` | wrappers saved along |
| ``oft_unet_…`` | sd-scripts' OFT |
| ``clip_l.text_model.…``, ``clip_g.…`` | OMI, as OneTrainer writes it |
| ``transformer_blocks.0.…`` | Lightning, LightX2V; also with an adapter's name (``.default``): DiffSynth |
| ``lora_transformer_…``, ``double_blocks.0.img_attn.qkv.0`` | OneTrainer |
| ``double_blocks.0.processor.qkv_lora1`` | XLabs (``Component.aliases``) |
| ``unet:0``, ``text_encoder:0`` | lora_diffusion, the first LoRAs: by number (``Component.numbered``) |

In 16 public key lists of FLUX, Qwen-Image, Anima and Krea 2 LoRAs each of 7,105 names is found so, and no two fall
together.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from lcmmerge.archs.base import Architecture, Model, architectures
from lcmmerge.archs.component import Component
from lcmmerge.archs.foreign import SHARED, guess_family
from lcmmerge.archs.tables import Slot
from lcmmerge.archs.views import WHOLE, Shape, View
from lcmmerge.refs.weights import DIFFUSERS, SINGLE_FILE

DENOISER = (
    "model.diffusion_model.", "diffusion_model.", "transformer.", "unet.", "net.", "model.", "pipe.dit.", "pipe.unet.",
    "conditional_transformer.",
    "lora_unet_", "lora_transformer_", "oft_unet_",
)  # fmt: skip
ANY = ("base_model.model.", "base_model.", "lycoris_", "state_dict.", "module.", "_orig_mod.")
NUMBERED = re.compile(r"(\w+):(\d+)")  # cloneofsimo's lora_diffusion


@dataclass(frozen=True, slots=True)
class Home:
    """The tensor that an adapter's module was made for: canonical modules, with their views of it.

    A canonical module (a parameter's name without ``.weight``) is its own home; a fused one of a single file is that of
    several. ``head``: the parameter as long as a head, where they may alternate head by head.
    """

    parts: tuple[tuple[str, View], ...]
    head: str = ""

    @property
    def module(self) -> str:
        """The only canonical module, or the first."""
        return self.parts[0][0]

    @property
    def component(self) -> str:
        return self.module.partition(".")[0]

    def within(self, component: str) -> Home:
        """The same modules of another component."""
        begin = f"{self.component}."
        return Home(tuple((f"{component}.{module.removeprefix(begin)}", view) for module, view in self.parts))


class ModuleNames:
    """An architecture's modules, by any name that an adapter file may have for them."""

    def __init__(self, arch: Architecture, kept: Iterable[str] = ()) -> None:
        """``kept``: the parameters of components whose tensors keep their names."""
        slots = (*arch.keymap(SINGLE_FILE).slots.values(), *(Slot(name, name) for name in kept))
        by_part: dict[str, list[Slot]] = {}
        for slot in slots:
            by_part.setdefault(slot.parameter.partition(".")[0], []).append(slot)
        self._tables = [Tables.of(part, by_part.get(part.name, ())) for part in arch.parts]
        self._experts = tuple(part.name for part in arch.experts)
        self._numbered = {part.name: part.numbered() for part in arch.parts}
        self.kinds = Counter(map(kind_of, {module_of(slot.parameter) for slot in slots}))

    def find(self, key: str) -> Home | None:
        """None where no module is called so, or several are."""
        homes = self.homes(key)
        return homes[0] if len(homes) == 1 else None

    def homes(self, key: str) -> tuple[Home, ...]:
        """The modules of that name, one of each component that has it."""
        return tuple(each for home in self._homes(key) for each in self._of_experts(home))

    def _of_experts(self, home: Home) -> Iterator[Home]:
        """Whatever names an expert's module names those of the other experts, but that it names the second itself."""
        yield home
        if home.component in self._experts[:1]:
            yield from map(home.within, self._experts[1:])

    def _homes(self, key: str) -> tuple[Home, ...]:
        if match := NUMBERED.fullmatch(key):
            modules = self._numbered.get(match[1], ())
            return tuple(Home(((module, WHOLE),)) for module in modules[int(match[2]) :][:1])
        tables = self._tables
        while True:
            if home := next(filter(None, (table.begun(key) for table in tables)), None):
                return (home,)
            if homes := tuple(filter(None, (table.get(key) for table in tables))):
                return homes
            begin = next((begin for begin in (*ANY, *DENOISER) if key.startswith(begin)), None)
            if begin is None:
                return ()
            key = key.removeprefix(begin)
            if begin in DENOISER:
                own = tables[0].part.stored  # single files keep Anima's conditioner among the denoiser's names
                tables = [table for table in tables if table.part.stored == own] if own else tables[:1]
                key = key.removeprefix("_")  # some write lora_unet__blocks_0_…

    def settle(
        self, keys: Iterable[str], fits: Callable[[str, Home], bool], expert: str | None = None
    ) -> dict[str, Home]:
        """Each key's home. Names that several components have (SDXL's text encoders) are of the only one that has all
        of them, or that they all fit; where that is none, they have no home. ``expert``: the component that they are
        for, of the model's experts.
        """
        others = {name for name in self._experts if expert and name != expert}
        seconds, keys = self._experts[1:], list(keys)
        of_all = seconds and any(home.component in seconds for key in keys for home in self._homes(key))
        find = self._homes if of_all else self.homes  # a file that names the second expert tells them apart
        homes = {key: tuple(home for home in find(key) if home.component not in others) for key in keys}
        by_component: dict[str, dict[str, Home]] = {}
        for key, found in homes.items():
            for home in found:
                by_component.setdefault(home.component, {})[key] = home
        disputed = {home.component for found in homes.values() if len(found) > 1 for home in found}
        keys = {key for component in disputed for key in by_component[component]}
        claims = [by_component[component] for component in disputed if by_component[component].keys() == keys]
        if len(claims) > 1:
            claims = [claim for claim in claims if all(fits(key, home) for key, home in claim.items())]
        settled = {key: found[0] for key, found in homes.items() if len(found) == 1}
        return settled | claims[0] if len(claims) == 1 else settled


@dataclass(frozen=True, slots=True)
class Tables:
    """A component's modules: squashed name → home, by canonical names and by a single file's."""

    part: Component
    canonical: Mapping[str, Home]
    stored: Mapping[str, Home]

    @classmethod
    def of(cls, part: Component, slots: Iterable[Slot]) -> Tables:
        canonical: dict[str, Home] = {}
        stored: dict[str, Home] = {}
        groups: dict[str, list[Slot]] = {}
        for slot in slots:
            groups.setdefault(slot.stored, []).append(slot)
            module = module_of(slot.parameter)
            for name in part.spellings(module.removeprefix(f"{part.name}.")):
                canonical[squash(name)] = Home(((module, WHOLE),))
        for slot in part.aliases():
            groups.setdefault(slot.stored, []).append(slot)
        for name, group in groups.items():
            if name.endswith(".bias") and f"{module_of(name)}.weight" in groups:
                continue  # it is as its weight, of which alone the shape may be another
            key = squash(module_of(name.removeprefix(part.stored)))
            stored[key] = Home(tuple((module_of(slot.parameter), slot.view) for slot in group), part.head_of(group[0]))
            if len(group) > 1:
                stored |= {f"{key}_{i}": Home(((module_of(slot.parameter), WHOLE),)) for i, slot in enumerate(group)}
        return cls(part, canonical, stored)

    def begun(self, key: str) -> Home | None:
        """The home of a name that begins as this component's do."""
        for begin in (begin for begin in self.part.begins() if begin and key.startswith(begin)):
            name = key.removeprefix(begin)
            for wrapper in ANY:
                name = name.removeprefix(wrapper)
            if home := self.get(name, stored=begin == self.part.stored):
                return home
        return None

    def get(self, name: str, *, stored: bool = False) -> Home | None:
        """``stored``: of the two that some names mean, that of a single file."""
        first, second = (self.stored, self.canonical) if stored else (self.canonical, self.stored)
        return first.get(squash(name)) or second.get(squash(name))


def squash(name: str) -> str:
    return name.replace(".", "_").replace("-", "_")


def module_of(parameter: str) -> str:
    """A parameter's name without what of its module it is; a bare one is its own."""
    for ending in (".weight", ".bias", ".scale", "in_proj_weight", "in_proj_bias"):
        if parameter.endswith(ending):
            return parameter.removesuffix(ending.removeprefix("in_proj"))
    return parameter


@cache
def names_of(arch: Architecture, kept: tuple[str, ...] = ()) -> ModuleNames:
    """Made once: its tables take longer than to look a file's names up in them."""
    return ModuleNames(arch, kept)


def names_in(model: Model) -> ModuleNames:
    """Also those of the components whose tensors keep their names: T5, a Qwen …"""
    known = model.arch.keymap(DIFFUSERS).slots
    kept = tuple(name for name in model.parameters if name not in known)
    return names_of(model.arch, kept) if kept else names_of(model.arch)


def kohya_name(module: str, arch: Architecture) -> str | None:
    """What kohya-ss/sd-scripts calls a module in adapter files; None in a component without a prefix, the VAE. A
    denoiser without one, of no family that we know, keeps its names.

    ``unet.mid_block.resnets.0.conv1`` is ``lora_unet_mid_block_resnets_0_conv1``, and of SDXL's U-Net
    ``lora_unet_middle_block_0_in_layers_2``, which Stable Diffusion web UIs, ComfyUI and diffusers know too.
    """
    component, _, name = module.partition(".")
    part = next((part for part in arch.parts if part.name == component), None)
    if part is None or not part.kohya:
        return module if part is arch.denoiser else None
    slots = arch.keymap(SINGLE_FILE).slots
    slot = slots.get(f"{module}.weight") or slots.get(module) or slots.get(f"{module}.bias")
    if part.kohya_stored and slot and slot.view.is_whole:  # a fused tensor's name is of all its parts
        name = module_of(slot.stored.removeprefix(part.stored))
    return part.kohya + squash(name)


def guess_architecture(modules: Iterable[str]) -> str | None:
    """The title of the architecture that an adapter of these modules was made for, None when in doubt."""
    if family := guess_family(modules):
        return family
    likely = " or ".join(arch.title for arch in likely_architectures(modules))
    return likely or guess_family(modules, SHARED)


def likely_architectures(
    modules: Iterable[str], among: Iterable[Architecture] | None = None
) -> tuple[Architecture, ...]:
    """The architectures that have the most of the modules; of those whose denoisers are of one class, the one of which
    they are the greater part (everything of SSD-1B's has a home in SDXL, too). A mapping to the shapes that an adapter
    was made for tells what names do not: the text's width is SD 1's or SD 2's, an MLP's FLUX.1's or FLUX.2's.
    ``among``: those that come into question, all by default.
    """
    keys = set(modules)
    if guess_family(keys):
        return ()
    shapes = modules if isinstance(modules, Mapping) else {}
    scores = {arch: _score(arch, keys) for arch in (_named_by(keys) if among is None else among)}
    most = max((count for count, _ in scores.values()), default=0)
    if not most or (most < len(keys) and guess_family(keys, SHARED)):
        return ()
    likely = [arch for arch, (count, _) in scores.items() if count == most]
    likely = [arch for arch in likely if _may_be(arch, shapes)] or likely
    shares: dict[str, float] = {}
    for arch in likely:
        shares[arch.denoiser.module] = max(scores[arch][1], shares.get(arch.denoiser.module, 0.0))
    return tuple(arch for arch in likely if scores[arch][1] == shares[arch.denoiser.module])


def _named_by(keys: Iterable[str]) -> list[Architecture]:
    """The architectures by whose marks some key begins, all where none does: to read an architecture takes its time."""
    bare, every = {_bare(key) for key in keys}, list(architectures().values())
    return [arch for arch in every if any(key.startswith(arch.denoiser.marks()) for key in bare)] or every


def _bare(key: str) -> str:
    """A key without what programs put before a denoiser's names."""
    while begin := next((begin for begin in (*ANY, *DENOISER) if key.startswith(begin)), ""):
        key = key.removeprefix(begin)
    return squash(key.removeprefix("_"))


def _may_be(arch: Architecture, shapes: Mapping[str, Shape]) -> bool:
    """Whether an adapter whose modules were made for these shapes may be the architecture's."""
    names, denoiser = names_of(arch), arch.denoiser
    matrices = ((names.find(key), shape) for key, shape in shapes.items() if len(shape) > 1)
    parts = ((part, shape) for home, shape in matrices if home for part in home.parts)
    return all(denoiser.may_have(module, view.shape(shape)) for (module, view), shape in parts)


def _score(arch: Architecture, keys: set[str]) -> tuple[int, float]:
    """How many of the keys are the architecture's, and the share of its like modules that they are; of what is made for
    text encoders alone, which several have in common, all.
    """
    names = names_of(arch)
    homes = [found for key in keys if (found := names.homes(key))]
    modules = {module for found in homes if len(found) == 1 for module, _ in found[0].parts}
    if not any(module.startswith(f"{arch.denoiser.name}.") for module in modules):
        return len(homes), 1.0
    like: Mapping[str, int] = names.kinds
    return len(homes), len(modules) / sum(like[kind] for kind in set(map(kind_of, modules)))


def kind_of(module: str) -> str:
    """A module's component and name without its place: ``unet`` and ``attn1.to_q``."""
    parts = module.split(".")
    return f"{parts[0]}.{parts[-2]}.{parts[-1]}"
