"""The small files of a diffusers folder, which no single file holds: component configs, scheduler, tokenizers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any

from lcmmerge.accelerators import Sampling
from lcmmerge.archs import Model
from lcmmerge.errors import IncompatibleError, NotFoundError, ShapeMismatchError
from lcmmerge.refs.files import inside
from lcmmerge.refs.tokenizers import complete
from lcmmerge.refs.weights import MODEL_INDEX, SCHEDULER, local_tree, read_json, small_files

QUANTISATION, BITSANDBYTES = "quantization_config", "bitsandbytes"
OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")
# Of these parts, which have no weights, one file at least.
NEEDED = {"scheduler": ("scheduler_config.json",)} | dict.fromkeys(
    ("tokenizer", "tokenizer_2"), ("tokenizer.json", "vocab.json")
)
CURE = "name another with --config-from"
DEFAULTS = {"use_linear_projection": False, "mid_block_type": "UNetMidBlock2DCrossAttn"}  # older configs lack them


def check_configs(configs: Path, base: Model) -> None:
    """Refuse configs of another model now, not when somebody loads the result.

    Raises NotFoundError, FormatError, IncompatibleError.
    """
    if not (configs / MODEL_INDEX).is_file():
        raise NotFoundError(f"{configs}: has no model_index.json, so it is not a diffusers folder", CURE)
    for component in base.components:
        if not (configs / component / "config.json").is_file():
            raise NotFoundError(f"{configs}: has no {component}/config.json, which the model needs", CURE)
    if (configs / SCHEDULER).is_file():
        scheduler_config(configs, base)
    denoiser = base.arch.denoiser
    config = read_json(local_tree(configs), f"{denoiser.name}/config.json", CURE)
    for key, found in denoiser.config(base.shapes).items():
        described = config.get(key, DEFAULTS.get(key))
        if described != found:
            raise ShapeMismatchError(
                f"{configs}: describes another {denoiser.kind}: its {key} is {described}, the checkpoint's {found}",
                CURE,
            )


def scheduler_config(configs: Path, model: Model) -> dict[str, Any]:
    """Of a pipeline's folder, for this model: what it predicts is told by the model before it is by the folder.

    Raises NotFoundError, FormatError, and IncompatibleError for a scheduler that cannot draw it.
    """
    config = read_json(local_tree(configs), SCHEDULER)
    if not model.prediction.fits(config):
        raise IncompatibleError(
            f"{model.source.path}: {model.prediction}; the scheduler of {configs} is {config.get('_class_name')}", CURE
        )
    return model.prediction.scheduler(config)


def copy_configs(
    configs: Path, target: Path, components: set[str], model: Model, lent: tuple[Path, Iterable[str]] | None = None
) -> None:
    """Copy the small files of a model's parts; ``components`` are those whose weights the target holds.

    ``lent``: a folder, and the components whose small files come from there where ``configs`` has none.

    A CLIP tokenizer gets the files that older programs read, too. What else lies in the folder ``configs``, such as an
    export's manifest, is not the target's. An optional component without weights (the safety checker) is struck from
    ``model_index.json``, as diffusers does. That weights are bitsandbytes', which no target's are, is struck too.

    Raises NotFoundError for a part that the index names and that has no file, FormatError for a link out of the folder.
    """
    index = read_json(local_tree(configs), MODEL_INDEX, CURE)
    before = dict(index)
    _copy(configs, index.keys() - ({*OPTIONAL} - components), target)
    shutil.copyfile(inside(configs, MODEL_INDEX, cached=True), target / MODEL_INDEX)
    if lent:
        _lend(*lent, target, index)
    for part in components:
        _strike_quantisation(target / part / "config.json")
    for part, names in NEEDED.items():
        promised = part in index and index[part] != [None, None]
        if promised and not any((target / part / name).is_file() for name in names):
            raise NotFoundError(f"{configs}: has no {part}/{names[0]}, which its model_index.json promises", CURE)
    if (target / SCHEDULER).is_file():
        told = scheduler_config(configs, model)
        if told != read_json(local_tree(target), SCHEDULER):
            _write_json(target / SCHEDULER, told)
            index |= {"scheduler": ["diffusers", told["_class_name"]]}
    absent = [name for name in OPTIONAL if name in index and name not in components]
    index |= {name: [None, None] for name in absent}
    if "requires_safety_checker" in index and "safety_checker" in absent:
        index["requires_safety_checker"] = False
    if index != before:
        _write_json(target / MODEL_INDEX, index)
    complete(target)


def _lend(configs: Path, components: Iterable[str], target: Path, index: dict[str, Any]) -> None:
    """Give ``target`` the components' configs and the text encoders' tokenizers, and ``index`` their lines.

    Raises NotFoundError where ``configs`` has no config of one, FormatError.
    """
    tree = local_tree(configs)
    theirs = read_json(tree, MODEL_INDEX, CURE)
    needed = dict.fromkeys(components, "config.json")
    needed |= {
        part.replace("text_encoder", "tokenizer"): "tokenizer_config.json"
        for part in needed
        if part.startswith("text_encoder")
    }
    for part, config in needed.items():
        if part in theirs and index.get(part) in (None, [None, None]):
            index[part] = theirs[part]
        if (target / part / config).is_file():
            continue
        if f"{part}/{config}" not in tree.names:
            raise NotFoundError(f"{configs}: has no {part}/{config}, which the model needs", CURE)
        _copy(configs, {part}, target)


def _copy(configs: Path, parts: Set[str], target: Path) -> None:
    """The small files of a pipeline's parts."""
    for file in small_files(local_tree(configs)):
        if Path(file).parent.name in parts:
            (target / file).parent.mkdir(exist_ok=True)
            shutil.copyfile(inside(configs, file, cached=True), target / file)


def _strike_quantisation(path: Path) -> None:
    """Older configs say of 4 or 8 bits only, and those are bitsandbytes'."""
    config = read_json(local_tree(path.parent), path.name) if path.is_file() else {}
    told = config.get(QUANTISATION)
    if isinstance(told, dict) and told.get("quant_method", BITSANDBYTES) == BITSANDBYTES:
        _write_json(path, {key: value for key, value in config.items() if key != QUANTISATION})


def set_scheduler(folder: Path, sampling: Sampling) -> None:
    """Make the scheduler that ``sampling`` names a pipeline's, with the noise of the one that it has.

    Where two experts change over is the pipeline's to know.
    """
    tree = local_tree(folder)
    if SCHEDULER in tree.names:
        _write_json(folder / SCHEDULER, sampling.config(read_json(tree, SCHEDULER, CURE)))
        index = read_json(tree, MODEL_INDEX, CURE) | {"scheduler": ["diffusers", sampling.scheduler]}
        index |= {"boundary_ratio": sampling.boundary} if sampling.boundary else {}
        _write_json(folder / MODEL_INDEX, index)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
