"""The ``huggingface_hub`` client as the hub source uses it: four calls, and errors of one line.

Importing the client takes .4 s, so it happens inside the calls. It reads ``HF_ENDPOINT`` and the place of its
cache at import; both are passed to it here at each call, so that they may also be set later. Its telemetry
(it asks the hub for a list of coding agents, and tells the version of torch) is switched off. It finds the
user's token itself, where there is one; nothing here sees or keeps it.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from fp_audit.errors import UnavailableTarget
from fp_audit.sources._ranged import Tally

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import ModelInfo

_Answer = TypeVar("_Answer")

logger = logging.getLogger(__name__)

TIMEOUT = 30.0
"""Seconds that a listing or a part of a file may take; downloads have the client's own limits."""
PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further try to list or to read a part, where the hub does not say how long to wait."""
LONGEST_PAUSE = 330.0
"""Rate limits are counted over 300 s; a hub that asks for more than this is not waited for."""
TRANSIENT = {408, 429, 500, 502, 503, 504}
"""Answers after which another try may succeed."""
MALFORMED = (ValueError, KeyError, TypeError)
"""What the client raises when the answer is not a hub's, a login page for example."""
_USED_UP = re.compile(r"\br=0\s*;\s*t=(\d+)")
_SECONDS = re.compile(r"(\d+)")
DOWNLOAD = 2
"""Requests of one download: where the content lies, and the content; more where it comes in chunks (Xet)."""
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def model_info(repo: str, revision: str | None, tally: Tally) -> ModelInfo:
    """List one repository, with sizes, hashes and what its card states. One request.

    Raises:
        UnavailableTarget: not found, not allowed, not reached.
    """

    def ask() -> ModelInfo:
        tally.requests += 1
        return _api().model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT)

    with explained(f"{repo}@{revision}" if revision else repo, *MALFORMED):
        return _patiently(repo, ask)


def commits_of(org: str) -> dict[str, str | None]:
    """Name the models of an account and their present commits (None where the hub does not tell).

    One request for each 1,000 of them.

    Raises:
        UnavailableTarget: not allowed, not reached.
    """
    with explained(f"{org}/", *MALFORMED):
        return {model.id: model.sha for model in _api().list_models(author=org, expand=["sha"])}


def download(repo: str, path: str, commit: str, folder: Path, tally: Tally) -> None:
    """Download a file of a commit to ``folder / path``. Two requests.

    The client itself waits for rate limits and retries a few times what breaks off; what fails then is tried again
    here, as for listings.

    Raises:
        UnavailableTarget: not found, not allowed, not reached, no room.
    """
    api = _api()
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty() and "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ:
        disable_progress_bars()
    with explained(f"{repo}: {path!r}", *MALFORMED, RuntimeError):
        cache = folder / ".no-cache"

        def bring() -> None:
            tally.requests += DOWNLOAD
            api.hf_hub_download(repo, path, revision=commit, local_dir=folder, cache_dir=cache)

        _patiently(repo, bring)
        tally.bytes += (folder / path).stat().st_size


class Part:
    """Reads parts of one file of a commit, each with one request.

    The first is answered by a redirect where the content lies elsewhere; later ones go there at once. What arrives
    cannot be checked against the hash of the file: the hub is trusted to send what it listed for the commit.
    """

    def __init__(self, repo: str, path: str, commit: str, size: int, tally: Tally) -> None:
        _no_telemetry()
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        self._what, self._size, self._tally = f"{repo}: {path!r}", size, tally
        self._address = hf_hub_url(repo, path, revision=commit, endpoint=_endpoint())
        self._headers = {**build_hf_headers(), "Accept-Encoding": "identity"}

    def read(self, begin: int, end: int) -> bytes:
        """Return the bytes from ``begin`` to ``end``.

        Raises:
            UnavailableTarget: not found, not allowed, not reached, not what was listed.
        """
        if begin == end:
            return b""
        with explained(self._what, *MALFORMED):
            return _patiently(self._what, lambda: self._ask(begin, end))

    def _ask(self, begin: int, end: int) -> bytes:
        from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]

        headers = {**self._headers, "Range": f"bytes={begin}-{end - 1}"}
        self._tally.requests += 1
        with get_session().stream("GET", self._address, headers=headers, timeout=TIMEOUT) as response:
            self._tally.requests += len(response.history)
            hf_raise_for_status(response)
            content = bytearray()
            if self._is_asked(response, begin, end):
                for block in response.iter_raw():
                    content += block
                    if len(content) > end - begin:
                        break
            self._tally.bytes += len(content)
            if len(content) != end - begin:
                raise UnavailableTarget(f"{self._what}: bytes {begin:,} to {end:,} were asked for, and others came")
            self._remember(str(response.url))
        return bytes(content)

    def _is_asked(self, response: httpx2.Response, begin: int, end: int) -> bool:
        whole = response.status_code == 200 and (begin, end) == (0, self._size)
        return whole or response.headers.get("Content-Range") == f"bytes {begin}-{end - 1}/{self._size}"

    def _remember(self, address: str) -> None:
        """Go to where the content lies at once the next time; the token is for the hub alone."""
        if urlsplit(address).netloc != urlsplit(self._address).netloc:
            self._headers = {name: text for name, text in self._headers.items() if name.lower() != "authorization"}
        self._address = address


