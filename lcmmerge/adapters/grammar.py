"""An adapter file's tensors, grouped into patches. Only headers are read, and a one-element flag."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lcmmerge.adapters.base import SHARED, Patch, Shape, algorithms
from lcmmerge.adapters.names import PEFT, PEFT_PREFIX, Name, parse_name
from lcmmerge.adapters.peft_config import Config, changed_base, module_config, read_configs, scales_input
from lcmmerge.errors import FormatError, IncompatibleError, OptionError
from lcmmerge.refs.weights import INITIAL, SIDECAR
from lcmmerge.tensors import TensorInfo, TensorSource
from lcmmerge.tensors.dtypes import LARGEST

EMBEDDING = re.compile(r"bundle_emb\.|emb_params$|string_to_param\.|<|clip_[lg]$")

NAMED = re.compile(r"\.lora_A\.(?!(?:weight|bias)$)")
SCALED = ("up", "hada_w1_a", "lokr_w1_a", "lokr_w2_a")
OFT_SETTINGS = ("coft", "eps", "use_cayley_neumann", "num_cayley_neumann_terms")


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter file that was read: what it patches, module by module.

    ``patches`` in the file's order. ``embeddings``: textual inversions, which patch nothing.
    ``unknown``: names of no grammar. ``grammars``: those met, sorted.
    """

    source: TensorSource
    patches: tuple[Patch, ...]
    embeddings: tuple[str, ...]
    unknown: tuple[str, ...]
    grammars: tuple[str, ...]

    @property
    def doubts(self) -> tuple[str, ...]:
        """PEFT keeps alpha outside the tensors: what is assumed where its configuration is not there, or where only the
        metadata have an alpha, as LightX2V's of MiniMax-H3.
        """
        count = len({patch.key for patch in self.patches if _is_unscaled(patch)})
        scaled, said = [patch for patch in self.patches if _takes_alpha(patch)], self.source.metadata.get("alpha")
        if said and scaled and all(patch.given_alpha is None for patch in scaled):
            return (f"its metadata say alpha {said!r:.20}, its tensors none: taken as alpha = rank; --alpha tells it",)
        assumed = f"{count} of its modules have no alpha, and no {SIDECAR} tells it: taken as alpha = rank"
        return (f"{assumed}; --alpha tells another",) if count else ()

    @property
    def modules(self) -> dict[str, Shape]:
        """Each module's name, and the shape that it was made for; () where that is not told."""
        return {patch.key: patch.told_shape or () for patch in reversed(self.patches)}


def _is_unscaled(patch: Patch) -> bool:
    """As PEFT saves it, with its wrapper; what others save without alpha has alpha = rank."""
    if patch.config.get("alpha") is not None or patch.given_alpha is not None or not _takes_alpha(patch):
        return False
    return any(PEFT_PREFIX in info.name for info in patch.roles.values())


def named(patch: Patch) -> TensorInfo | None:
    """A tensor of it with the adapter's name in its own, as a model's state dict has it and not PEFT's files."""
    return next((i for i in patch.roles.values() if NAMED.search(i.name) and PEFT_PREFIX not in i.name), None)


def _refuse_untold_alpha(patches: Iterable[Patch]) -> None:
    """Raises IncompatibleError for a model's own state dict, with the adapter's name in it: who published it set an
    alpha, and PEFT's configuration, which has it, was left behind.
    """
    for patch in patches:
        scaled = patch.config or patch.given_alpha is not None
        info = named(patch)
        if info and not scaled:
            raise IncompatibleError(
                f"{info.path}: {patch.key} has no alpha, and names such as {info.name} are of files whose alpha is not "
                "their rank",
                "give the alpha that its publisher states, by --alpha, as `alpha:` in a recipe, or in "
                f'{SIDECAR} beside it: {{"lora_alpha": 64}}',
            )


def check_alpha(name: str, alpha: float | None) -> None:
    """Raises OptionError where a given alpha is none that a publisher could state."""
    if alpha is not None and not 0 < alpha <= LARGEST:
        raise OptionError(f"alpha of {name}: {alpha:g} is not a finite number above 0", "give one such as 64")


