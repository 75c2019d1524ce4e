"""How an output's numbers are stored: a module here that defines ``ENCODING`` is the encoding of its name.

Each dtype of ``--dtype`` is one too, and each type that GGUF files are written in (``gguf:q8_0``). Third parties add
theirs by an entry point in the group ``lcmmerge.encodings``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import cast

from lcmmerge.registry import entries
from lcmmerge.tensors.dtypes import DTYPES, OUTPUT_DTYPES
from lcmmerge.tensors.encodings.base import MAIN, Companion, Encoding, Parts, Scales
from lcmmerge.tensors.encodings.ggml import GGML
from lcmmerge.tensors.encodings.plain import plain

__all__ = [
    "MAIN", "NONE", "UNQUANTISED", "Companion", "Encoding", "Parts", "Scales", "count_by_name", "encodings", "name_of",
    "plain",
]  # fmt: skip

UNQUANTISED = "none"
NONE = replace(
    plain(DTYPES["BF16"]), title="what is quantised in bfloat16, the rest as it is", takes=lambda name, shape: False
)


def encodings() -> dict[str, Encoding]:
    """Every encoding by name: the dtypes, GGUF's types, then what is registered, in name order. No torch is loaded."""
    registered = {name: cast(Encoding, entry) for name, entry in entries(__name__, "ENCODING").items()}
    dtypes = {name: plain(dtype) for name, dtype in OUTPUT_DTYPES.items()}
    return dtypes | {f"gguf:{name}": encoding for name, encoding in GGML.items()} | registered


def name_of(encoding: Encoding) -> str:
    """What it is registered by, or read as."""
    return encoding.read_only or next(name for name, each in encodings().items() if each == encoding)


def count_by_name(stored: Iterable[Encoding]) -> Counter[str]:
    """How many there are of each, by its dtype's name in headers or else its own, in the order in which they come."""
    names: Counter[str] = Counter()
    for encoding, count in Counter(stored).items():
        is_dtype = encoding == plain(encoding.dtype)
        names[encoding.dtype.name if is_dtype else name_of(encoding)] += count
    return names