def cache_folder() -> Path:
    """Return the client's own cache."""
    _no_telemetry()
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(os.environ.get("HF_HUB_CACHE") or HF_HUB_CACHE).expanduser()


def is_offline() -> bool:
    """Tell whether the client itself was told to stay offline (``HF_HUB_OFFLINE``)."""
    _no_telemetry()
    from huggingface_hub import is_offline_mode

    return is_offline_mode()


def _api() -> HfApi:
    _no_telemetry()
    from huggingface_hub import HfApi

    return HfApi(endpoint=_endpoint())


def _no_telemetry() -> None:
    """Must come before each import of the client."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _patiently(repo: str, ask: Callable[[], _Answer]) -> _Answer:
    """Ask, and ask again after a pause as long as another try may succeed."""
    import httpx2
    from huggingface_hub.errors import LocalEntryNotFoundError

    for pause in PAUSES:
        try:
            return ask()
        except (httpx2.HTTPError, LocalEntryNotFoundError) as error:
            wait = _wait(error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error, pause)
            if wait is None:
                raise
            logger.warning("%s: %s; next try in %.0f s", repo, _first_line(error), wait)
        time.sleep(wait)
    return ask()


def _wait(error: BaseException | None, pause: float) -> float | None:
    """Return the seconds to wait before the next try, None if there should be none."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.ReadTimeout)):
        return pause
    if not isinstance(error, HfHubHTTPError) or error.response.status_code not in TRANSIENT:
        return None
    told = error.response.headers
    asked = _USED_UP.search(told.get("RateLimit", "")) or _SECONDS.fullmatch(told.get("Retry-After", ""))
    pause = float(asked[1]) if asked else pause
    return pause if pause <= LONGEST_PAUSE else None


@contextmanager
def explained(what: str, *more: type[Exception]) -> Iterator[None]:
    """Turn errors of the network, the disk and the kinds in ``more`` into one line that says what to do."""
    import httpx2

    kinds: tuple[type[Exception], ...] = (httpx2.HTTPError, OSError, *more)
    try:
        yield
    except kinds as error:
        raise UnavailableTarget(f"{what}: {_explain(error)}") from error


def _explain(error: BaseException) -> str:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return _explain(error.__cause__)
    if isinstance(error, HfHubHTTPError):
        return _explain_answer(error)
    if isinstance(error, httpx2.HTTPError):
        return (
            f"cannot reach {_endpoint()} ({type(error).__name__}): check the network and HF_ENDPOINT, "
            "or use --offline for what was scanned before"
        )
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "the disk is full: make room, or let FP_AUDIT_HOME name a folder on a larger disk"
        return f"cannot be kept on this disk: {error.strerror or _first_line(error)}"
    return f"{_endpoint()} did not answer as a hub does ({_first_line(error)}): check HF_ENDPOINT"


def _explain_answer(error: HfHubHTTPError) -> str:
    from huggingface_hub import errors

    status = error.response.status_code
    reasons = {
        errors.GatedRepoError: f"gated, needs access: accept its terms on the hub, then {LOG_IN}",
        errors.RepositoryNotFoundError: f"no such model on {_endpoint()}, and no such local path either; "
        f"if it is private, it needs a token: {LOG_IN}",
        errors.RevisionNotFoundError: "the hub has no such revision",
        errors.RemoteEntryNotFoundError: "the hub has no such file at this commit",
    }
    for kind, reason in reasons.items():  # a gated repository is also one that was not found
        if isinstance(error, kind):
            return reason
    if status in (401, 403):
        return f"the hub refuses access ({status}), a token that has it is needed: {LOG_IN}"
    if status == 429:
        return f"the hub's rate limit is used up (429): try again in 5 minutes, or {LOG_IN} for a higher one"
    return f"the hub answers with an error ({status}): try again later"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