def _takes_alpha(patch: Patch) -> bool:
    return not patch.roles.keys().isdisjoint(SCALED)


def _scaled(file: Path, patches: Iterable[Patch], alpha: float) -> list[Patch]:
    """The patches with the alpha that a person gives. Raises IncompatibleError where nothing lacks one."""
    patches = list(patches)
    scaled = [patch for patch in patches if _takes_alpha(patch)]
    if not scaled:
        raise IncompatibleError(f"{file}: nothing in it is scaled by an alpha", "omit it here")
    if own := next((patch for patch in scaled if patch.given_alpha is not None), None):
        raise IncompatibleError(
            f"{file}: {own.key} has an alpha of its own, {own.alpha:g}, and {alpha:g} is given", "omit it here"
        )
    return [replace(patch, given_alpha=alpha) if _takes_alpha(patch) else patch for patch in patches]


@dataclass(slots=True)
class _Module:
    roles: dict[str, TensorInfo]
    grammars: set[str]


def read_adapter(
    source: TensorSource, sidecar: Mapping[str, Any] | None = None, alpha: float | None = None
) -> AdapterFile:
    """Every tensor of ``source`` lands in a patch, in ``embeddings`` or in ``unknown``.

    ``sidecar``: the content of an ``adapter_config.json``; by default the metadata's or the file beside. ``alpha``: of
    a file that has none, as its publisher states it. Raises FormatError for a module that lacks one of the tensors it
    needs, IncompatibleError for an untold alpha, or one told twice.
    """
    modules, embeddings, unknown = _group(source)
    configs = read_configs(source, sidecar)
    modules = _with_initial(modules, any(map(changed_base, configs.values())))
    patches: list[Patch] = []
    for key, module in modules.items():
        if module.roles.keys() <= {"alpha", "scalar"}:
            unknown += [info.name for info in module.roles.values()]
        else:
            patches += _patches(key, module, configs)
    patches = _scaled(source.path, patches, alpha) if alpha is not None else patches
    _refuse_untold_alpha(patches)
    grammars = {grammar for module in modules.values() for grammar in module.grammars}
    return AdapterFile(source, tuple(patches), tuple(embeddings), tuple(unknown), tuple(sorted(grammars)))


def _with_initial(modules: Mapping[str, _Module], needed: bool) -> dict[str, _Module]:
    """Each module with the factors by which its training began, where these were taken out of the base.

    Raises FormatError where one has none.
    """
    own = {key: module for key, module in modules.items() if not key.startswith(INITIAL)}
    for key, module in own.items() if needed else ():
        began = modules.get(f"{INITIAL}{key}")
        for role in ("up", "down"):
            if role in module.roles:
                if began is None or role not in began.roles:
                    what = f"{module.roles[role].path}: {key} is not in the adapter as training began"
                    raise FormatError(what, "take that of the same training")
                module.roles[f"initial_{role}"] = began.roles[role]
    return own


def _group(source: TensorSource) -> tuple[dict[str, _Module], list[str], list[str]]:
    modules: dict[str, _Module] = {}
    embeddings: list[str] = []
    unknown: list[str] = []
    for info in source:
        name = _parse(source, info.name)
        if EMBEDDING.match(info.name):
            embeddings.append(info.name)
        elif name is None:
            unknown.append(info.name)
        else:
            module = modules.setdefault(name.key, _Module({}, set()))
            if name.role in module.roles:
                other = module.roles[name.role].name
                raise FormatError(
                    f"{source.path}: {other} and {info.name} say the same of {name.key}",
                    "the file holds several adapters: save each one to a file of its own",
                )
            module.roles[name.role] = info
            module.grammars |= {name.grammar} - {SHARED}
    return modules, embeddings, unknown


def _parse(source: TensorSource, name: str) -> Name | None:
    """A plain ``weight`` means nothing by itself; beside the flag ``on_input`` it is LyCORIS' (IA)³."""
    if name.startswith(INITIAL):
        found = parse_name(name.removeprefix(INITIAL))
        return found and replace(found, key=INITIAL + found.key)
    key = name.removesuffix(".weight")
    if key != name and f"{key}.on_input" in source.tensors:
        return Name("lycoris", key, "weight")
    return parse_name(name)


