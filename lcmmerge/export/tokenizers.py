"""A CLIP tokenizer in every form that clients read.

transformers 5 saves ``tokenizer.json`` alone, older ones and C++ tokenizers want ``vocab.json`` and ``merges.txt``.
``tokenizer_config.json`` is written anew, with the keys that both know: transformers 4 refuses some of the newer ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lcmmerge.errors import NotFoundError
from lcmmerge.graphs.cache import once
from lcmmerge.merge.configs import CURE
from lcmmerge.refs.files import inside, read_text
from lcmmerge.refs.tokenizers import as_text, older_files
from lcmmerge.tensors.digest import sha256_of

SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def write_tokenizer(source: Path, target: Path, cache: Path | None = None) -> None:
    """The tokenizer in the folder ``source``, into the new folder ``target``; ``cache``: of ``graphs.cache``.

    Raises NotFoundError, FormatError.
    """
    names = sorted(path.name for path in source.glob("*") if path.is_file())
    # With the folder that it is in: a link out of the pipeline's would be published.
    files = [inside(source.parent, f"{source.name}/{name}", cached=True) for name in names]
    facts = {path.name: sha256_of([path]) for path in files}
    target.mkdir()
    for name, text in once("tokenizer", facts, lambda: _texts(source), cache).items():
        (target / name).write_text(text, "utf-8")


def _texts(source: Path) -> dict[str, str]:
    """The new files, by name."""
    tokenizer = _load(source)
    whole = source / "tokenizer.json"
    text = read_text(whole) if whole.is_file() else str(tokenizer.backend_tokenizer.to_str(pretty=True))
    special = {name: str(value) for name in SPECIAL if (value := getattr(tokenizer, name, None)) is not None}
    return {
        "tokenizer.json": text,
        **older_files(text, str(whole)),
        "special_tokens_map.json": as_text(special),
        "tokenizer_config.json": as_text(_config(tokenizer, special)),
    }


def _load(source: Path) -> Any:
    from transformers import CLIPTokenizerFast

    try:
        return CLIPTokenizerFast.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except Exception:  # transformers checks little of what it reads: a damaged file can end in anything
        raise NotFoundError(f"{source}: holds no CLIP tokenizer", CURE) from None


def _config(tokenizer: Any, special: dict[str, str]) -> dict[str, Any]:
    return {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": True,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": tokenizer.model_max_length,
        "tokenizer_class": "CLIPTokenizer",
        **special,
    }
