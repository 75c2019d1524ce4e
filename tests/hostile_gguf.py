"""Hostile GGUF: a header rewritten field by field, as an enemy or a careless program would."""

from __future__ import annotations

import struct
from random import Random
from typing import Any

from damage import Mutation

LENGTHS = (0, 1, 2, 31, 33, 255, 2**16, 2**31, 2**32, 2**61, 2**63 - 1, 2**63, 2**64 - 1)
NAMES = (b"", b"\xff\xfe", b"w", b"\x1b[31m", b"n" * 500, b"general.alignment", b"split.count", b"general.architecture")

Field = tuple[str, Any]  # a struct format and its value; "s" is bytes with their length before them


def text(content: bytes) -> list[Field]:
    return [("Q", len(content)), ("s", content)]


def fields(tensors: int = 3) -> list[Field]:
    """A small file's header: one text, one number, one array, and tensors of Q8_0."""
    found: list[Field] = [("s", b"GGUF"), ("I", 3), ("Q", tensors), ("Q", 3)]
    found += [*text(b"general.architecture"), ("I", 8), *text(b"flux")]
    found += [*text(b"general.alignment"), ("I", 4), ("I", 32)]
    found += [*text(b"comfy.gguf.orig_shape.w0"), ("I", 9), ("I", 5), ("Q", 3), ("i", 2), ("i", 4), ("i", 8)]
    for number in range(tensors):
        found += [*text(b"w%d" % number), ("I", 2), ("Q", 32), ("Q", 2), ("I", 8), ("Q", 96 * number)]
    return found


def packed(header: list[Field], data: int = 96 * 3) -> bytes:
    parts = (value if kind == "s" else struct.pack(f"<{kind}", value) for kind, value in header)
    joined = b"".join(parts)
    return joined + bytes(-len(joined) % 32) + bytes(data)


def changed(header: list[Field], random: Random) -> None:
    """One field has another value."""
    place = random.randrange(len(header))
    kind, value = header[place]
    if kind == "s":
        header[place] = (kind, random.choice((*NAMES, value[:-1], value + b"w")))
        if random.random() < 0.7 and place and header[place - 1][0] == "Q":
            header[place - 1] = ("Q", len(header[place][1]))
    else:
        size = 8 * struct.calcsize(f"<{kind}") - (kind == "i")
        number = random.choice((*LENGTHS, value + 1, value - 1, value * 2, random.randrange(16)))
        header[place] = (kind, number % 2**size)


def gguf_field(data: bytes, random: Random) -> bytes:
    header = fields()
    for _ in range(random.choice((1, 1, 2, 4))):
        changed(header, random)
    return packed(header)


def gguf_order(data: bytes, random: Random) -> bytes:
    """A field too few, one twice, or two that changed places."""
    header = fields()
    one, other = random.randrange(len(header)), random.randrange(len(header))
    match random.randrange(3):
        case 0:
            del header[one]
        case 1:
            header.insert(other, header[one])
        case 2:
            header[one], header[other] = header[other], header[one]
    return packed(header)


def gguf_nested(data: bytes, random: Random) -> bytes:
    depth = random.choice((2, 100, 50_000))
    header: list[Field] = [("s", b"GGUF"), ("I", 3), ("Q", 0), ("Q", 1), *text(b"a"), ("I", 9)]
    header += [("I", 9), ("Q", random.choice((1, 2, 2**40)))] * depth
    return packed([*header, ("I", 0), ("Q", 0)], 0)


def gguf_many(data: bytes, random: Random) -> bytes:
    """Counts that the file could hold, of things that it does not."""
    tensors, keys = random.choice(((2000, 0), (0, 2000), (2**40, 3), (3, 2**60)))
    header: list[Field] = [("s", b"GGUF"), ("I", 3), ("Q", tensors), ("Q", keys)]
    return packed(header, 60_000)


GGUF: dict[str, Mutation] = {"field": gguf_field, "order": gguf_order, "nested": gguf_nested, "many": gguf_many}
