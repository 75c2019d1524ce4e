"""A merge as one value: θ′ = θ_pre + Σ λᵢτᵢ (task arithmetic, arXiv 2212.04089; λ2·τ_LCM of arXiv 2311.05556).

The command line, Python, recipes, studies, exports and the metadata of merged files all read and write this value. It
names things and opens none: ``merge.plan`` does.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from lcmmerge.accelerators import OFFICIAL, Accelerator, accelerator, by_reference, usual_strength
from lcmmerge.adapters import check_alpha
from lcmmerge.archs.prediction import Prediction
from lcmmerge.archs.rows import ORDERS
from lcmmerge.errors import OptionError
from lcmmerge.merge.methods import complete, methods, spelled
from lcmmerge.refs.weights import DIFFUSERS, SINGLE_FILE
from lcmmerge.tensors.dtypes import ERROR_AWARE, LARGEST, OUTPUT_DTYPES, STOCHASTIC
from lcmmerge.tensors.encodings import UNQUANTISED, encodings

STYLE, LCM = "style", "lcm"  # what the command line calls its terms
USUAL: Any = None  # for a λ: the usual one, of an accelerator as its entry says, else 1
ADD = "add"  # the method that merges are made by unless they name another
COMPONENT = "component"  # the layout of a U-Net alone, as `archs.identify` calls it
Reference = str | os.PathLike[str]
Blocks = Mapping[str, float] | str


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model or an adapter is: a path, ``hf://owner/repo[@revision][/file]``, or ``zoo:…``.

    In what a merged file records it is the name of the file or folder, with the ``sha256`` of its weights where that is
    known. ``variant``: which weights of a diffusers folder, such as ``fp16``.
    """

    reference: str
    sha256: str | None = None
    variant: str | None = None

    @classmethod
    def of(cls, reference: Reference | Source) -> Source:
        return reference if isinstance(reference, Source) else cls(os.fspath(reference))

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any]) -> Self:
        variant = recorded.get("variant")
        return cls(str(recorded["name"]), recorded["sha256"], None if variant is None else str(variant))

    def to_dict(self) -> dict[str, str | None]:
        variant = {"variant": self.variant} if self.variant else {}
        return {"name": self.reference, "sha256": self.sha256, **variant}


