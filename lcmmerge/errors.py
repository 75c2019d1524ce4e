"""Everything that can go wrong, as one tree.

    LcmMergeError                exit 1
    ├── NotFoundError                 a file, folder or Hub reference is not there
    ├── FormatError                   a file is not what it claims to be
    │   └── UnsafePickleError         a pickle asks for more than tensors
    ├── NumericError                  NaN, Inf, or an overflow of the output dtype
    ├── OutputError                   the result cannot be written
    ├── VerificationError             a recomputed merge differs from the file
    ├── CrashError                    a process of others' native code ended without an answer
    ├── OptionError              exit 2  an option is malformed, or argues with another
    ├── RecipeError              exit 2  a recipe asks for what makes no sense
    ├── QualityError             exit 4  a result misses the recipe's checks
    ├── LockError                exit 5  the sources are not those of the lock
    └── IncompatibleError        exit 3
        ├── UnknownArchitectureError  a checkpoint of no architecture that we know
        ├── UnmatchedKeysError        an adapter's key has no home in the base
        ├── ShapeMismatchError        it has a home, and does not fit
        ├── NoEffectError             nothing would change
        └── AlreadyFusedError         the base records that it holds the adapter

A message says what is wrong, a hint what to do about it. Both are one line. Where several things are wrong at once,
``details`` has a line for each.
"""

from __future__ import annotations

from collections.abc import Sequence


class LcmMergeError(Exception):
    """Base of all errors that are the user's to mend; ``exit_code`` is the command's exit status."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "", details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = tuple(details)


class NotFoundError(LcmMergeError):
    """A file, a repository or a name that is not there."""


class FormatError(LcmMergeError):
    """A file that is damaged, or not of the kind that was wanted."""


class UnsafePickleError(FormatError):
    """A pickle that would run code."""


class NumericError(LcmMergeError):
    """NaN, Inf or an overflow, in what is read or would be written."""


class OutputError(LcmMergeError):
    """An output that cannot be written, or would replace what is not ours."""


class VerificationError(LcmMergeError):
    """A file that is not what was recorded of it."""


class CrashError(LcmMergeError):
    """A process of others' native code that ended without an answer."""


class OptionError(LcmMergeError):
    """An option's value that makes no sense."""

    exit_code = 2


class RecipeError(LcmMergeError):
    """A recipe with faults."""

    exit_code = 2


class QualityError(LcmMergeError):
    """A threshold that was missed."""

    exit_code = 4


class LockError(LcmMergeError):
    """A source that is not the one in the lock."""

    exit_code = 5


class IncompatibleError(LcmMergeError):
    """Sources that do not fit each other."""

    exit_code = 3


class UnknownArchitectureError(IncompatibleError):
    """A checkpoint of no architecture that is known."""


class UnmatchedKeysError(IncompatibleError):
    """Tensors of an adapter that find no home in the base."""


class ShapeMismatchError(IncompatibleError):
    """Tensors of an adapter whose shapes do not fit the base."""


class NoEffectError(IncompatibleError):
    """A term that would change nothing."""


class AlreadyFusedError(IncompatibleError):
    """An adapter that the base already holds."""
