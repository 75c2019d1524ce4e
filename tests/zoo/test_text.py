import torch
from embedded.scenes import WORDS, caption
from embedded.text import LENGTH, embedded, text_encoder, tokenizer


def test_every_word_is_one_token() -> None:
    tokens = tokenizer()
    ids = [tokens(word).input_ids for word in WORDS]
    assert all(len(row) == 3 for row in ids)
    assert len({row[1] for row in ids}) == len(WORDS)
    assert tokens.decode(tokens("a seven").input_ids, skip_special_tokens=True) == "a seven"


def test_captions_stay_apart_through_a_random_encoder() -> None:
    tokens = tokenizer()
    captions = [*(caption(digit) for digit in range(10)), ""]
    states = embedded(tokens, text_encoder(len(tokens)), captions)
    assert states.shape[:2] == (11, LENGTH)
    apart = torch.cdist(states.flatten(1), states.flatten(1)) + torch.eye(11) * 1e9
    assert apart.min() > 0.1 * states.flatten(1).norm(dim=1).mean()
