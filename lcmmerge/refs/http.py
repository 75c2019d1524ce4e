"""Requests to the Hub, by huggingface_hub's own session: its token, proxies and certificates."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from lcmmerge.errors import NotFoundError
from lcmmerge.refs.faults import explained, is_transport
from lcmmerge.refs.files import parse_object
from lcmmerge.refs.guard import WHOLE, BadAnswerError, guarded, time_for

RETRIES = 2
FIRST = 1 << 16  # bytes of a file's first request: all of a small safetensors header
LISTING = 64 << 20  # bytes of what the Hub says of a repository
CONNECTIONS = 16
NO_LISTING = "the server's answer is not the Hub's record of a repository"


def model_info(repo: str, revision: str | None) -> dict[str, Any]:
    """What the Hub says of a model at a revision: ``sha``, ``siblings`` with sizes and LFS records, ``cardData``.

    API: https://huggingface.co/docs/hub/api. Raises BadAnswerError, what huggingface_hub raises, and its HTTP library.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
        http_backoff,
    )

    with guarded(LISTING, WHOLE):
        response = http_backoff(
            "GET",
            f"{constants.ENDPOINT}/api/models/{repo}/revision/{quote(revision or constants.DEFAULT_REVISION, safe='')}",
            params={"blobs": True},
            headers=build_hf_headers(),
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
            max_retries=RETRIES,
            base_wait_time=0.5,
            retry_on_exceptions=(),
        )
        hf_raise_for_status(response)
    try:
        return parse_object(response.content)
    except ValueError:
        raise BadAnswerError(NO_LISTING) from None


class RemoteFile:
    """A file of ``size`` bytes in a repository, read in parts, of which each is asked for once."""

    def __init__(self, what: str, repo: str, name: str, commit: str, size: int) -> None:
        from huggingface_hub import hf_hub_url

        self._what, self._repo = what, repo
        self._location = hf_hub_url(repo, name, revision=commit)  # later what that redirects to
        self._known: dict[tuple[int, int], bytes] = {}
        self._head = self._fetched(0, min(FIRST, size))

    def read(self, offset: int, nbytes: int) -> bytes:
        """Raises NotFoundError."""
        head = self._head[offset : offset + nbytes]
        part = (offset + len(head), nbytes - len(head))
        if part[1] and part not in self._known:
            self._known[part] = self._fetched(*part)
        return head + self._known.get(part, b"")

    def prefetch(self, parts: Iterable[tuple[int, int]]) -> None:
        """Read many small parts at once: (offset, number of bytes)."""
        with ThreadPoolExecutor(CONNECTIONS, "lcmmerge-hub") as pool:
            list(pool.map(lambda part: self.read(*part), parts))

    def _fetched(self, offset: int, nbytes: int) -> bytes:
        try:
            with guarded(nbytes, time_for(nbytes)):
                return self._tried(offset, nbytes)
        except BadAnswerError as error:  # of all tries together: it took too long
            raise explained(error, self._what, self._repo) from error

    def _tried(self, offset: int, nbytes: int) -> bytes:
        for attempt in range(RETRIES + 1):
            try:
                data = self._request(offset, nbytes)
            except Exception as error:  # the Hub client's errors and its HTTP library's share no base
                if attempt == RETRIES or not is_transport(error):
                    raise explained(error, self._what, self._repo) from error
                continue
            if len(data) == nbytes:
                return data
        raise NotFoundError(f"{self._what}: the server gives no part of a file by itself", "download the file first")

    def _request(self, offset: int, nbytes: int) -> bytes:
        """Nothing where the server would send the whole file."""
        from huggingface_hub import constants
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            hf_raise_for_status,
            http_stream_backoff,
        )

        with http_stream_backoff(
            "GET",
            self._location,
            headers=build_hf_headers() | {"Range": f"bytes={offset}-{offset + nbytes - 1}"},
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            max_retries=RETRIES,
            base_wait_time=0.5,
            retry_on_exceptions=(),
        ) as response:
            hf_raise_for_status(response)
            self._location = str(response.url)
            return bytes(response.read()) if response.status_code == 206 else b""
