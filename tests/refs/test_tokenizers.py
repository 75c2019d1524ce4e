from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fusing import Files, fuse, load
from pico import pico
from tokenizers import Tokenizer
from tokenizers.models import BPE

from lcmmerge.errors import FormatError
from lcmmerge.refs.tokenizers import complete, older_files
from lcmmerge.tensors import open_source

TEXTS = ["a red fox in the snow", "in", "ünïcode & 7 numbers"]


def test_the_older_files_cut_texts_alike(tmp_path: Path) -> None:
    """Oracle: huggingface's tokenizers reads the two files as it reads the one."""
    pico("sd1").pipeline.tokenizer.save_pretrained(tmp_path / "tokenizer")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "tokenizer" / name).unlink(missing_ok=True)
    complete(tmp_path)
    whole = Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    expected = [whole.encode(text).ids for text in TEXTS]
    found = [str(tmp_path / "tokenizer" / name) for name in ("vocab.json", "merges.txt")]
    kept = json.loads(whole.to_str())["model"]
    whole.model = BPE.from_file(
        *found, unk_token=kept["unk_token"], end_of_word_suffix=kept["end_of_word_suffix"],
        continuing_subword_prefix=kept["continuing_subword_prefix"], fuse_unk=kept["fuse_unk"],
    )  # fmt: skip
    assert [whole.encode(text).ids for text in TEXTS] == expected


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("no JSON")
    (tmp_path / "tokenizer" / "vocab.json").write_text("its own")
    complete(tmp_path)
    assert (tmp_path / "tokenizer" / "vocab.json").read_text() == "its own"
    (tmp_path / "tokenizer" / "vocab.json").unlink()
    with pytest.raises(FormatError, match=r"tokenizer/tokenizer\.json: is not a byte-pair encoding"):
        complete(tmp_path)


def test_words_beyond_the_vocabulary_and_older_merges() -> None:
    content = {
        "model": {"vocab": {"b": 1, "a": 0, "ab": 2}, "merges": ["a b"]},
        "added_tokens": [{"content": "<cat>", "id": 3}, {"content": "ab", "id": 2}],
    }
    found = older_files(json.dumps(content), "tokenizer.json")
    assert list(json.loads(found["vocab.json"])) == ["a", "b", "ab"]
    assert found["merges.txt"] == "#version: 0.2\na b\n"
    assert json.loads(found["added_tokens.json"]) == {"<cat>": 3}


def test_a_folder_has_the_names_that_transformers_4_reads(files: Callable[[str], Files], tmp_path: Path) -> None:
    fuse(files("sd1").folder(), tmp_path / "fused", lcm=files("sd1").lcm)
    names = load(tmp_path / "fused" / "text_encoder")
    assert names
    assert all(name.startswith("text_model.") for name in names)
    assert {"vocab.json", "merges.txt"} <= {path.name for path in (tmp_path / "fused" / "tokenizer").iterdir()}
    stored = open_source(files("sd1").folder()).tensors
    assert any(name.startswith("text_encoder.embeddings.") for name in stored)  # as transformers 5 saved it
