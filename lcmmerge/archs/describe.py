"""A draft of a family's file, for whoever adds one: the rows that two headers tell, a single file's and diffusers'.

Like names of equal shapes are one row, and a tensor with as many rows as some neighbours together has these one below
another. What neither tells (halves swapped, rows interleaved, the order of what is fused) is to be checked by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import SequenceMatcher
from json import dumps

from lcmmerge.archs.base import architectures
from lcmmerge.archs.identify import PREFIXES
from lcmmerge.archs.views import Shape
from lcmmerge.errors import IncompatibleError
from lcmmerge.refs.files import read_object
from lcmmerge.refs.weights import DENOISERS, DIFFUSERS
from lcmmerge.tensors import TensorSource

NUMBERED = re.compile(r"(.+?)\.(\d+)\.(.+)", re.DOTALL)
FEW = 4  # a list's block has at least as many tensors
WIDTH = 120
LIKE = 0.35  # below it two names are not of one thing

Shapes = dict[str, Shape]
Line = tuple[str, str, bool]  # canonical, stored, whether some blocks lack it
Fused = tuple[str, tuple[str, ...], tuple[int, ...]]  # stored, canonicals, their rows


@dataclass(slots=True)
class Names:
    """A header: what there is once, and lists of blocks by name: depth, a block's tensors, and those that some lack."""

    ends: Shapes
    lists: dict[str, tuple[int, Shapes, set[str]]]

    @classmethod
    def of(cls, shapes: Mapping[str, Shape]) -> Names:
        found, blocks = cls({}, {}), dict[str, dict[int, Shapes]]()
        for name, shape in shapes.items():
            if match := NUMBERED.fullmatch(name):
                blocks.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = shape
        for begin, numbered in blocks.items():
            inner = {name: shape for block in numbered.values() for name, shape in block.items()}
            if sorted(numbered) == list(range(len(numbered))) and len(numbered) > 1 and len(inner) >= FEW:
                some = {name for name in inner if any(name not in block for block in numbered.values())}
                found.lists[begin] = len(numbered), inner, some
        listed = tuple(f"{begin}." for begin in found.lists)
        found.ends = {name: shape for name, shape in shapes.items() if not name.startswith(listed or ("\n",))}
        return found


def draft(source: TensorSource, folder: TensorSource | None = None) -> str:
    """Python. ``source``: with a single file's names; ``folder``: diffusers', by default the same names.

    Raises IncompatibleError where there are no lists of blocks.
    """
    stored, canonical = Names.of(_inner(source)), Names.of(_inner(folder or source))
    if not canonical.lists:
        what = f"{(folder or source).path}: has no lists of equal blocks"
        raise IncompatibleError(what, "name a diffusion transformer")
    tables, lists, rest = [], [], dict(stored.lists)
    tables.append(("ENDS", *_matched(canonical.ends, stored.ends, set())))
    deepest = max(canonical.lists, key=lambda name: canonical.lists[name][0])
    for number, (name, (depth, inner, some)) in enumerate(canonical.lists.items(), 1):
        order = sorted(rest, key=lambda each: (rest[each][0] == depth, _alike(name, each)), reverse=True)
        other = order[0] if order else name
        table = f"BLOCK_{number}"
        tables.append((table, *_matched(inner, rest.pop(other, (0, {}, set()))[1], some)))
        words = [dumps(name), table, f"depth={depth}", *(['letter="B"'] if name == deepest else [])]
        lists.append(_folded("BlockList", words + ([f"stored={dumps(other)}"] if other != name else []), 16))
    loose = [f"# Not matched: the file's {dumps(name)}, {rest[name][0]} blocks" for name in rest]
    module = _class(folder or source)
    any_fused = any(fused for _, _, fused, _ in tables)
    return "\n".join([
        f'"""{module}: a draft of `lcmmerge describe`: check each row."""', "",
        "from lcmmerge.archs.base import Architecture, Family",
        f"from lcmmerge.archs.tables import Row{', fused' if any_fused else ''}",
        "from lcmmerge.archs.transformer import BlockList, Transformer", "",
        *(line for table in tables for line in _table(*table)), *loose, "",
        "ARCHITECTURE = Architecture(", f'    title="{module}",',
        '    hub="",  # owner/repo', f'    modelspec="{module}",', "    parts=(", "        Transformer(",
        f'            module="{module}",',
        f"            sentinel={dumps(_sentinel(canonical, tables))},", "            ends=ENDS,", "            lists=(",
        *lists, "            ),", "        ),", "    ),", '    family=Family(prediction="flow"),', ")", "",
    ])  # fmt: skip


def _inner(source: TensorSource) -> Shapes:
    """The denoiser's tensors, without what stands before their names."""
    begins = [f"{name}." for name in DENOISERS] if source.layout == DIFFUSERS else PREFIXES
    begin = next(begin for begin in (*begins, "") if any(name.startswith(begin) for name in source.tensors))
    return {info.name.removeprefix(begin): info.shape for info in source if info.name.startswith(begin)}


