"""Patience with the network: what is worth trying again, and how long to wait."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

logger = logging.getLogger(__name__)

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
OPENING_PAUSES = PAUSES[:3]  # somebody waits in front of the screen, and the name may be mistyped
LONGEST_PAUSE = 300.0
ADVICE = "Check the network and resume from the last checkpoint"
sleep = time.sleep

_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
# of the HTTP clients that huggingface_hub (httpx, httpx2) and fsspec (aiohttp) may use; none is imported for its names
_TRANSIENT_CLASSES = frozenset({"TransportError", "ClientConnectionError", "ClientPayloadError"})
_Result = TypeVar("_Result")


def is_transient(error: BaseException) -> bool:
    """Tells whether an error, or one that caused it, comes from a network or server that may work again in a moment.

    Args:
        error (`BaseException`): what was raised.

    Returns:
        `bool`: True for lost connections, timeouts, and the HTTP states 408, 425, 429 and 5xx.
    """
    for link in _causes(error):
        if isinstance(link, OfflineModeIsEnabled):
            return False
        if isinstance(link, HfHubHTTPError):
            response = getattr(link, "response", None)
            return response is None or response.status_code in _TRANSIENT_STATUS
        if isinstance(link, (ConnectionError, TimeoutError)):
            return True
        if not _TRANSIENT_CLASSES.isdisjoint(kind.__name__ for kind in type(link).__mro__):
            return True
    return False


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _asked_pause(error: BaseException) -> float:
    """Seconds that a server asked to wait in `Retry-After`; 0 where it did not."""
    for link in _causes(error):
        value = getattr(getattr(link, "response", None), "headers", {}).get("Retry-After", "")
        if value.isdigit():
            return float(value)
    return 0.0


def _in_short(error: BaseException) -> str:
    """An error in part of a line: the deepest of a server, as it put it."""
    server = [link for link in _causes(error) if isinstance(link, HfHubHTTPError)]
    if not server:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    status = getattr(getattr(server[-1], "response", None), "status_code", "")
    said = getattr(server[-1], "server_message", None) or str(server[-1]).partition("\n")[0]
    return f"{type(error).__name__}: {status} {' '.join(said.split())}"


class Patience:
    """Counts the failures in a row of one thing and waits longer after each.

    Args:
        what (`str`): what is being done, for the log and the error ("reading unit 3 of user/photos").
        pauses (`tuple[float, ...]`, *optional*): seconds to wait after the first failure, the second, ...; longer where
            the server asks for it (`Retry-After`), up to `LONGEST_PAUSE`.
        advice (`str`, *optional*): what to do when it was all in vain.
    """

    def __init__(self, what: str, pauses: tuple[float, ...] = PAUSES, advice: str = ADVICE) -> None:
        self.what = what
        self.pauses = pauses
        self.advice = advice
        self.failures = 0

    def wait(self, error: BaseException) -> None:
        """Sleeps before the next attempt, after 1, 2, 4, ... seconds.

        Args:
            error (`BaseException`): the failure; raised again as it is if it is not a transient one.

        Raises:
            ConnectionError: when the pauses are used up.
        """
        if not is_transient(error):
            raise error
        if self.failures == len(self.pauses):
            times = f"{self.failures + 1} times in a row, the last time with " if self.failures else "with "
            raise ConnectionError(f"{self.what} failed {times}{_in_short(error)}. {self.advice}") from error
        pause = max(self.pauses[self.failures], min(_asked_pause(error), LONGEST_PAUSE))
        self.failures += 1
        logger.warning(
            "%s failed (%s); attempt %d of %d follows in %g s",
            self.what, _in_short(error), self.failures + 1, len(self.pauses) + 1, pause,
        )  # fmt: skip
        sleep(pause)

    def succeeded(self) -> None:
        """Starts the count again."""
        self.failures = 0


def with_patience(
    what: str, action: Callable[[], _Result], pauses: tuple[float, ...] = PAUSES, advice: str = ADVICE
) -> _Result:
    """Calls `action` until it succeeds, at most `len(pauses) + 1` times.

    Args:
        what (`str`): what is being done, for the log and the error.
        action (`Callable`): takes nothing; may be called several times.
        pauses (`tuple[float, ...]`, *optional*), advice (`str`, *optional*): as in [`Patience`].

    Returns:
        What `action` returns.

    Raises:
        ConnectionError: when every attempt failed with a transient error. Other errors are raised at once.
    """
    patience = Patience(what, pauses, advice)
    while True:
        try:
            return action()
        except Exception as error:
            patience.wait(error)
