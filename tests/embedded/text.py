"""The text side: a CLIP tokenizer of a few whole words, and a CLIP text encoder that stays as it was drawn.

With a dozen words there is nothing to learn: random weights already give every word its own vector, and the U-Net's
cross-attention learns to read them.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from embedded.scenes import WORDS

HIDDEN, LAYERS, HEADS = 48, 12, 2
LENGTH = 8  # tokens, with the two special ones


def tokenizer() -> CLIPTokenizer:
    """Byte-pair rules that build each known word from its left; any other text falls to letters."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    rules: dict[str, None] = {}
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    for word in WORDS:
        for end in range(2, len(word) + 1):
            mark = "</w>" if end == len(word) else ""
            rules[f"{word[: end - 1]} {word[end - 1]}{mark}"] = None
            words.append(word[:end] + mark)
    words = [*dict.fromkeys(words), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary.write_text(json.dumps({word: number for number, word in enumerate(words)}), "utf-8")
        merges.write_text("#version: 0.2\n" + "".join(f"{rule}\n" for rule in rules), "utf-8")
        return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=LENGTH)


def text_encoder(size: int) -> CLIPTextModel:
    """Random and frozen; embeddings wider than CLIP's initial ones, so that words stay apart through the layers."""
    config = CLIPTextConfig(
        vocab_size=size,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        projection_dim=HIDDEN,
        max_position_embeddings=77,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )
    torch.manual_seed(0)
    encoder = CLIPTextModel(config)
    encoder.get_input_embeddings().weight.data.normal_(0, 0.3)
    return encoder.eval().requires_grad_(False)


@torch.no_grad()
def embedded(tokens: CLIPTokenizer, encoder: CLIPTextModel, captions: list[str]) -> Tensor:
    """[n, LENGTH, HIDDEN]."""
    ids = tokens(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids
    states: Tensor = encoder(ids)[0]
    return states
