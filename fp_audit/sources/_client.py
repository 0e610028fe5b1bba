"""The ``huggingface_hub`` client as the hub source uses it: three calls, and errors of one line.

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

from fp_audit.errors import UnavailableTarget

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import ModelInfo

logger = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

TIMEOUT = 30.0
"""Seconds that a listing may take; downloads have the client's own limits."""
PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further try to list, where the hub does not say how long to wait."""
LONGEST_PAUSE = 330.0
"""Rate limits are counted over 300 s; a hub that asks for more than this is not waited for."""
TRANSIENT = {408, 429, 500, 502, 503, 504}
"""Answers after which another try may succeed."""
MALFORMED = (ValueError, KeyError, TypeError)
"""What the client raises when the answer is not a hub's, a login page for example."""
_USED_UP = re.compile(r"\br=0\s*;\s*t=(\d+)")
_SECONDS = re.compile(r"(\d+)")
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def model_info(repo: str, revision: str | None) -> ModelInfo:
    """List one repository, with sizes and hashes. One request.

    Raises:
        UnavailableTarget: not found, not allowed, not reached.
    """
    with explained(f"{repo}@{revision}" if revision else repo, *MALFORMED):
        return _patiently(
            repo, lambda: _api().model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT)
        )


def models_of(org: str) -> list[str]:
    """Name the models of an account. One request for each 1,000 of them.

    Raises:
        UnavailableTarget: not allowed, not reached.
    """
    with explained(f"{org}/", *MALFORMED):
        return [model.id for model in _api().list_models(author=org)]


def commits_of(org: str) -> dict[str, str | None]:
    """Name the models of an account and their present commits (None where the hub does not tell).

    One request for each 1,000 of them.

    Raises:
        UnavailableTarget: not allowed, not reached.
    """
    with explained(f"{org}/", *MALFORMED):
        return {model.id: model.sha for model in _api().list_models(author=org, expand=["sha"])}


def download(repo: str, path: str, commit: str, folder: Path) -> None:
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
        _patiently(repo, lambda: api.hf_hub_download(repo, path, revision=commit, local_dir=folder, cache_dir=cache))


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