@dataclass(frozen=True, slots=True)
class Term:
    """One task vector and its λ: an adapter, or a checkpoint that was tuned from ``made_from`` (None: from the base).

    ``source``: None for the file that the ``accelerator`` of that name has for the base's architecture. ``strength``:
    λ, by default the accelerator's usual one. ``blocks``: factors on λ per U-Net block, as ``{"IN00-IN05": 0.5}`` or as
    the text of ``--block-weights``. ``expert``: the component that it is for, where the base has several denoisers
    (Wan 2.2's ``transformer`` and ``transformer_2``). ``alpha``: as its publisher states it, where its file has none.
    """

    name: str
    source: Source | None = None
    strength: float = USUAL
    blocks: Blocks = ""
    made_from: Source | None = None
    accelerator: str | None = None
    expert: str | None = None
    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.strength is USUAL:
            kind = accelerator(self.accelerator) if self.accelerator else None
            usual = usual_strength(kind, self.source.reference if self.source else None)
            object.__setattr__(self, "strength", usual)
        check_alpha(self.name, self.alpha)

    @property
    def kind(self) -> Accelerator | None:
        """Which accelerator it is, as far as that is said, or known of its file. Raises NotFoundError."""
        if self.accelerator:
            return accelerator(self.accelerator)
        return by_reference(self.source.reference) if self.source else None

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any]) -> Self:
        blocks = recorded.get("block_weights", {})
        return cls(
            str(recorded["term"]),
            Source.from_dict(recorded),
            _number(recorded["lambda"]),
            blocks if isinstance(blocks, str) else {str(name): _number(factor) for name, factor in blocks.items()},
            Source.from_dict(recorded["tuned_from"]) if "tuned_from" in recorded else None,
            None if recorded.get("accelerator") is None else str(recorded["accelerator"]),
            None if recorded.get("expert") is None else str(recorded["expert"]),
            None if recorded.get("alpha") is None else _number(recorded["alpha"]),
        )

    def to_dict(self) -> dict[str, Any]:
        source = self.source or Source(self.accelerator or "")
        return {
            "term": self.name,
            "lambda": self.strength,
            **source.to_dict(),
            **({"tuned_from": self.made_from.to_dict()} if self.made_from else {}),
            **({"block_weights": self.blocks if isinstance(self.blocks, str) else dict(self.blocks)}
               if self.blocks else {}),
            **({"accelerator": self.accelerator} if self.accelerator else {}),
            **({"expert": self.expert} if self.expert else {}),
            **({"alpha": self.alpha} if self.alpha is not None else {}),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Written:
    """How a merge is written. ``path``: None names the output after the inputs, in the working folder.

    ``layout``: ``single-file`` or ``diffusers``, None for the base's; ``encoding``: how numbers are stored, a dtype or
    another name of ``tensors.encodings``, of some parameters by their names, None as the base has them; ``like``: the
    file in whose encodings they are, instead. ``max_shard_bytes``: split files above it;
    ``rounding_seed``: of stochastic rounding, None rounds to nearest; ``error_aware``: by the scales that lose least;
    ``mend_position_ids``: those of text encoders are 0, 1, 2 … again.
    """

    path: Path | None = None
    layout: str | None = None
    encoding: str | Mapping[str, str] | None = None
    max_shard_bytes: int | None = None
    drop_ema: bool = False
    rounding_seed: int | None = None
    mend_position_ids: bool = False
    like: Source | None = None
    error_aware: bool = False

    def __post_init__(self) -> None:
        known = UNQUANTISED, *encodings()
        names = [self.encoding] if isinstance(self.encoding, str) else [*(self.encoding or {}).values()]
        if unknown := [name for name in names if name not in known]:
            raise OptionError(f"encoding {unknown[0]!r}: unknown", f"choose one of {', '.join(known)}")
        if self.like and self.encoding:
            raise OptionError("--like, and an encoding beside it: only one can be", "omit one of them")
        if self.error_aware and self.rounding_seed is not None:
            raise OptionError("rounding: error-aware, and stochastic: only one can be", "omit one of them")
        if self.layout not in (None, SINGLE_FILE, DIFFUSERS, COMPONENT):
            raise OptionError(f"layout {self.layout!r}: unknown", f"choose {SINGLE_FILE} or {DIFFUSERS}")


def stored_as(dtype: str | None, encoding: str | None) -> str | None:
    """The encoding, which a dtype is one of. Raises OptionError for no dtype, and where two are given."""
    if dtype not in (None, *OUTPUT_DTYPES):
        raise OptionError(f"dtype {dtype!r}: unknown", f"choose one of {', '.join(OUTPUT_DTYPES)}")
    if dtype and encoding not in (None, dtype):
        raise OptionError(f"dtype {dtype}, and encoding {encoding}: only one can be", "omit one of them")
    return dtype or encoding


Experts = Mapping[str, Reference | tuple[Reference, float | None] | Term]
Given = float | None | tuple[Reference | Experts, float | None] | Experts | Term


@dataclass(frozen=True, slots=True, init=False)
class Merge:
    """θ′ = θ_base + Σ λτ over ``terms``, in their order, or what another method of ``merge.methods`` makes of them.

    ``parameters``: of the method, all of them: those that are not given have their defaults.
    ``config_from``: whose configs, scheduler and tokenizers a diffusers folder gets where the base is a single file.
    ``prediction``: what the base predicts, as ``--prediction`` names it, where its files do not say so. ``qkv_rows``:
    ``stacked`` or ``interleaved``, as ``--qkv-rows`` names the order of its fused q, k and v, which no header tells.
    ``allow_unmatched``: merge what fits, and list the rest. ``recipe``: the sha256 of what a recipe file asked for.
    ``parts_from``: the checkpoint whose parts complete a base that lacks a VAE, a text encoder or layers of them.
    """

    base: Source
    terms: tuple[Term, ...] = ()
    method: str = ADD
    output: Written = Written()
    config_from: str | None = None
    allow_unmatched: bool = False
    recipe: str | None = None
    parameters: Mapping[str, float] = field(default_factory=dict)
    prediction: str | None = None
    parts_from: Source | None = None
    qkv_rows: str | None = None

    def __init__(
        self,
        base: Reference | Source,
        terms: Mapping[str, Given] | Sequence[Term] = (),
        method: str = ADD,
        output: Written = Written(),
        config_from: Reference | None = None,
        allow_unmatched: bool = False,
        recipe: str | None = None,
        parameters: Mapping[str, float] | None = None,
        prediction: str | None = None,
        parts_from: Reference | Source | None = None,
        qkv_rows: str | None = None,
    ) -> None:
        """``terms``: name → λ (of the accelerator of that name), or (reference, λ), or a Term; of None the usual λ.

        For a reference may stand one for each expert, ``{"transformer": "high.safetensors", "transformer_2": …}``,
        each also with a λ of its own: that is a term for each, ``lcm-transformer`` and so on.

        Raises OptionError, NotFoundError.
        """
        given = terms.items() if isinstance(terms, Mapping) else ((term.name, term) for term in terms)
        fields = {
            "base": Source.of(base),
            "terms": tuple(each for name, term in given for each in _terms(name, term)),
            "method": method,
            "output": output,
            "config_from": None if config_from is None else os.fspath(config_from),
            "allow_unmatched": allow_unmatched,
            "recipe": recipe,
            "parameters": complete(method, parameters or {}),
            "prediction": prediction,
            "parts_from": None if parts_from is None else Source.of(parts_from),
            "qkv_rows": qkv_rows,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        if prediction:
            Prediction.named(prediction)
        if qkv_rows not in (None, *ORDERS):
            raise OptionError(f"rows {qkv_rows!r}: unknown", f"choose {' or '.join(ORDERS)}")
        names = [term.name for term in self.terms]
        if twice := [name for name in names if names.count(name) > 1]:
            raise OptionError(f"{twice[0]!r}: two terms have this name", "give each term a name of its own")
        for term in self.terms:
            check_strength(term.name, term.strength)

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any]) -> Self:
        """What ``to_dict`` wrote, also that of lcmmerge 0.1. Raises ValueError, KeyError, TypeError, AttributeError."""
        stored, seed, rounding = recorded["dtype"], recorded["rounding_seed"], recorded.get("rounding")
        if not isinstance(seed, int | None):
            raise ValueError("rounding_seed")
        if rounding not in (None, ERROR_AWARE):
            raise ValueError("rounding")
        names = {dtype.name: name for name, dtype in OUTPUT_DTYPES.items()}
        encoding = recorded.get("encoding", names[stored] if stored else None)
        if isinstance(encoding, dict):
            encoding = {str(name): str(value) for name, value in encoding.items()}
        try:
            return cls(
                Source.from_dict(recorded["base"]),
                [Term.from_dict(term) for term in recorded["terms"]],
                recorded.get("method", ADD),
                Written(
                    None, recorded["layout"], encoding, drop_ema=bool(recorded["drop_ema"]), rounding_seed=seed,
                    mend_position_ids=bool(recorded.get("mend_position_ids")), error_aware=rounding is not None,
                ),
                recorded.get("config_from"),
                bool(recorded["allow_unmatched"]),
                recorded.get("recipe_sha256"),
                {str(name): _number(value) for name, value in recorded.get("parameters", {}).items()},
                None if recorded.get("prediction") is None else str(recorded["prediction"]),
                Source.from_dict(recorded["parts_from"]) if "parts_from" in recorded else None,
                None if recorded.get("qkv_rows") is None else str(recorded["qkv_rows"]),
            )  # fmt: skip
        except OptionError as error:
            raise ValueError(error.message) from None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready. Where the output lies and how it is cut into shards is left out: its tensors are the same."""
        output = self.output
        dtype = OUTPUT_DTYPES.get(output.encoding) if isinstance(output.encoding, str) else None
        encoding = output.encoding if isinstance(output.encoding, str) else dict(output.encoding or {})
        return {
            "type": "lcmmerge",
            "base": self.base.to_dict(),
            "terms": [term.to_dict() for term in self.terms],
            "method": self.method,
            **({"parameters": dict(self.parameters)} if self.parameters else {}),
            "dtype": dtype.name if dtype else None,
            **({"encoding": encoding} if encoding and not dtype else {}),
            "layout": output.layout,
            "drop_ema": output.drop_ema,
            "allow_unmatched": self.allow_unmatched,
            "rounding_seed": output.rounding_seed,
            **({"rounding": ERROR_AWARE} if output.error_aware else {}),
            **({"config_from": self.config_from} if self.config_from else {}),
            **({"prediction": self.prediction} if self.prediction else {}),
            **({"parts_from": self.parts_from.to_dict()} if self.parts_from else {}),
            **({"qkv_rows": self.qkv_rows} if self.qkv_rows else {}),
            **({"mend_position_ids": True} if output.mend_position_ids else {}),
            **({"recipe_sha256": self.recipe} if self.recipe else {}),
        }

    def at(self, strengths: Mapping[str, float], blocks: Mapping[str, Blocks] | None = None) -> Self:
        """The merge with other λs, and block factors, of the terms that are named."""
        terms = [
            replace(
                term,
                strength=strengths.get(term.name, term.strength),
                blocks=(blocks or {}).get(term.name, term.blocks),
            )
            for term in self.terms
        ]
        return replace(self, terms=tuple(terms))

    @property
    def accelerated(self) -> Term | None:
        """The first term that is an acceleration LoRA, by what is said or known of it."""
        return next((term for term in self.terms if term.kind or term.name in (LCM, f"{LCM}-{term.expert}")), None)

    @property
    def method_text(self) -> str:
        """The method and its parameters, as ``--method`` has them: ``add``, ``ties:density=0.2``."""
        return spelled(self.method, self.parameters)

    @property
    def linear(self) -> bool:
        """Whether θ′ is linear in each λ, whatever the others are."""
        return methods()[self.method].linear

    def to(self, path: Path | None) -> Self:
        """The merge, written to another path."""
        return replace(self, output=replace(self.output, path=path))

    def command(self) -> str:
        """``lcmmerge fuse …``, to be pasted into a shell: the first term that is no accelerator is its STYLE."""
        lcm = self.accelerated
        others = [term for term in self.terms if term is not lcm]
        style, adapters = (others[0] if others else None), others[1:]
        words = ["lcmmerge", "fuse", self.base.reference, *([_reference(style)] if style else [])]
        pair = style.strength if style else 1.0, lcm.strength if lcm else 0.0
        words += ["--lambda", *map(repr, pair)]
        words += [word for each in _named(lcm) for word in ("--accelerator", each)]
        options: dict[str, str | None] = {"--variant": self.base.variant, "--config-from": self.config_from}
        options |= {"--prediction": self.prediction, "--qkv-rows": self.qkv_rows}
        options |= {"--parts-from": self.parts_from.reference if self.parts_from else None}
        made_from = [term.made_from for term in others if term.made_from]
        options |= {"--tuned-from": made_from[0].reference if made_from else None}
        options |= {"--made-from": lcm.made_from.reference if lcm and lcm.made_from else None}
        encoding = self.output.encoding if isinstance(self.output.encoding, str) else None
        option = "--dtype" if encoding in OUTPUT_DTYPES else "--encoding"
        options |= {"--like": self.output.like.reference if self.output.like else None}
        options |= {"--layout": self.output.layout, option: encoding}
        if self.output.error_aware:
            options |= {"--rounding": ERROR_AWARE}
        elif self.output.rounding_seed is not None:
            options |= {"--rounding": STOCHASTIC, "--seed": str(self.output.rounding_seed)}
        options |= {"--method": self.method_text if self.method != ADD else None}
        options |= {"-o": str(self.output.path) if self.output.path else None}
        words += [word for name, value in options.items() if value for word in (name, value)]
        words += ["--mend-position-ids"] if self.output.mend_position_ids else []
        for term in adapters:
            words += ["--adapter", _reference(term), repr(term.strength)]
        names = _command_names(self)
        for term in self.terms:
            if text := blocks_text(term.blocks):
                words += ["--block-weights", names[term.name], text]
            if term.expert:
                words += ["--expert", names[term.name], term.expert]
            if term.alpha is not None:
                words += ["--alpha", names[term.name], repr(term.alpha)]
        return shlex.join(words)


def _named(fast: Term | None) -> list[str]:
    """What ``--accelerator`` is given: a file, and what it is; of the official one nothing."""
    if fast is None or (not fast.source and fast.accelerator == OFFICIAL.name):
        return []
    return [word for word in (fast.source and fast.source.reference, fast.accelerator) if word]


def _command_names(merge: Merge) -> dict[str, str]:
    """Each term's name → what ``lcmmerge fuse`` calls it: ``style``, ``lcm``, or the stem of its file."""
    fast = merge.accelerated
    others = [term for term in merge.terms if term is not fast]
    calls = [STYLE, *([LCM] if fast else []), *(Path(_reference(term)).stem for term in others[1:])]
    ordered = [*others[:1], *([fast] if fast else []), *others[1:]]
    called = distinct(calls if others else calls[1:])
    return {term.name: name for term, name in zip(ordered, called, strict=True)}


