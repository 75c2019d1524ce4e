"""The small files of a pipeline's parts, from another folder where the pipeline's own has none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lcmmerge.errors import NotFoundError
from lcmmerge.refs.files import inside
from lcmmerge.refs.weights import MODEL_INDEX, local_tree, read_json, small_files

CURE = "name another with --config-from"


def lend(configs: Path, components: Iterable[str], target: Path) -> dict[str, Any]:
    """Give the folder ``target`` the components' configs, the text encoders' tokenizers, and their lines in its index,
    which is returned.

    Raises NotFoundError where ``configs`` has no config of one, FormatError.
    """
    tree, index = local_tree(configs), read_json(local_tree(target), MODEL_INDEX, CURE)
    theirs = read_json(tree, MODEL_INDEX, CURE)
    needed = [(part, "config.json") for part in components]
    needed += [
        (part.replace("text_encoder", "tokenizer"), "tokenizer_config.json")
        for part, _ in needed
        if part.startswith("text_encoder")
    ]
    for part, config in needed:
        if part in theirs and index.get(part) in (None, [None, None]):
            index[part] = theirs[part]
        if (target / part / config).is_file():
            continue
        if f"{part}/{config}" not in tree.names:
            raise NotFoundError(f"{configs}: has no {part}/{config}, which the model needs", CURE)
        (target / part).mkdir(exist_ok=True)
        for file in small_files(tree):
            if file.startswith(f"{part}/"):
                shutil.copyfile(inside(configs, file, cached=True), target / file)
    (target / MODEL_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return index