def _class(source: TensorSource) -> str:
    for name in DENOISERS if source.layout == DIFFUSERS else ("",):
        with suppress(OSError, ValueError):
            return re.sub(r"\W", "", str(read_object(source.path / name / "config.json").get("_class_name")))
    return "Unnamed"


def _sentinel(canonical: Names, tables: Iterable[tuple[str, list[Line], list[Fused], list[str]]]) -> str:
    """A parameter of every model of the family, and of no other's where there is one."""
    known = {slot.partition(".")[2] for arch in architectures().values() for slot in arch.keymap(DIFFUSERS).slots}
    whole = {table: [name for name, _, optional in lines if not optional] for table, lines, _, _ in tables}
    blocks = [f"{name}.0.{row}" for i, name in enumerate(canonical.lists, 1) for row in whole[f"BLOCK_{i}"]]
    every = [*blocks, *whole["ENDS"]]
    return next((name for name in every if name not in known and name.endswith("weight")), every[0] if every else "")


def _matched(canonical: Shapes, stored: Shapes, some: set[str]) -> tuple[list[Line], list[Fused], list[str]]:
    """Rows, fused ones, and what is left as remarks."""
    pairs = [(_alike(name, other), name, other) for name, shape in canonical.items() for other in stored
             if stored[other] == shape and _kind(name) == _kind(other)]  # fmt: skip
    home: dict[str, str] = {}
    for alike, name, other in sorted(pairs, key=lambda pair: -pair[0]):
        if alike >= LIKE and name not in home and other not in home.values():
            home[name] = other
    lines: list[Line] = [(name, home[name], name in some) for name in canonical if name in home]
    left = {name: shape for name, shape in canonical.items() if name not in home}
    others = {name: shape for name, shape in stored.items() if name not in home.values()}
    fused = list(_fused(left, others))
    gone = {name for stored_name, names, _ in fused for name in (stored_name, *names)}
    sides = {"": left, "the file's ": others}
    remarks = [f"# Not matched: {whose}{dumps(name)} {list(shape)}" for whose, side in sides.items()
               for name, shape in side.items() if name not in gone]  # fmt: skip
    return lines, fused, remarks


def _fused(left: Shapes, others: Shapes) -> Iterator[Fused]:
    """Neighbours of one module that together have as many rows as a tensor of the file; each is in one only."""
    gone: set[str] = set()
    for other, shape in others.items():
        like = [name for name in left if name not in gone and _kind(name) == _kind(other) and len(left[name])]
        like = sorted((name for name in like if left[name][1:] == shape[1:]), key=_in_order)
        spans = [like[i:j] for i in range(len(like)) for j in range(i + 2, len(like) + 1)]
        spans = [span for span in spans if shape and sum(left[name][0] for name in span) == shape[0]]
        if best := max(spans, key=lambda span: sum(_alike(name, other) for name in span) / len(span), default=None):
            gone |= {*best}
            yield other, tuple(best), tuple(left[name][0] for name in best)


def _table(name: str, lines: list[Line], fused: list[Fused], remarks: list[str]) -> Iterator[str]:
    yield f"{name} = ("
    for canonical, stored, optional in lines:
        words = [re.sub(r"\b(weight|bias)$", "{p}", each) for each in (canonical, stored)]
        pair = [(words[0].format(p=p), words[1].format(p=p), optional) in lines for p in ("weight", "bias")]
        if not all(pair):
            words = [canonical, stored]
        elif canonical.endswith("bias"):
            continue
        yield _folded("Row", [*map(dumps, dict.fromkeys(words)), *(["optional=True"] if optional else [])])
    for stored, canonicals, rows in fused:
        shares = [] if len({*rows}) == 1 else [str(rows)]
        yield _folded("*fused", [dumps(stored), f"({', '.join(map(dumps, canonicals))})", *shares])
    yield ")"
    yield from remarks


def _folded(called: str, words: list[str], indent: int = 4) -> str:
    """A call, in several lines where it is too long for one."""
    begin = " " * indent
    if len(line := f"{begin}{called}({', '.join(words)}),") <= WIDTH:
        return line
    words = [each.replace('", "', f'",\n{begin}     "') for each in words]
    return "\n".join([f"{begin}{called}(", *(f"{begin}    {each}," for each in words), f"{begin}),"])


def _kind(name: str) -> str:
    return name.rpartition(".")[2].replace("scale", "weight")


def _in_order(name: str) -> str:
    """q before k before v, as everybody fuses them."""
    return re.sub(r"(?<![a-z])[qkv](?![a-z])", lambda match: str("qkv".index(match[0])), name)


def _alike(name: str, other: str) -> float:
    return SequenceMatcher(None, name, other, autojunk=False).ratio()
