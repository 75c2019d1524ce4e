"""What spoils a file of any kind, as an enemy, a broken disk or a careless program would; seeded, bytes to bytes."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random], bytes]
RAN = "a-pickle-ran"  # the file that is made by code which is executed
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**40, 1e308, float("nan"), float("inf"), 0.5, "",
    "\0", "x" * 70_000, "\u202e\x1b[31mred", "a\nError: b", "../../../etc/passwd", "/etc/passwd", "C:\\models\\base",
    "{{{{", "%s%n", "é\u0301😀", [], {}, [[]], [None], {"": {}}, ["a"] * 999, {"a": ["b"]}, [-1, -1], [2**62] * 3,
)  # fmt: skip


def damaged(data: bytes, random: Random) -> bytes:
    """A few bytes changed, cut out, doubled, zeroed or put in; often near the beginning, where the headers are."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        room = len(changed) if random.random() < 0.4 else min(len(changed), random.choice((16, 200, 4000)))
        start, length = random.randrange(room + 1), random.choice((1, 1, 4, 64, 4096))
        match random.randrange(6):
            case 0:
                changed[start : start + length] = random.randbytes(min(length, len(changed) - start))
            case 1:
                del changed[start : start + length]
            case 2:
                changed[start:start] = changed[start : start + length]
            case 3:
                changed[start : start + length] = bytes(min(length, len(changed) - start))
            case 4:
                changed[start:start] = random.randbytes(length)
            case 5 if start < len(changed):
                changed[start] ^= 1 << random.randrange(8)
    return bytes(changed)


def truncated(data: bytes, random: Random) -> bytes:
    return data[: random.choice((0, 1, 7, 8, 9, random.randrange(len(data) + 1), max(0, len(data) - 1)))]


def noise(data: bytes, random: Random) -> bytes:
    return random.randbytes(random.choice((1, 8, 100, 5000)))


def altered(value: Any, random: Random) -> Any:
    """A copy with one node somewhere in it replaced, dropped, renamed or doubled."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(sorted(value))
        match random.randrange(8):
            case 0:
                return {name: item for name, item in value.items() if name != key}
            case 1:
                return {**value, random.choice(("", "\0", "__class__", "../x", "a\nb", "unknown")): value[key]}
            case _:
                return {**value, key: altered(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.8:
        index = random.randrange(len(value))
        return [*value[:index], altered(value[index], random), *value[index + 1 :]]
    return random.choice(VALUES)


ANY: dict[str, Mutation] = {"bytes": damaged, "truncated": truncated, "noise": noise}