def _patches(key: str, module: _Module, configs: Mapping[str, Config]) -> Iterator[Patch]:
    """A module's weight patch, then its bias patches."""
    roles = dict(module.roles)
    _check_complete(key, roles)
    config = {} if "kohya" in module.grammars else _matching(module_config(configs, key), roles)
    stored = roles.pop("alpha", None)
    alpha = _single(stored) if stored else config.get("alpha")
    rank_stabilized = stored is None and bool(config.get("use_rslora"))

    def patch(parameter: str, roles: Mapping[str, TensorInfo], optional: bool = False) -> Patch:
        return Patch(key, parameter, roles, alpha, rank_stabilized, config, optional)

    if config.get("use_dora") and "up" in roles and "magnitude" not in roles:
        where = f"{roles['up'].path}: {key}"
        raise FormatError(f"{where}: a DoRA without its magnitude", "the file is incomplete: export it again")
    roles = _by_meaning(key, roles, config)
    biases = {role: roles.pop(role) for role in ("up_bias", "diff_b", "b_norm") if role in roles}
    if roles:
        yield patch("weight", roles)
    for role, info in biases.items():
        yield patch("bias", {role: info, "down": roles["down"]} if role == "up_bias" else {role: info})
    if "scale_out" in roles:
        yield patch("bias", roles, optional=True)


def _check_complete(key: str, roles: Mapping[str, TensorInfo]) -> None:
    for family in (family for adapter in algorithms().values() for family in adapter.together):
        missing = [role for role in family if role not in roles]
        if missing and len(missing) < len(family):
            present = [role for role in family if role in roles]
            raise FormatError(
                f"{roles[present[0]].path}: {key} has {', '.join(present)} without {', '.join(missing)}",
                "the file is incomplete: download or export it again",
            )


def _matching(config: Config, roles: Mapping[str, TensorInfo]) -> Config:
    """The configuration if it is one for this kind of adapter, else none: it may belong to another file."""
    wanted = {
        adapter.peft_type
        for adapter in algorithms().values()
        if not roles.keys().isdisjoint(adapter.names.get(PEFT, {}).values())
    }
    return config if config.get("peft_type", "LORA") in wanted else {}


def _single(info: TensorInfo) -> TensorInfo:
    if info.numel != 1:
        raise FormatError(f"{info.path}: {info.name} has {info.numel} elements, not one", "export the file again")
    return info


def _by_meaning(key: str, roles: dict[str, TensorInfo], config: Config) -> dict[str, TensorInfo]:
    """Where one name has two meanings, the role that says which."""
    match roles:
        case {"oft_blocks": blocks, **rest} if len(blocks.shape) == 4:
            return {"boft_blocks": blocks, **rest}
        case {"weight": vector, "on_input": flag, **rest}:
            return {"shift_in" if _single(flag).scalar() else "shift_out": vector, **rest}
        case {"ia3_l": vector, **rest}:
            return {"scale_in" if _scales_input(key, vector, config) else "scale_out": vector, **rest}
        case {"oft_R": info} if any(config.get(setting) is None for setting in OFT_SETTINGS):
            raise FormatError(
                f"{info.path}: {key}: PEFT's OFT needs {', '.join(OFT_SETTINGS)}, which are not in its tensors",
                f"put its {SIDECAR} beside the file",
            )
        case _:
            return roles


def _scales_input(key: str, vector: TensorInfo, config: Config) -> bool:
    """PEFT stores [out, 1] or [1, in] for a linear layer, [1, n, 1, 1] both ways for a convolution."""
    if len(vector.shape) == 2:
        return vector.shape[0] == 1
    if "feedforward_modules" not in config:
        raise FormatError(
            f"{vector.path}: {key}: ia3_l scales inputs or outputs, and only PEFT's configuration tells which",
            f"put its {SIDECAR} beside the file",
        )
    return scales_input(config, key)
