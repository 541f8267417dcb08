"""Trying again after failures of the network: which errors are transient, and how long to wait."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

logger = logging.getLogger(__name__)

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
OPENING_PAUSES = PAUSES[:3]  # the user waits for the answer, and the name may be mistyped
LONGEST_PAUSE = 300.0
ADVICE = "Check the network and resume from the last checkpoint"
sleep = time.sleep

_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
# of the HTTP clients that huggingface_hub (httpx, httpx2) and fsspec (aiohttp) may use; none is imported for its names
_TRANSIENT_CLASSES = frozenset({"TransportError", "ClientConnectionError", "ClientPayloadError"})
Result = TypeVar("Result")


def is_transient(error: BaseException) -> bool:
    """Decides whether an error, or one of its causes, comes from a network or server that may soon work again.

    Such are lost connections, timeouts, and the HTTP status codes 408, 425, 429 and 5xx.
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


def _requested_pause(error: BaseException) -> float:
    """Returns the seconds that a server asks to wait in `Retry-After`; 0 where it does not."""
    for link in _causes(error):
        value = getattr(getattr(link, "response", None), "headers", {}).get("Retry-After", "")
        if value.isdigit():
            return float(value)
    return 0.0


def _in_short(error: BaseException) -> str:
    """Describes an error in part of a line: in a server's own words where one answered."""
    server = [link for link in _causes(error) if isinstance(link, HfHubHTTPError)]
    if not server:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    status = getattr(getattr(server[-1], "response", None), "status_code", "")
    message = getattr(server[-1], "server_message", None) or str(server[-1]).partition("\n")[0]
    return f"{type(error).__name__}: {status} {' '.join(message.split())}"


class Backoff:
    """Tries an action again after transient failures, and waits longer after each failure in a row.

    Args:
        what (`str`): what is being done, for the log and the error ("reading unit 3 of user/photos").
        pauses (`tuple[float, ...]`, *optional*): seconds to wait after the first failure, the second, ...; longer where
            the server asks for it (`Retry-After`), up to `LONGEST_PAUSE`.
        advice (`str`, *optional*): what the user can do after the last failure.
    """

    def __init__(self, what: str, pauses: tuple[float, ...] = PAUSES, advice: str = ADVICE) -> None:
        self.what, self.pauses, self.advice = what, pauses, advice
        self._attempts = Retrying(
            # Ctrl-C while a failure is handled has that failure as its context, and is none
            retry=retry_if_exception(lambda error: isinstance(error, Exception) and is_transient(error)),
            stop=stop_after_attempt(len(pauses) + 1),
            wait=self._pause,
            before_sleep=self._log,
            sleep=lambda seconds: sleep(seconds),
            retry_error_callback=self._give_up,
        )

    def __call__(self, action: Callable[[], Result]) -> Result:
        """Calls `action` until it succeeds, at most `len(pauses) + 1` times, and returns what it returns.

        Raises:
            ConnectionError: when every attempt failed with a transient error; others are raised at once, as they are.
        """
        return self._attempts(action)

    def _pause(self, state: RetryCallState) -> float:
        if state.attempt_number > len(self.pauses):
            return 0.0
        return max(self.pauses[state.attempt_number - 1], min(_requested_pause(_failure(state)), LONGEST_PAUSE))

    def _log(self, state: RetryCallState) -> None:
        pause = state.next_action.sleep if state.next_action else 0.0
        logger.warning(
            "%s failed (%s); attempt %d of %d follows in %g s",
            self.what, _in_short(_failure(state)), state.attempt_number + 1, len(self.pauses) + 1, pause,
        )  # fmt: skip

    def _give_up(self, state: RetryCallState) -> NoReturn:
        error, attempts = _failure(state), state.attempt_number
        times = f"{attempts} times in a row, the last time with " if attempts > 1 else "with "
        raise ConnectionError(f"{self.what} failed {times}{_in_short(error)}. {self.advice}") from error


def _failure(state: RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome else None
    assert error is not None, "tenacity asks only after a failure"
    return error


def retry(what: str, action: Callable[[], Result], pauses: tuple[float, ...] = PAUSES, advice: str = ADVICE) -> Result:
    """Calls `action` once through a [`Backoff`] of its own; arguments, result and errors are as there."""
    return Backoff(what, pauses, advice)(action)
