"""What PEFT keeps outside the tensors: alpha, rank, rsLoRA, and the settings of OFT and (IA)³.

It stands in the safetensors metadata under ``lora_adapter_metadata`` (diffusers; JSON, each field prefixed by
its component where there are several: ``unet.lora_alpha``), or in PEFT's ``adapter_config.json`` beside the
file.
Fields: https://huggingface.co/docs/peft/package_reference/lora
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lcmmerge.errors import FormatError, IncompatibleError
from lcmmerge.refs.files import parse_object
from lcmmerge.refs.weights import INITIAL, SIDECAR, local_tree, read_json
from lcmmerge.tensors import TensorSource

METADATA_KEY = "lora_adapter_metadata"

Config = Mapping[str, Any]

NUMBER = (int, float)
FIELDS: dict[str, type | tuple[type, ...]] = {
    "peft_type": str,
    "r": int,
    "lora_alpha": NUMBER,
    "alpha": NUMBER,
    "rank_pattern": dict,
    "alpha_pattern": dict,
    "feedforward_modules": (str, list),
    "eps": NUMBER,
    "num_cayley_neumann_terms": int,
}

TEXT = re.compile("text_encoder|text_conditioner|lora_te")
COMPONENT = re.compile(rf"{TEXT.pattern}|(unet|transformer)(_\d+)?\.")

# An adapter that began so changed its base's weights as well, so that its product is no difference to them.
CHANGED_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
# With these, the tensors mean something else than their names say.
OTHER_MEANINGS = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "monteclora_config",
    "target_parameters", "use_bdlora", "use_qalora",
)  # fmt: skip


def read_configs(source: TensorSource, sidecar: Config | None) -> dict[str, Config]:
    """Component → configuration; "" for fields without a prefix. ``sidecar`` goes before both places.

    Raises IncompatibleError for an adapter that changed its base, unless how it began is in the source.
    """
    configs = _read_configs(source, sidecar)
    initial = any(name.startswith(INITIAL) for name in source.tensors)
    for config in configs.values():
        _refuse_changed_base(config, str(source.path), initial=initial)
    return configs


def _read_configs(source: TensorSource, sidecar: Config | None) -> dict[str, Config]:
    if sidecar is not None:
        return {"": _checked(sidecar, SIDECAR)}
    if METADATA_KEY in source.metadata:
        where = f"{source.path}: {METADATA_KEY}"
        fields = _json(source.metadata[METADATA_KEY], where)
        return {name: _checked(config, where) for name, config in _by_component(fields).items()}
    path = (source.path if source.path.is_dir() else source.path.parent) / SIDECAR
    return {"": _checked(read_json(local_tree(path), SIDECAR), str(path))} if path.is_file() else {}


def _json(text: str, where: str) -> Config:
    try:
        return parse_object(text.encode())
    except ValueError:
        raise FormatError(f"{where} is not a JSON object", "take it again from where it came") from None


def _by_component(fields: Config) -> dict[str, Config]:
    configs: dict[str, dict[str, Any]] = {}
    for name, value in fields.items():
        component, _, field = name.rpartition(".")
        configs.setdefault(component, {})[field] = value
    return dict(configs)


def _checked(config: Config, where: str) -> Config:
    for field, kind in FIELDS.items():
        value = config.get(field)
        numbers = value.values() if isinstance(value, dict) else ()
        sound = isinstance(value, kind) and all(isinstance(number, NUMBER) for number in numbers)
        if value is not None and not sound:
            raise FormatError(f"{where}: {field} is {value!r}", "take it again from where it came")
    _refuse_other_meanings(config, where)
    return config


def _refuse_other_meanings(config: Config, where: str) -> None:
    """Raises IncompatibleError where W + scale·BA is not what PEFT computes."""
    if field := next((field for field in OTHER_MEANINGS if config.get(field)), None):
        raise IncompatibleError(f"{where}: {field} is not supported", "merge it with PEFT, and take the merged model")


def changed_base(config: Config) -> bool:
    return str(config.get("init_lora_weights")).startswith(CHANGED_BASE)


def _refuse_changed_base(config: Config, where: str, *, initial: bool) -> None:
    """LoftQ's base was quantised, so that its first factors are not all that it lost."""
    began = str(config.get("init_lora_weights"))
    if began.startswith("loftq"):
        what = f"{where}: init_lora_weights is {began!r}, whose base was quantised"
        raise IncompatibleError(what, "merge it with PEFT, and take the merged model")
    if changed_base(config) and not initial:
        raise IncompatibleError(
            f"{where}: init_lora_weights is {began!r}, with which training changed the base's weights as well",
            "save it by PEFT's save_pretrained with path_initial_model_for_weight_conversion, or put the adapter as "
            f"training began into its folder, as {began.partition('_')[0]}_init, and name the folder",
        )


def module_config(configs: Mapping[str, Config], key: str) -> Config:
    """The configuration of one module, ``r`` and ``alpha`` resolved through the patterns; or an empty one."""
    component, _, module = key.partition(".")
    if component in configs:
        config = configs[component]
    else:
        config, module = configs.get("") or _of_denoiser(configs, key), key
    rank = _by_pattern(config.get("rank_pattern"), module, config.get("r"))
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", config.get("alpha")))
    return {**config, "r": rank, "alpha": alpha} if config else {}


def _of_denoiser(configs: Mapping[str, Config], key: str) -> Config:
    """The only one that is no text encoder's, for a name that tells of no component: metadata stay as they are where
    ComfyUI's or a single file's names took the place of diffusers'.
    """
    of_denoisers = [config for name, config in configs.items() if not TEXT.match(name)]
    return of_denoisers[0] if len(of_denoisers) == 1 and not COMPONENT.match(key) else {}


def _by_pattern(patterns: Config | None, module: str, default: Any) -> Any:
    """PEFT's rule: the first regex that matches the module's name from a dot to its end."""
    for pattern, value in (patterns or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise FormatError(f"the pattern {pattern!r} is not a regex: {error}", f"mend {SIDECAR}") from None
    return default


def scales_input(config: Config, key: str) -> bool:
    """Is the module one whose inputs (IA)³ scales? By the config's regex, or list of name endings."""
    modules = config.get("feedforward_modules") or []
    if isinstance(modules, str):
        return re.fullmatch(modules, key) is not None
    return any(key == name or key.endswith(f".{name}") for name in modules)
