"""The files of a merge, laid out from headers: which pieces each tensor is made of, and how each is stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path

from lcmmerge.archs import Model
from lcmmerge.errors import FormatError, IncompatibleError, OptionError, OutputError
from lcmmerge.merge.outputs import Draft, by_folder, denoiser_drafts, drafts, weights_stem
from lcmmerge.merge.spec import Written
from lcmmerge.refs.weights import SAFETENSORS
from lcmmerge.tensors import DTYPES, TensorInfo
from lcmmerge.tensors.encodings import MAIN, NONE, UNQUANTISED, Encoding, Parts, encodings, plain
from lcmmerge.tensors.encodings.ggml import type_of
from lcmmerge.tensors.gguf import ARCHITECTURE, GGMLType, GGUFLayout, GGUFSpec, lay_out_gguf
from lcmmerge.tensors.layout import FileLayout, TensorSpec
from lcmmerge.tensors.layout import lay_out as lay_out_safetensors
from lcmmerge.tensors.quantised import layers_said
from lcmmerge.terms.match import Contribution
from lcmmerge.terms.operand import Operand

GGUF = "gguf"
SMALL = 1024  # elements
Contributions = Mapping[str, tuple[Contribution, ...]]  # canonical parameter → what is added to it


@dataclass(frozen=True, slots=True)
class Piece:
    """The unit of work: rows ``begin`` … ``end`` of an operand, what is added to it, and how it is stored.

    Pieces of one tensor lie one after another in it (OpenCLIP's fused q, k, v). ``transposed``: written as [in, out].
    """

    operand: Operand
    encoding: Encoding
    transposed: bool
    contributions: tuple[Contribution, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Without companions."""
        return (self.end - self.begin) * self.encoding.row_bytes(self.operand.columns)

    @property
    def is_copy(self) -> bool:
        """Nothing changes: the bytes are copied as they are."""
        same = self.encoding == self.operand.encoding and self.transposed == self.operand.transposed
        return same and not self.contributions and not self.operand.info.encoded


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of the output, the pieces that it is made of, and by suffix its encoding's ``companions``.

    In a file these lie behind it. ``copied``: the encoding of one whose stored bytes are copied, each tensor of them by
    itself. ``shape``: of its numbers.
    """

    spec: TensorSpec
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    companions: Mapping[str, TensorSpec] = field(default_factory=dict)
    copied: Encoding | None = None

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        return self.spec, *self.companions.values()

    @property
    def encoding(self) -> Encoding:
        """What the file's header is to say of it."""
        return self.copied or self.pieces[0].encoding

    @property
    def is_companion(self) -> bool:
        """Of another tensor, whose bytes are copied too."""
        return self.copied == plain(self.spec.dtype)

    def allocate_companions(self) -> Parts:
        """For its pieces to fill, by suffix."""
        return self.pieces[0].encoding.allocate_companions(self.shape)

    @property
    def nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.specs)

    @property
    def alignment(self) -> int:
        return max(spec.dtype.itemsize for spec in self.specs)


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file of the output. ``path`` is relative to the output's folder; a shard names its ``index``.

    ``architecture``: of a GGUF file, what it is to say of itself.
    """

    path: Path
    tensors: tuple[PlannedTensor, ...]
    index: Path | None = None
    architecture: str = ""

    def placed(self, metadata: Mapping[str, str]) -> FileLayout | GGUFLayout:
        """Where its tensors lie in it. Raises OutputError for what GGUF cannot hold."""
        if not self.architecture:
            return lay_out_safetensors(self.specs, metadata)
        specs = [GGUFSpec(tensor.spec.name, _ggml_type(tensor), tensor.shape) for tensor in self.tensors]
        return lay_out_gguf(specs, metadata)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        return tuple(spec for tensor in self.tensors for spec in tensor.specs)

    @property
    def metadata(self) -> dict[str, str]:
        """What its format and the encodings of its tensors say in its header."""
        names: dict[Encoding, list[str]] = {}
        for tensor in self.tensors:
            names.setdefault(tensor.encoding, []).append(tensor.spec.name)
        said = {key: text for encoding in names for key, text in encoding.metadata(names[encoding]).items()}
        said |= layers_said({tensor.spec.name: tensor.encoding for tensor in self.tensors})
        return said | ({ARCHITECTURE: self.architecture} if self.architecture else {})


def _ggml_type(tensor: PlannedTensor) -> GGMLType:
    kind = type_of(tensor.encoding)
    if kind is None:
        raise OutputError(f"{tensor.spec.name}: GGUF holds no {tensor.encoding.dtype.torch_name}", "write safetensors")
    return kind


def lay_out(
    base: Model,
    contributions: Contributions,
    target: Path,
    layout: str,
    output: Written,
    *,
    allow_unmatched: bool = False,
) -> tuple[tuple[PlannedFile, ...], tuple[str, ...]]:
    """The files of a target in a layout, and the base's tensors that are in none of them.

    Raises FormatError where the layout has no name for a part, or a companion's name is another tensor's, and
    IncompatibleError where no program reads GGUF of such a model, or terms change what it does not hold.
    """
    if container_of(base, output) == GGUF:
        return _lay_out_gguf(base, contributions, target, output, allow_unmatched=allow_unmatched)
    chosen, dropped = drafts(base, layout, drop_ema=output.drop_ema, mend_position_ids=output.mend_position_ids)
    encoding = partial(_encoding, output.encoding, "", encodings() | {UNQUANTISED: NONE})
    files = tuple(
        file
        for folder, group in by_folder(chosen)
        for file in _shards(
            folder,
            target,
            [tensor for draft in group for tensor in _planned(draft, contributions, encoding(draft))],
            output.max_shard_bytes or (_largest_shard(base, folder) if layout == base.layout else None),
        )
    )
    for file in files:
        _refuse_twins(file, base)
    return files, dropped


def check_scales(files: Iterable[PlannedFile]) -> None:
    """Raises OptionError where error-aware rounding would find no scale to choose."""
    if not any(piece.encoding.scales for file in files for tensor in file.tensors for piece in tensor.pieces):
        named = [name for name, encoding in encodings().items() if encoding.scales]
        raise OptionError(
            "error-aware rounding: nothing would be stored with scales to choose",
            f"choose one of these for --encoding: {', '.join(named)}",
        )


def container_of(base: Model, output: Written) -> str:
    """The format of the output's files: what its encodings ask for, else the base's."""
    if output.encoding is None:
        return base.source.container
    names = [output.encoding] if isinstance(output.encoding, str) else output.encoding.values()
    return GGUF if any(name.startswith(f"{GGUF}:") for name in names) else "safetensors"


def _lay_out_gguf(
    base: Model, contributions: Contributions, target: Path, output: Written, *, allow_unmatched: bool
) -> tuple[tuple[PlannedFile, ...], tuple[str, ...]]:
    """The denoiser alone, by the names of a single file without what stands before them, as programs expect it."""
    arch = base.arch
    if not arch.gguf:
        raise IncompatibleError(
            f"{base.source.path}: no program is known that reads GGUF of {arch.title}", "choose another --encoding"
        )
    chosen, dropped = denoiser_drafts(base)
    lost = [name for name in contributions if name in dropped]
    if lost and not allow_unmatched:
        what = f"{base.source.path}: GGUF is of the denoiser alone, and terms change {len(lost)} other parameters"
        raise IncompatibleError(f"{what}: {lost[0]}, …", "leave them out with --allow-unmatched, or write safetensors")
    encoding = partial(_encoding, output.encoding, GGUF, encodings() | {UNQUANTISED: NONE})
    tensors = tuple(tensor for draft in chosen for tensor in _planned(draft, contributions, encoding(draft)))
    return (PlannedFile(Path(target.name), tensors, architecture=arch.gguf),), dropped


def _refuse_twins(file: PlannedFile, base: Model) -> None:
    names = Counter(spec.name for spec in file.specs)
    for name, count in names.items():
        if count > 1:
            raise FormatError(
                f"{base.source.path}: {name!r} would be in the output twice, as the base's and as a scale",
                "take the checkpoint from before it was quantised, or another --encoding",
            )


def _encoding(
    asked: str | Mapping[str, str] | None, container: str, known: Mapping[str, Encoding], draft: Draft
) -> Encoding:
    """How a tensor is stored: as ``asked`` for all or by its name, where that takes it, else as the base has it."""
    operand = draft.parts[0][0]
    if asked is None and not operand.encoding.stays:
        what = f"{operand.path}: {operand.info.name} is in {operand.encoding.title}, which is only read"
        raise IncompatibleError(what, f"fuse it with --encoding {UNQUANTISED}, or another")
    if isinstance(asked, str):
        wanted = known[asked]
        taken = all(wanted.takes(operand.name, operand.shape) for operand, _, _ in draft.parts)
    else:
        names = {(asked or {}).get(operand.name) for operand, _, _ in draft.parts}
        name = names.pop() if len(names) == 1 else None
        wanted, taken = known[name] if name else operand.encoding, True
    if operand.dtype.floating and taken and wanted.stays and _fits(wanted, draft):
        return wanted
    undone = operand.is_quantised and (wanted == NONE or container == GGUF)
    rest = plain(DTYPES["BF16"] if undone else operand.dtype)
    return _in_gguf(rest, draft) if container == GGUF else rest


def _in_gguf(own: Encoding, draft: Draft) -> Encoding:
    """What ComfyUI-GGUF can load of a tensor that is in no blocks: in BF16 linears alone, large ones; else float32."""
    linear = len(draft.shape) == 2 and draft.name.endswith(".weight") and prod(draft.shape) > SMALL
    return own if linear or own.dtype.name != "BF16" else plain(DTYPES["F32"])


def _planned(draft: Draft, contributions: Contributions, encoding: Encoding) -> Iterable[PlannedTensor]:
    """An encoded tensor that stays as it is, is several. Raises IncompatibleError for what is only read."""
    operand = draft.parts[0][0]
    if encoding == operand.info.encoded and _stays(draft, contributions):
        return _copied(draft, operand.info)
    if encoding.read_only:
        what = f"{operand.path}: {operand.info.name} is in {encoding.title}, which is only read"
        raise IncompatibleError(what, "choose an --encoding, such as gguf:q8_0")
    pieces = tuple(
        Piece(operand, encoding, draft.transposed, contributions.get(operand.name, ()), begin, end)
        for operand, begin, end in draft.parts
    )
    specs = dict(encoding.specs(draft.name, draft.shape))
    return [PlannedTensor(specs.pop(MAIN), draft.shape, pieces, specs)]


def _stays(draft: Draft, contributions: Contributions) -> bool:
    """Whether it is a stored tensor, whole and unchanged."""
    info, row = draft.parts[0][0].info, 0
    if draft.shape != info.shape or any(contributions.get(operand.name) for operand, _, _ in draft.parts):
        return False
    for operand, begin, end in draft.parts:
        if operand.info != info or not operand.keeps_rows:
            return False
        for first, last in operand.stored_rows(begin, end):
            if first != row:
                return False
            row = last
    return row == info.shape[0]


def _copied(draft: Draft, info: TensorInfo) -> Iterable[PlannedTensor]:
    """Byte for byte, by the names that the encoding gives; what is the same for every tensor is written as we do."""
    encoding, stored = info.encoding, dict(zip((MAIN, *info.companions), info.stored, strict=True))
    constant = {item.suffix for item in encoding.companions if item.constant is not None}
    for suffix, spec in encoding.specs(draft.name, draft.shape).items():
        if suffix not in constant:
            operand = Operand.of_tensor(replace(stored[suffix], shape=spec.shape))
        else:
            like = replace(info, dtype=spec.dtype, shape=spec.shape, encoded=None)
            operand = Operand.of_bytes(spec.name, encoding.constant(suffix), like)
        piece = Piece(operand, plain(spec.dtype), False, (), 0, operand.rows)
        shape, told = (draft.shape, encoding) if suffix == MAIN else (spec.shape, plain(spec.dtype))
        yield PlannedTensor(spec, shape, (piece,), copied=told)


def _fits(encoding: Encoding, draft: Draft) -> bool:
    """Whether a tensor can be stored so, in its layout."""
    if (encoding.block > 1 or encoding.companions) and draft.transposed:  # rows of the tensor are none of its operand
        return False
    if any((end - begin) % encoding.granule for _, begin, end in draft.parts[:-1]):
        return False
    return draft.converts and encoding.fits(draft.shape)


def _largest_shard(base: Model, folder: str) -> int | None:
    """The size of the base's largest weight file there, where it has several."""
    sizes: Counter[Path] = Counter()
    for info in base.source:
        if info.name.startswith(f"{folder}." if folder else ""):
            sizes[info.path] += info.nbytes
    return max(sizes.values()) if len(sizes) > 1 else None


def _shards(folder: str, target: Path, tensors: list[PlannedTensor], limit: int | None) -> Iterable[PlannedFile]:
    """One file, or several of at most ``limit`` bytes; a tensor is never cut, nor parted from its companions.

    Wider dtypes come first, so that every tensor is aligned to its dtype.
    """
    tensors = sorted(tensors, key=lambda tensor: -tensor.alignment)
    stem, suffix = (f"{folder}/{weights_stem(folder)}", SAFETENSORS[0]) if folder else (target.stem, target.suffix)
    if limit is None or sum(tensor.nbytes for tensor in tensors) <= limit:
        return [PlannedFile(Path(f"{stem}{suffix}"), tuple(tensors))]
    groups: list[list[PlannedTensor]] = [[]]
    room = limit
    for tensor in tensors:
        if groups[-1] and tensor.nbytes > room:
            groups.append([])
            room = limit
        groups[-1].append(tensor)
        room -= tensor.nbytes
    index = Path(f"{stem}{suffix}.index.json")
    return [
        PlannedFile(Path(f"{stem}-{number:05}-of-{len(groups):05}{suffix}"), tuple(group), index)
        for number, group in enumerate(groups, 1)
    ]