def distinct(names: Sequence[str]) -> list[str]:
    """A second term of the same name (the Hub's LoRAs are all ``pytorch_lora_weights``) is ``name-2``."""
    counts = [names[: place + 1].count(name) for place, name in enumerate(names)]
    return [name if count == 1 else f"{name}-{count}" for name, count in zip(names, counts, strict=True)]


def check_strength(name: str, strength: float) -> None:
    """Raises OptionError where λ is not a number that a weight could be multiplied by."""
    if not abs(strength) <= LARGEST:
        raise OptionError(f"λ of {name}: not a finite number of float32", "give one such as 0.8")


def blocks_text(blocks: Blocks) -> str:
    """As ``--block-weights`` has them."""
    return blocks if isinstance(blocks, str) else ",".join(f"{span}={factor!r}" for span, factor in blocks.items())


def _terms(name: str, given: Given) -> Iterator[Term]:
    match given:
        case Term():
            yield given if given.name == name else replace(given, name=name)
        case Mapping():
            yield from _terms(name, (given, None))
        case (Mapping() as sources, strength):
            for expert, own in sources.items():
                (term,) = _terms(f"{name}-{expert}", own if isinstance(own, tuple | Term) else (own, strength))
                yield replace(term, expert=expert)
        case (reference, strength):
            yield Term(name, Source.of(reference), USUAL if strength is None else strength)
        case strength:
            yield Term(name, None, USUAL if strength is None else strength, accelerator=name)


def _reference(term: Term) -> str:
    return term.source.reference if term.source else term.accelerator or ""


def _number(recorded: Any) -> float:
    number = float(recorded)
    if not abs(number) <= LARGEST:
        raise ValueError(f"{number} is not a finite number of float32")
    return number
