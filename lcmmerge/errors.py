"""Everything that can go wrong, as one tree.

    LcmMergeError                exit 1
    ├── NotFoundError                 a file, folder or Hub reference is not there
    ├── FormatError                   a file is not what it claims to be
    │   └── UnsafePickleError         a pickle asks for more than tensors
    ├── NumericError                  NaN, Inf, or an overflow of the output dtype
    ├── OutputError                   the result cannot be written
    ├── VerificationError             a recomputed merge differs from the file
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
    pass


class FormatError(LcmMergeError):
    pass


class UnsafePickleError(FormatError):
    pass


class NumericError(LcmMergeError):
    pass


class OutputError(LcmMergeError):
    pass


class VerificationError(LcmMergeError):
    pass


class RecipeError(LcmMergeError):
    exit_code = 2


class QualityError(LcmMergeError):
    exit_code = 4


class LockError(LcmMergeError):
    exit_code = 5


class IncompatibleError(LcmMergeError):
    exit_code = 3


class UnknownArchitectureError(IncompatibleError):
    pass


class UnmatchedKeysError(IncompatibleError):
    pass


class ShapeMismatchError(IncompatibleError):
    pass


class NoEffectError(IncompatibleError):
    pass


class AlreadyFusedError(IncompatibleError):
    pass
