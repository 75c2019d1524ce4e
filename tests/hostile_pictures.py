"""Hostile PNG: sizes, chunks, text that unpacks to much, and sound pictures of other kinds."""

from __future__ import annotations

import io
import struct
import zlib
from random import Random

from damage import Mutation
from PIL import Image

HEAD = 33  # bytes: the signature and the chunk IHDR
SIDES = (0, 1, 30_000, 65_535, 10**6, 2**31 - 1, 2**31, 2**32 - 1)


def size(data: bytes, random: Random) -> bytes:
    """Sides that pixels do not have, or that no memory would."""
    width, height = random.choice(SIDES), random.choice(SIDES)
    pixels = zlib.compress(bytes(10**6)) if random.random() < 0.5 else b""
    return _png(struct.pack(">II", width, height) + data[24:29], pixels)


def long(data: bytes, random: Random) -> bytes:
    """Sound, and a line of pixels."""
    sides = (1, random.choice((101, 5000, 65_000)))
    return _drawn(Image.new(random.choice(("RGB", "L")), random.choice((sides, sides[::-1]))), "png")


def kind(data: bytes, random: Random) -> bytes:
    """Depth, colour type, compression, filter and interlacing of a picture that has others."""
    header = bytes([random.choice((1, 2, 4, 8, 16, 7, 0)), random.randrange(8), *random.choices((0, 0, 0, 1, 9), k=3)])
    return _png(data[16:24] + header, zlib.decompress(_pixels(data)), random.choice((b"", _chunk(b"PLTE", b"\0\0\0"))))


def text(data: bytes, random: Random) -> bytes:
    """A text that unpacks to 100 MB, thousands of texts, or what is no text."""
    match random.randrange(5):
        case 0:
            chunk = _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))
        case 1:
            chunk = _chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(b"x" * 10**8))
        case 2:
            chunk = _chunk(b"tEXt", b"parameters\0" + b"x" * random.choice((0, 10**6))) * random.choice((1, 20_000))
        case 3:
            chunk = _chunk(random.choice((b"tEXt", b"zTXt", b"iTXt")), random.randbytes(random.choice((0, 1, 64))))
        case _:
            chunk = _chunk(b"iTXt", b"lcmmerge\0\0\0\0\0" + b"[" * 10**5)
    return data[:HEAD] + chunk + data[HEAD:]


def chunk(data: bytes, random: Random) -> bytes:
    """A chunk of a wild length, with a wrong sum, of another kind, or none."""
    match random.randrange(6):
        case 0:
            length = random.choice((2**31, 2**32 - 1, 10**9))
            return data[:HEAD] + struct.pack(">I", length) + b"IDAT" + data[41:]
        case 1:
            kinds = (b"iCCP", b"gAMA", b"tRNS", b"PLTE", b"cHRM", b"pHYs", b"acTL", b"fcTL", b"IHDR", b"\0\0\0\0")
            found = _chunk(random.choice(kinds), random.randbytes(random.choice((0, 1, 26, 64))))
            return data[:HEAD] + found + data[HEAD:]
        case 2:
            return data[:HEAD] + _chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)) + data[HEAD:]  # frames of an APNG
        case 3:
            return data[:HEAD] + _chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8))) + data[HEAD:]
        case 4:
            return data[: HEAD - 4] + random.randbytes(4) + data[HEAD:]
        case _:
            return data[:HEAD] + data[-12:]


def exif(data: bytes, random: Random) -> bytes:
    """An orientation that is none, offsets beyond the end, a directory that leads to itself."""
    order = random.choice((b"II*\0", b"MM\0*"))
    count, place = random.choice((1, 2**31)), random.choice((0, 9, 2**32 - 1))
    entry = struct.pack("<HHII", 0x112, random.randrange(14), count, place)
    directory = struct.pack("<IH", 8, 1) + entry + struct.pack("<I", random.choice((0, 8, 2**32 - 1)))
    return data[:HEAD] + _chunk(b"eXIf", order + directory) + data[HEAD:]


def other_format(data: bytes, random: Random) -> bytes:
    """By its name a PNG: a sound picture of another format, or the beginning of one."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    name = random.choice(("jpeg", "bmp", "gif", "webp", "tiff", "ppm", "ico"))
    found = _drawn(image, name)
    heads = (b"GIF89a" + data, b"BM" + bytes(60), b"<svg/>", b"%!PS\n", b"%PDF-1.4\n", b"P6 65535 65535 255\n")
    return random.choice((found, found[: random.randrange(len(found))], random.choice(heads)))


def other_mode(data: bytes, random: Random) -> bytes:
    """Sound, with pixels of 1 bit, 16 bits, a palette, or transparent ones."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    mode = random.choice(("1", "L", "LA", "P", "RGBA", "I;16"))
    return _drawn(Image.new(mode, image.size) if mode == "I;16" else image.convert(mode), "png")


def _drawn(image: Image.Image, name: str) -> bytes:
    content = io.BytesIO()
    image.save(content, name)
    return content.getvalue()


def _pixels(data: bytes) -> bytes:
    start = data.index(b"IDAT")
    return data[start + 4 : start + 4 + struct.unpack(">I", data[start - 4 : start])[0]]


def _png(header: bytes, pixels: bytes, before: bytes = b"") -> bytes:
    chunks = _chunk(b"IHDR", header) + before + _chunk(b"IDAT", zlib.compress(pixels)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


PICTURES: dict[str, Mutation] = {
    "size": size, "long": long, "kind": kind, "text": text, "chunk": chunk, "EXIF": exif, "other format": other_format,
    "other mode": other_mode,
}  # fmt: skip
