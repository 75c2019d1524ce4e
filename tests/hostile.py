"""Files as an enemy, a broken disk or a careless program would make them: each kind's mutations, seeded.

``spoil(kind, path, random)`` rewrites a sound file and says what it did.
"""

from __future__ import annotations

import io
import json
import pickle
import sqlite3
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random], bytes]
RAN = "a-pickle-ran"  # the file that a pickle makes which is executed

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**40, 1e308, float("nan"), float("inf"), 0.5, "",
    "\0", "x" * 70_000, "\u202e\x1b[31mred", "a\nError: b", "../../../etc/passwd", "/etc/passwd", "C:\\models\\base",
    "{{{{", "%s%n", "é\u0301😀", [], {}, [[]], [None], {"": {}}, ["a"] * 999, {"a": ["b"]}, [-1, -1], [2**62] * 3,
)  # fmt: skip


def spoil(kind: str, path: Path, random: Random) -> str:
    """``path`` is rewritten by one of the kind's mutations; its name."""
    if kind == "sqlite" and random.random() < 0.5:
        return _rewritten_table(path, random)
    mutations = {**KINDS[kind], "bytes": damaged}
    name = random.choice(sorted(mutations))
    path.write_bytes(mutations[name](path.read_bytes(), random))
    return name


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


def _altered(value: Any, random: Random) -> Any:
    """A copy with one node somewhere in it replaced, dropped, renamed or doubled."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(sorted(value))
        match random.randrange(8):
            case 0:
                return {name: item for name, item in value.items() if name != key}
            case 1:
                return {**value, random.choice(("", "\0", "__class__", "../x", "a\nb", "unknown")): value[key]}
            case _:
                return {**value, key: _altered(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.8:
        index = random.randrange(len(value))
        return [*value[:index], _altered(value[index], random), *value[index + 1 :]]
    return random.choice(VALUES)


def json_node(data: bytes, random: Random) -> bytes:
    return json.dumps(_altered(json.loads(data), random)).encode()


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
        header = _altered(header, random)
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


def yaml_text(data: bytes, random: Random) -> bytes:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}{f', *a{n - 1}' * 9}]\n" for n in range(1, 30))
    tags = ("!!python/object/apply:os.system [touch a-pickle-ran]", "!!python/name:os.system", "!!binary //8=", "!x y")
    other = (
        bomb, "[" * 20_000, "{a: " * 3_000, "- " * 4_000, "a: &a [*a]", "a: &a {b: *a}", "? [a]\n: b",
        "%YAML 9.9\n---\n",
        "a: 1\na: 2\n", "\t- x", "a: 'x", 'base: "C:\\models\\x"', "---\na\n---\nb\n", "!!str", "a: 0o9", "a: 1e999",
        "'': {'': }", "- " + "9" * 5000, "a: !!int x", "a: !!bool 7", "a: !!float .", "a: 0x", "*x", "&a",
        "a: 2001-01-01",
        "<<: {version: 1}\n", "x" * 2_000_000, "a: \x1b[31m", "a: \u2028b\u0085c", "\ufeffversion: 1", "",
    )  # fmt: skip
    text = data.decode()
    match random.randrange(4):
        case 0:
            return random.choice(other).encode()
        case 1:
            return f"{text}description: {random.choice(tags)}\n".encode()
        case 2:
            return f"{text}\n{random.choice(other)}\n".encode()
        case _:
            return random.choice((b"\xff\xfe", b"\0", b"\xed\xa0\x80", b"\x80")) + data


def yaml_node(data: bytes, random: Random) -> bytes:
    """The recipe with one value another: JSON is YAML, but for NaN and Infinity."""
    import yaml

    return json.dumps(_altered(yaml.safe_load(data), random)).encode()


def onnx_model(data: bytes, random: Random) -> bytes:
    """A node, an initializer or the place of its external data is another."""
    import onnx

    model = onnx.load_model_from_string(data)
    graph = model.graph
    initializer = random.choice(list(graph.initializer)) if graph.initializer else graph.initializer.add(name="x")
    node = random.choice(list(graph.node)) if graph.node else graph.node.add(op_type="Add")
    match random.randrange(9):
        case 0:
            places = ("../../../etc/passwd", "/etc/passwd", "..\\x", "", "\0", "a/../../x", "/dev/zero", "C:\\x")
            _external(initializer, "location", random.choice(places))
        case 1:
            number = random.choice(("-1", "x", str(2**70), "", "1e9"))
            _external(initializer, random.choice(("offset", "length")), number)
        case 2:
            initializer.dims[:] = random.choice(([-1], [0], [2**40, 2**40], [], [1] * 999))
        case 3:
            initializer.data_type = random.choice((0, 2, 7, 8, 11, 16, 99))
        case 4:
            initializer.name = random.choice(("", "x\n", "\x1b[31m", node.output[0] if node.output else "y"))
        case 5:
            node.op_type = random.choice(("", "Loop", "If", "NoSuchThing", "SequenceAt", "Cast"))
        case 6:
            node.input.extend(random.choice(([""], ["nowhere"], list(node.output), ["x"] * 5000)))
        case 7:
            inner = onnx.helper.make_graph([], "g", [], [])
            for _ in range(random.choice((5, 60))):
                node = onnx.helper.make_node("If", [], [], then_branch=inner)
                inner = onnx.helper.make_graph([node], "g", [], [])
            graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner))
        case 8:
            model.ir_version = random.choice((0, 1, 99, 2**40))
            del model.opset_import[:]
    return bytes(model.SerializeToString())


def onnx_nested(data: bytes, random: Random) -> bytes:
    """Messages within messages, deeper than a parser may follow: graph → node → attribute → graph …"""
    inner = b""
    for _ in range(random.choice((50, 300, 3000))):
        for field in (6, 5, 1):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            inner = bytes([field << 3 | 2]) + _varint(len(inner)) + inner
    return data + b"\x3a" + _varint(len(inner)) + inner


def _external(initializer: Any, key: str, value: str) -> None:
    initializer.data_location = 1
    found = {entry.key: entry.value for entry in initializer.external_data} | {key: value}
    del initializer.external_data[:]
    for name, text in found.items():
        initializer.external_data.add(key=name, value=text)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


def png_chunks(data: bytes, random: Random) -> bytes:
    """A gigantic size, text that unpacks to 100 MB, no pixels, pixels of another kind, a chunk of a wild length."""
    header = data[16:29]
    match random.randrange(6):
        case 0:
            side = random.choice((0, 30_000, 65_535, 2**31 - 1))
            return _png(struct.pack(">II", side, side) + header[8:], b"")
        case 1:
            text = _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))
            return data[:33] + text + data[33:]
        case 2:
            return _png(header, b"")
        case 3:
            kind = bytes([random.choice((1, 2, 4, 8, 16, 7)), random.randrange(8), 0, 0, 0])
            return _png(header[:8] + kind, data[41:])
        case 4:
            return data[:33] + struct.pack(">I", random.choice((2**31, 2**32 - 1))) + b"IDAT" + data[41:]
        case _:
            return data[:33] + _chunk(random.choice((b"iTXt", b"eXIf", b"iCCP")), random.randbytes(64)) + data[33:]


def _png(header: bytes, pixels: bytes) -> bytes:
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(pixels)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def text_lines(data: bytes, random: Random) -> bytes:
    other = (b"", b"\n\n", b"\0", b"\xff\xfe", b"\xef\xbb\xbfa fox\n", b"x" * 100_000, b"\x1b[31mred\n")
    return random.choice((*other, "😀 e\u0301 \u202e\n".encode(), b"\xed\xa0\x80\n", b"a\x00b\n", b" \t \n"))


def other_format(data: bytes, random: Random) -> bytes:
    others = (b"GIF89a" + data, b"BM" + bytes(60), b"<svg/>", b"\xff\xd8\xff\xe0" + data[:99], b"%PDF-1.4\n")
    return random.choice(others)


def _rewritten_table(path: Path, random: Random) -> str:
    with closing(sqlite3.connect(path)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        table = random.choice(sorted(tables))
        columns = [row[1] for row in database.execute(f'PRAGMA table_info("{table}")')]
        column, value = random.choice(columns), random.choice(("", "x", "[", -1, 2**62, b"\xff", 0.5))
        statements = (f'DROP TABLE "{table}"', f'DELETE FROM "{table}"', f'UPDATE "{table}" SET "{column}" = ?')
        statement = random.choice((*statements, statements[2], statements[2]))
        try:
            database.execute(statement, (value,) if "?" in statement else ())
            database.commit()
        except sqlite3.Error:
            database.rollback()
    return "table"


JSON = {"node": json_node, "deep": json_deep, "twice": json_twice, "other": json_other, "truncated": truncated}
KINDS: dict[str, dict[str, Mutation]] = {
    "safetensors": {
        "header": tensor_header, "header's text": tensor_header_text, "length": tensor_length, "entry": tensor_entry,
        "numbers": tensor_numbers, "metadata": tensor_metadata, "truncated": truncated, "noise": noise,
    },
    "pickle": {
        "code": pickle_that_runs, "bomb": pickle_bomb, "program": pickle_program, "archive": pickle_archive,
        "truncated": truncated, "noise": noise,
    },
    "json": JSON,
    "yaml": {"text": yaml_text, "node": yaml_node, "truncated": truncated, "noise": noise},
    "onnx": {"model": onnx_model, "nested": onnx_nested, "truncated": truncated, "noise": noise},
    "png": {"chunks": png_chunks, "truncated": truncated, "noise": noise, "other format": other_format},
    "text": {"lines": text_lines, "noise": noise},
    "sqlite": {"truncated": truncated, "noise": noise},
    "tar": {"truncated": truncated, "noise": noise},
}  # fmt: skip
