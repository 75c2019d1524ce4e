"""Hostile JSON, and safetensors, whose headers are JSON."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from damage import VALUES, Mutation, altered, damaged


def json_node(data: bytes, random: Random) -> bytes:
    return json.dumps(altered(json.loads(data), random)).encode()


def json_deep(data: bytes, random: Random) -> bytes:
    depth = random.choice((500, 5_000, 200_000))
    opening, closing_ = random.choice(((b"[", b"]"), (b'{"a":', b"}")))
    return opening * depth + b"0" + closing_ * depth


def json_twice(data: bytes, random: Random) -> bytes:
    """The first key stands twice."""
    content = json.loads(data)
    if not isinstance(content, dict) or not content:
        return b"{}"
    key = random.choice(sorted(content))
    return b"{" + json.dumps(key).encode() + b":" + json.dumps(random.choice(VALUES)).encode() + b"," + data.strip()[1:]


def json_other(data: bytes, random: Random) -> bytes:
    choices = (b"NaN", b"-Infinity", b"[]", b"{}", b"null", b'"text"', b"1e999", b"{" * 50, b'{"a": \xff}')
    return random.choice((*choices, b'"\\ud800"', data.decode().encode("utf-16"), b"\xef\xbb\xbf" + data, data + data))


def _parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _file(header: bytes, content: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + content


def tensor_header(data: bytes, random: Random) -> bytes:
    header, content = _parts(data)
    for _ in range(random.choice((1, 1, 3))):
        header = altered(header, random)
        if not isinstance(header, dict):
            break
    return _file(json.dumps(header).encode(), content)


def tensor_header_text(data: bytes, random: Random) -> bytes:
    header, content = _parts(data)
    text = random.choice((json_deep, json_twice, json_other, damaged))(json.dumps(header).encode(), random)
    return _file(text, content)


def tensor_length(data: bytes, random: Random) -> bytes:
    length = random.choice((0, 1, 8, len(data) - 8, len(data), 10**8, 10**8 + 1, 2**32, 2**63 - 1, 2**64 - 1))
    return length.to_bytes(8, "little") + data[8:]


def tensor_entry(data: bytes, random: Random) -> bytes:
    """One tensor's dtype, shape or offsets are others."""
    header, content = _parts(data)
    name = random.choice([name for name in sorted(header) if name != "__metadata__"] or [""])
    if not name:
        return data
    entry = dict(header[name])
    begin, end = entry["data_offsets"]
    match random.randrange(6):
        case 0:
            entry["dtype"] = random.choice(("F64", "I8", "BOOL", "F8_E4M3", "U64", "C64", "f16", "", "BF16"))
        case 1:
            entry["shape"] = random.choice(([], [0], [1] * 65, [2**40, 2**40], [-1], entry["shape"][::-1], [[1]]))
        case 2:
            others = ([0, end], [end, begin], [begin, end + 1], [begin - 1, end], [0, 0])
            entry["data_offsets"] = random.choice(others)
        case 3:
            header[random.choice(("", "a\nb", "\x1b[31m", name * 500, "x.alpha", f"{name}.lora_up.weight"))] = entry
            del header[name]
            return _file(json.dumps(header).encode(), content)
        case 4:
            del header[name]
            return _file(json.dumps(header).encode(), content)
        case 5:
            entry["shape"], flat = [(end - begin) // 2], entry["shape"]
            entry["dtype"] = entry["dtype"] if flat else "F16"
    return _file(json.dumps({**header, name: entry}).encode(), content)


def tensor_numbers(data: bytes, random: Random) -> bytes:
    """NaN, Inf or noise in the weights themselves."""
    header, content = _parts(data)
    filler = random.choice((b"\x00\x7e", b"\x00\x7c", b"\xff\x7b", b"\xff\xff", random.randbytes(2)))
    start = random.randrange(len(content) // 2) * 2
    length = random.choice((2, 64, len(content)))
    spoilt = content[:start] + filler * (min(length, len(content) - start) // 2)
    return _file(json.dumps(header).encode(), spoilt + content[len(spoilt) :])


def tensor_metadata(data: bytes, random: Random) -> bytes:
    header, content = _parts(data)
    said = dict(header.get("__metadata__", {}))
    keys = ("sd_merge_recipe", "sd_merge_models", "modelspec.architecture", "lora_adapter_metadata")
    key = random.choice(sorted({*said, *keys}))
    try:
        text = json_node(said[key].encode(), random).decode()
    except (KeyError, ValueError):
        text = random.choice(("", "{}", "[" * 9999, "NaN", "x" * 10**6, "\0", '{"a": 1}', "é😀\x1b[31m"))
    return _file(json.dumps({**header, "__metadata__": said | {key: text}}).encode(), content)


JSON: dict[str, Mutation] = {"node": json_node, "deep": json_deep, "twice": json_twice, "other": json_other}
TENSORS: dict[str, Mutation] = {
    "header": tensor_header, "header's text": tensor_header_text, "length": tensor_length, "entry": tensor_entry,
    "numbers": tensor_numbers, "metadata": tensor_metadata,
}  # fmt: skip
