"""The tree of errors is a promise: its exit codes, and the picture of it in the module's docstring."""

import inspect
import re

import pytest

from lcmmerge import errors
from lcmmerge.errors import IncompatibleError, LcmMergeError, LockError, OptionError, QualityError, RecipeError

CLASSES = [value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, LcmMergeError)]
CODES = {OptionError: 2, RecipeError: 2, IncompatibleError: 3, QualityError: 4, LockError: 5}


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_carries_message_hint_and_exit_code(kind: type[LcmMergeError]) -> None:
    error = kind("base.safetensors: truncated", "download it again")
    assert (error.message, error.hint, str(error)) == (
        "base.safetensors: truncated",
        "download it again",
        "base.safetensors: truncated",
    )
    assert kind("only a message").hint == ""
    assert error.exit_code == next((code for base, code in CODES.items() if isinstance(error, base)), 1)


def test_the_docstring_draws_the_tree() -> None:
    """Each class stands below its base, one step (4 columns) to the right of it, and has a description."""
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"    ([ │├└─]*)(\w+Error)  +\S", line):
            depth = len(found[1]) // 4
            path[depth:] = [found[2]]
            drawn[found[2]] = path[depth - 1] if depth else "Exception"
    assert drawn == {kind.__name__: kind.__base__.__name__ for kind in CLASSES}
