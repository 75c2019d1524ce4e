"""A CLIP tokenizer's files for transformers 4 and C++ programs; transformers 5 saves tokenizer.json alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcmmerge.errors import FormatError
from lcmmerge.refs.files import read_text

MERGES_HEAD = "#version: 0.2"


def older_files(text: str, name: str) -> dict[str, str]:
    """``vocab.json``, ``merges.txt`` and what is beyond the vocabulary, such as a textual inversion's tokens.

    ``text``: of the tokenizer.json called ``name``. Raises FormatError for no byte-pair encoding.
    """
    try:
        content: dict[str, Any] = json.loads(text)
        vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
        added = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
        ordered = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise FormatError(f"{name}: is not a byte-pair encoding", "name another with --config-from") from None
    beyond = {word: number for word, number in added.items() if word not in vocabulary}
    return {
        "vocab.json": as_text(ordered),
        "merges.txt": "\n".join([MERGES_HEAD, *pairs]) + "\n",
        **({"added_tokens.json": as_text(beyond)} if beyond else {}),
    }


def complete(folder: Path) -> None:
    """Give each CLIP tokenizer of a pipeline's folder its older files, where it lacks them. Raises FormatError."""
    for whole in sorted(folder.glob("tokenizer*/tokenizer.json")):
        if not (whole.parent / "vocab.json").exists():
            for name, text in older_files(read_text(whole), f"{whole.parent.name}/{whole.name}").items():
                (whole.parent / name).write_text(text, "utf-8")


def as_text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
