"""Why the hub gave nothing, in words: one sentence and the remedy for each of its answers."""

from __future__ import annotations

import queue
import socket
import threading
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from .names import HubName

# Seconds for the name and the first packet. A resolver that never answers would cost many, which no option shortens.
_PATIENCE = 1.5
LOGIN = "hf auth login"


@dataclass(frozen=True)
class Reason:
    """Attributes: what was wrong, a sentence; remedy, another one or nothing."""

    what: str
    remedy: str


def unreachable(endpoint: str) -> str | None:
    """Why no connection to the hub, or to the proxy before it, can be made; None where one can. Sends nothing."""
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            socket.create_connection(_first_hop(endpoint), _PATIENCE).close()
        except (OSError, ValueError) as error:
            answers.put(getattr(error, "strerror", None) or str(error))
        else:
            answers.put(None)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=_PATIENCE)
    except queue.Empty:
        return f"no answer within {_PATIENCE} s"


def _first_hop(endpoint: str) -> tuple[str, int]:
    parts = urlsplit(endpoint)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(parts.netloc):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def of_download(error: BaseException, name: HubName, endpoint: str) -> Reason:
    """Why a model was not downloaded."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    page, error = f"{endpoint}/{name.id}", _first(error)
    if isinstance(error, GatedRepoError):
        what = "The model is gated: its authors give access to those who ask for it."
        return Reason(what, f"Ask for access on {page}, then log in with a token of that account: {LOGIN}")
    if isinstance(error, RevisionNotFoundError):
        return Reason(f"The model has no revision {name.revision or 'main'}.", f"Its revisions: {page}/tree/main")
    status = _status(error)
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return Reason("The hub does not accept the token.", f"Log in again ({LOGIN}), or correct HF_TOKEN.")
    if isinstance(error, RepositoryNotFoundError):
        remedy = f"Check the name; a private model wants a token of an account that may read it: {LOGIN}"
        return Reason("There is no such directory, and no such model on the hub that may be read.", remedy)
    if isinstance(error, HfHubHTTPError):
        return Reason(f"The hub answers {told(error)}.", f"Try again later; {page} may say more.")
    what = f"The download failed: {told(error)}."
    return Reason(what, "Run it again: files that are here are kept, and nothing is downloaded twice.")


def of_upload(error: BaseException, name: HubName) -> Reason:
    """Why nothing was uploaded; the remedy is what has to happen before it is tried again, or nothing."""
    from huggingface_hub.errors import LocalTokenNotFoundError

    error = _first(error)
    status = _status(error)
    if isinstance(error, LocalTokenNotFoundError):
        return Reason("Nobody is logged in to the hub here.", f"Log in with a token that may write: {LOGIN}")
    if status == 401:
        return Reason("The hub does not accept the token.", f"Log in again ({LOGIN}), or correct HF_TOKEN.")
    if status in (403, 404):
        owner = name.id.partition("/")[0]
        what = f"The hub refuses it: {told(error)}."
        return Reason(what, f"Log in with a token that may write to {owner}'s models ({LOGIN}).")
    if status == 412:
        return Reason("Somebody else has changed the model in the meantime.", "Look at what is there.")
    if status is not None:
        return Reason(f"The hub answers {told(error)}.", "")
    return Reason(f"The upload failed: {told(error)}.", "")


def told(error: BaseException) -> str:
    """What an error says, in one line: the hub's own words where it sent some."""
    error = _first(error)
    status = _status(error)
    said = getattr(error, "server_message", None) or getattr(error, "strerror", None)
    if status is not None:
        response: Any = getattr(error, "response", None)
        said = said or getattr(response, "reason_phrase", None) or getattr(response, "reason", "")
        return f"{status}: {_line(said)}" if said else str(status)
    return _line(said or error or type(error).__name__)


def _line(said: object) -> str:
    return " ".join(str(said).split()).rstrip(".")


def _first(error: BaseException) -> BaseException:
    """What a thread of the library met, or what kept it from asking the hub, where it raised another error for that."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while error.__cause__ is not None and (type(error) is RuntimeError or isinstance(error, LocalEntryNotFoundError)):
        error = error.__cause__
    return error


def _status(error: BaseException) -> int | None:
    """The number of the hub's answer; None where there was none."""
    found = getattr(getattr(error, "response", None), "status_code", None)
    return found if isinstance(found, int) else None
