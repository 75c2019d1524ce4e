"""Which encoding each parameter has in a published file of the same base: what ``--like`` takes from its header."""

from __future__ import annotations

from lcmmerge.archs import Model, Parameter, identify
from lcmmerge.errors import IncompatibleError, ShapeMismatchError
from lcmmerge.tensors import TensorSource
from lcmmerge.tensors.encodings import encodings


def encodings_like(source: TensorSource, base: Model) -> dict[str, str]:
    """Canonical parameter → its encoding's name; of those that both have, and that are numbers.

    Raises UnknownArchitectureError, IncompatibleError for another base or an encoding that is only read,
    ShapeMismatchError for another size.
    """
    like = identify(source)
    if like.arch.name != base.arch.name:
        what = f"{source.path}: is {like.arch.title}, the base is {base.arch.title}"
        raise IncompatibleError(what, "give --like a file of the same base")
    names = {encoding: name for name, encoding in encodings().items()}
    found = {}
    for name, parameter in base.parameters.items():
        theirs = like.parameters.get(name)
        if theirs is None or not theirs.info.dtype.floating:
            continue
        _check_shape(source, parameter, theirs)
        encoding = theirs.info.encoding
        if encoding not in names:
            what = f"{source.path}: {theirs.info.name} is in {encoding.title}, which is only read"
            raise IncompatibleError(what, "give --like another file, or choose an --encoding")
        found[name] = names[encoding]
    return found


def _check_shape(source: TensorSource, parameter: Parameter, theirs: Parameter) -> None:
    if theirs.shape != parameter.shape:
        what = f"{source.path}: {parameter.name} is {list(theirs.shape)}, the base's {list(parameter.shape)}"
        raise ShapeMismatchError(what, "give --like a file of a base of this size")
