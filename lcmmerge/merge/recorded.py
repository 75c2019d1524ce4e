"""The merge that a file records (see ``provenance``), and the sources that it names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lcmmerge import refs
from lcmmerge.errors import FormatError, NotFoundError, VerificationError
from lcmmerge.history import RECIPE
from lcmmerge.merge.methods import methods
from lcmmerge.merge.plan import Plan, plan
from lcmmerge.merge.spec import ADD, Merge, Source
from lcmmerge.tensors import TensorSource
from lcmmerge.tensors.digest import sha256_of
from lcmmerge.tensors.remote import open_reference

_SHA256 = re.compile("[0-9a-f]{64}")


def read_merge(source: TensorSource) -> Merge:
    """The merge that a file's metadata record. Raises FormatError where the file is not a merge of ours."""
    text = source.metadata.get(RECIPE)
    if text is None:
        raise FormatError(f"{source.path}: records no merge recipe", "only what `lcmmerge fuse` wrote can be verified")
    try:
        found = json.loads(text)
        if found["type"] != "lcmmerge":
            raise FormatError(
                f"{source.path}: was made by {found['type']}", "only what `lcmmerge fuse` wrote can be verified"
            )
        if (method := found.get("method", ADD)) not in methods():
            what = f"{source.path}: was merged by the method {method!r}, which is not known here"
            raise FormatError(what, "install the package that has it, or a newer lcmmerge")
        merge = Merge.from_dict(found)
        named_by_terms = [item for term in merge.terms for item in (term.source, term.made_from)]
        for named in filter(None, (merge.base, merge.parts_from, *named_by_terms)):
            if "/" in named.reference or named.reference in ("", ".", ".."):
                raise ValueError
            if named.sha256 is not None and not _SHA256.fullmatch(named.sha256):
                raise ValueError
        return merge
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise FormatError(f"{source.path}: its merge recipe is damaged", "get the file again") from None


def replan(merge: Merge, target: Path, places: Sequence[str]) -> Plan:
    """The plan of a merge that was recorded, from sources found in ``places``. Headers only.

    Raises NotFoundError, FormatError, VerificationError.
    """
    return plan(merge.to(target), opened=lambda source, _: find(source, places), weights_only=True)


def find(source: Source, places: Sequence[str]) -> TensorSource:
    """The source in the first of the ``places`` that has it: a folder around it, or the source under any name.

    Places are paths or on the Hub, whose record of the sha256 is enough. Raises NotFoundError, VerificationError.
    """
    strangers = []
    for reference in _candidates(source.reference, [refs.parse(place, "source") for place in places]):
        found = open_reference(reference, "source", source.variant, pickles=True)
        if _is(found, source):
            return found
        if refs.name_of(found.path) == source.reference:
            strangers.append(reference)
    if strangers:
        raise VerificationError(
            f"{strangers[0]}: is not the {source.reference} that was merged: its sha256 differs",
            f"name the one with sha256 {(source.sha256 or '')[:12]}… by --source",
        )
    raise NotFoundError(f"source {source.reference!r} is not here", "name it, or the folder that it is in, by --source")


def _is(found: TensorSource, source: Source) -> bool:
    """By its hash; where none was recorded, by its name: the comparison of the merges then tells."""
    if source.sha256 is None:
        return refs.name_of(found.path) == source.reference
    return sha256_of(found.files, known=found.sha256, reread=True) == source.sha256


def _candidates(name: str, places: Sequence[refs.Reference]) -> Iterator[str]:
    """By name first: others are hashed only where that fails."""
    others = []
    for place in places:
        if place.name == name:
            yield place.text
        elif place.kind == "local":
            if (place.path / name).exists():
                yield str(place.path / name)
            elif place.path.is_file():
                others.append(place.text)
        else:
            held = refs.repository(place, "source")
            if held.within(name) in held.files:
                yield f"{place.at(held.commit)}/{name}"
            elif held.name:
                others.append(place.text)
    yield from others
