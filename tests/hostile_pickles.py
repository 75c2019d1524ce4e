"""Hostile pickles, as torch's archives hold them."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path
from random import Random
from typing import Any

from damage import RAN, Mutation, damaged


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(RAN),)


def pickle_that_runs(data: bytes, random: Random) -> bytes:
    """Code instead of tensors, in torch's archive, bare, or behind a harmless name."""
    code = pickle.dumps({"weight": _Bomb()}, protocol=random.choice((0, 2, 4)))
    system = random.choice((b"cos\nsystem\n(S'touch a-pickle-ran'\ntR.", b"cbuiltins\nexec\n(S'1/0'\ntR."))
    return _repacked(data, random.choice((code, system)), random) if random.random() < 0.8 else code


def pickle_bomb(data: bytes, random: Random) -> bytes:
    """A list of itself, doubled many times; or nested beyond any stack; or numbers of a gigabyte."""
    doubling = b"\x80\x02]q\x00" + b"".join(b"(h\x00h\x00eh\x00" for _ in range(30)) + b"."
    nested = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
    long = b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x."
    text = b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x."
    return _repacked(data, random.choice((doubling, nested, long, text)), random)


def pickle_program(data: bytes, random: Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        return _repacked(data, damaged(archive.read(name), random), random)


def pickle_archive(data: bytes, random: Random) -> bytes:
    """Records dropped, doubled, renamed, or compressed: a megabyte of zeros in a kilobyte."""
    old, new = io.BytesIO(data), io.BytesIO()
    with zipfile.ZipFile(old) as archive, zipfile.ZipFile(new, "w") as packed:
        chosen = random.choice(archive.namelist())
        for name in archive.namelist():
            content = archive.read(name)
            match random.randrange(4) if name == chosen else 9:
                case 0:
                    continue
                case 1:
                    packed.writestr(f"../{name}", content)
                case 2:
                    packed.writestr(name, bytes(10**7), zipfile.ZIP_DEFLATED)
                case 3:
                    packed.writestr(name, content[: len(content) // 2])
                case _:
                    packed.writestr(name, content)
    return new.getvalue()


def _repacked(data: bytes, program: bytes, random: Random) -> bytes:
    old, new = io.BytesIO(data), io.BytesIO()
    with zipfile.ZipFile(old) as archive, zipfile.ZipFile(new, "w") as packed:
        for name in archive.namelist():
            packed.writestr(name, program if name.endswith("data.pkl") else archive.read(name))
    return new.getvalue()


PICKLES: dict[str, Mutation] = {
    "code": pickle_that_runs, "bomb": pickle_bomb, "program": pickle_program, "archive": pickle_archive,
}  # fmt: skip
