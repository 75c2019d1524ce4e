"""What went wrong with the Hub, in one line of our own.

huggingface_hub's messages run over many lines, with request ids and links.
"""

from __future__ import annotations

import errno
from urllib.parse import urlsplit

from lcmmerge.errors import NotFoundError, OutputError
from lcmmerge.refs.guard import BadAnswerError

DOUBT = "try again; if it stays so, check HF_ENDPOINT"
Said = tuple[str, str]  # the cause, the cure


def explained(error: Exception, what: str, repo: str) -> NotFoundError:
    """Why something was not fetched; nothing of the request, so no token."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # for which the cache was looked into
    cause, cure = _answered(error, repo) or _not_fetched(error)
    return NotFoundError(f"{what}: {cause}", cure)


def unpublished(error: Exception, what: str, repo: str) -> OutputError:
    """The same of an upload."""
    cause, cure = _answered(error, repo) or _not_sent(error)
    return OutputError(f"{what}: {cause}", cure)


def page(repo: str) -> str:
    """The repository's, at the endpoint without the password that HF_ENDPOINT may have."""
    return f"{_endpoint()}/{repo}"


def _endpoint() -> str:
    from huggingface_hub import constants

    return harmless(constants.ENDPOINT)


def harmless(url: str) -> str:
    """Without a name and a password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def is_transport(error: Exception) -> bool:
    """No answer came, or not all of it: the base of such errors in httpx (huggingface_hub 1) and httpx2 (2)."""
    return any(base.__name__ == "TransportError" for base in type(error).__mro__)


def _answered(error: Exception, repo: str) -> Said | None:
    """What the Hub said, if it said anything."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        FileMetadataError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match error:
        case BadAnswerError():
            return str(error), DOUBT
        case FileMetadataError():
            return "the server does not say which file it has", DOUBT
        case GatedRepoError():
            return "its repository is gated", f"accept the terms at {page(repo)}, then `hf auth login`"
        case RepositoryNotFoundError():
            return "no such repository", "check its name; a private one needs `hf auth login`"
        case RevisionNotFoundError():
            return "no such revision", f"see {page(repo)}"
        case EntryNotFoundError():
            return "no such file in the repository", f"see {page(repo)}"
        case HfHubHTTPError():
            return _status(error.response.status_code)
        case _:
            return None


def _status(status: int) -> Said:
    if status in (401, 403):
        return f"the Hub denies access ({status})", "check the token: `hf auth whoami`, `hf auth login`"
    if status == 429:
        return "the Hub limits the rate of requests (429)", "wait a few minutes; `hf auth login` raises the limit"
    return f"the Hub fails ({status})", "try again later"


def _not_fetched(error: Exception) -> Said:
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    cache = constants.HF_HUB_CACHE
    match error:
        case OfflineModeIsEnabled():
            return "not in the cache, and HF_HUB_OFFLINE is set", "unset it, or name a local path"
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return f"no space is left for it in {cache}", "free some, or set HF_HOME to another disk"
        case OSError(errno=int(), strerror=str(reason)):
            return f"cannot be kept in {cache} ({reason})", "set HF_HOME to a folder that you may write to"
        case OSError():  # huggingface_hub's, when fewer bytes came than were announced
            return "its download was cut short", "try again"
        case _ if is_transport(error):
            cause = f"not in the cache, and {_unreached(error)}"
            return cause, "check the network and HF_ENDPOINT, or name a local path"
        case _:
            return f"cannot be fetched ({type(error).__name__})", "try again, or name a local path"


def _not_sent(error: Exception) -> Said:
    from huggingface_hub.errors import OfflineModeIsEnabled

    again = "the outputs are kept: `lcmmerge run --publish` again sends what is not there yet"
    match error:
        case OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set", "unset it"
        case OSError(errno=int(), strerror=str(reason)):
            return f"an output cannot be read ({reason})", "run the recipe again"
        case _ if is_transport(error):
            return _unreached(error), f"check the network and HF_ENDPOINT; {again}"
        case _:
            return f"the upload failed ({type(error).__name__})", again


def _unreached(error: Exception) -> str:
    return f"{_endpoint()} cannot be reached ({type(error).__name__})"
