"""Hostile files of every kind: ``spoil(kind, path, random)`` rewrites a sound one and says what it did."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random

from damage import ANY, Mutation
from hostile_databases import DATABASES
from hostile_gguf import GGUF
from hostile_graphs import GRAPHS
from hostile_pickles import PICKLES
from hostile_pictures import PICTURES
from hostile_quantised import QUANTISED
from hostile_tensors import JSON, TENSORS
from hostile_text import TEXT, YAML

KINDS: Mapping[str, Mapping[str, Mutation]] = {
    "gguf": GGUF,
    "json": JSON,
    "onnx": GRAPHS,
    "pickle": PICKLES,
    "png": PICTURES,
    "quantised": TENSORS | QUANTISED,
    "safetensors": TENSORS,
    "sqlite": DATABASES,
    "text": TEXT,
    "yaml": YAML,
}


def spoil(kind: str, path: Path, random: Random) -> str:
    """``path`` is rewritten by one of the kind's mutations, or one that any file may suffer; its name."""
    mutations = ANY | KINDS[kind]
    name = random.choice(sorted(mutations))
    path.write_bytes(mutations[name](path.read_bytes(), random))
    return name
