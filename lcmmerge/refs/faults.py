"""What went wrong with the Hub, in one line of our own.

huggingface_hub's messages run over many lines, with request ids and links.
"""

from __future__ import annotations

import errno

from lcmmerge.errors import NotFoundError


def explained(error: Exception, what: str, repo: str) -> NotFoundError:
    """The cause and the cure; nothing of the request, so no token."""
    cause, cure = _said(error, repo)
    return NotFoundError(f"{what}: {cause}", cure)


def is_transport(error: Exception) -> bool:
    """No answer came, or not all of it: the base of such errors in httpx (huggingface_hub 1) and httpx2 (2)."""
    return any(base.__name__ == "TransportError" for base in type(error).__mro__)


def _said(error: Exception, repo: str) -> tuple[str, str]:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page, cache = f"{constants.ENDPOINT}/{repo}", constants.HF_HUB_CACHE
    match error:
        case OfflineModeIsEnabled():
            return "not in the cache, and HF_HUB_OFFLINE is set", "unset it, or name a local path"
        case GatedRepoError():
            return "its repository is gated", f"accept the terms at {page}, then `hf auth login`"
        case RepositoryNotFoundError():
            return "no such repository", "check its name; a private one needs `hf auth login`"
        case RevisionNotFoundError():
            return "no such revision", f"see {page}"
        case EntryNotFoundError():
            return "no such file in the repository", f"see {page}"
        case HfHubHTTPError():
            return _answered(error.response.status_code)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return f"no space is left for it in {cache}", "free some, or set HF_HOME to another disk"
        case OSError(errno=int(), strerror=str(reason)):
            return f"cannot be kept in {cache} ({reason})", "set HF_HOME to a folder that you may write to"
        case OSError():  # huggingface_hub's, when fewer bytes came than were announced
            return "its download was cut short", "try again"
        case _ if is_transport(error):
            cause = f"not in the cache, and {constants.ENDPOINT} cannot be reached ({type(error).__name__})"
            return cause, "check the network and HF_ENDPOINT, or name a local path"
        case _:
            return f"cannot be fetched ({type(error).__name__})", "try again, or name a local path"


def _answered(status: int) -> tuple[str, str]:
    if status in (401, 403):
        return f"the Hub denies access ({status})", "check the token: `hf auth whoami`, `hf auth login`"
    if status == 429:
        return "the Hub limits the rate of requests (429)", "wait a few minutes; `hf auth login` raises the limit"
    return f"the Hub fails ({status})", "try again later, or name a local path"
