"""Transient failures of the network: what is tried again, how long is waited, and what is not."""

import itertools
import logging
import os
import signal
import threading
import time
from types import SimpleNamespace

import datasets
import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from hf_geossl.data import retries
from hf_geossl.data.retries import Backoff, is_transient, retry
from hf_geossl.data.streams import ImageStream
from tests.helpers.images import ROWS, encoded, first

FAILURES: list[int] = []


ANY = -1


def flaky_rows(spans: list[tuple[int, int]]):
    for number in itertools.chain.from_iterable(range(*span) for span in spans):
        if FAILURES and FAILURES[0] in (number, ANY):
            FAILURES.pop(0)
            raise ConnectionResetError("the server went away")
        yield {"image": {"bytes": encoded(number), "path": None}}


def flaky_stream() -> ImageStream:
    rows = datasets.IterableDataset.from_generator(flaky_rows, gen_kwargs={"spans": [(0, ROWS)]})
    return ImageStream.from_dataset(rows, shuffle_block=10)


def test_a_lost_connection_is_retried_at_the_exact_row_with_growing_pauses(monkeypatch, caplog):
    undisturbed = first(flaky_stream(), 2 * ROWS)
    pauses: list[float] = []
    monkeypatch.setattr(retries, "sleep", pauses.append)
    FAILURES[:] = [7, 7, 7, 15, 15, 20]
    with caplog.at_level(logging.WARNING):
        assert first(flaky_stream(), 2 * ROWS) == undisturbed
    assert pauses == [1.0, 2.0, 4.0, 1.0, 2.0, 1.0]
    assert "ConnectionResetError: the server went away" in caplog.text


def test_a_connection_lost_for_good_ends_in_one_clear_error(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(retries, "sleep", pauses.append)
    FAILURES[:] = [ANY] * 100
    with pytest.raises(ConnectionError, match="failed 7 times in a row, the last time with ConnectionResetError"):
        first(flaky_stream(), 1)
    FAILURES.clear()
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]


def test_errors_of_the_program_are_not_retried(monkeypatch):
    monkeypatch.setattr(retries, "sleep", lambda pause: pytest.fail("waited"))
    for error in (ValueError("wrong"), FileNotFoundError("gone"), PermissionError("no")):
        assert not retries.is_transient(error)
        with pytest.raises(type(error)):
            retries.retry("reading", lambda error=error: (_ for _ in ()).throw(error))


class ServerError(HfHubHTTPError):
    """An answer of the Hub."""

    def __init__(self, status: int, **headers: str) -> None:
        Exception.__init__(self, f"{status} of the server")
        self.response = SimpleNamespace(status_code=status, headers=headers)
        self.server_message = "try later"


class Failing:
    """An action that raises its errors one after the other, and then returns 7."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return 7


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(retries, "sleep", waited.append)
    return waited


def test_what_is_transient_follows_from_the_error_and_its_causes() -> None:
    for status, expected in (
        (408, True),
        (425, True),
        (429, True),
        (500, True),
        (503, True),
        (404, False),
        (403, False),
    ):
        assert is_transient(ServerError(status)) is expected
    caused = ValueError("no such thing")
    caused.__cause__ = ConnectionResetError("gone")
    assert is_transient(caused)
    hidden = ValueError("no such thing")
    hidden.__context__, hidden.__suppress_context__ = ConnectionResetError("gone"), True
    assert not is_transient(hidden)
    assert is_transient(TimeoutError())
    assert is_transient(type("ConnectError", (type("TransportError", (Exception,), {}),), {})())  # of httpx and httpx2
    assert not is_transient(OfflineModeIsEnabled("offline"))
    loop = ValueError("a")
    loop.__cause__ = KeyError("b")
    loop.__cause__.__cause__ = loop
    assert not is_transient(loop)


def test_pauses_grow_and_the_server_may_ask_for_longer_ones(pauses, caplog) -> None:
    action = Failing(
        ConnectionError("a"), ServerError(429, **{"Retry-After": "20"}), ServerError(503, **{"Retry-After": "9999"}),
        ServerError(503, **{"Retry-After": "Fri, 27 Nov 2026 10:00:00 GMT"}),
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        assert retry("reading", action) == 7
    assert pauses == [1.0, 20.0, retries.LONGEST_PAUSE, 8.0]
    assert caplog.messages[:2] == [
        "reading failed (ConnectionError: a); attempt 2 of 7 follows in 1 s",
        "reading failed (ServerError: 429 try later); attempt 3 of 7 follows in 20 s",
    ]


def test_a_backoff_counts_failures_in_a_row(pauses) -> None:
    backoff = Backoff("reading", pauses=(1.0, 2.0))
    for _ in range(3):
        assert backoff(Failing(ConnectionError("a"), ConnectionError("b"))) == 7
    assert pauses == [1.0, 2.0] * 3
    final = ConnectionError("last")
    with pytest.raises(ConnectionError) as caught:
        backoff(Failing(ConnectionError("a"), ConnectionError("b"), final))
    assert str(caught.value) == (
        "reading failed 3 times in a row, the last time with ConnectionError: last. "
        "Check the network and resume from the last checkpoint"
    )
    assert caught.value.__cause__ is final


def test_without_pauses_there_is_one_attempt(pauses) -> None:
    action = Failing(ConnectionError("a"))
    with pytest.raises(ConnectionError, match=r"^sending failed with ConnectionError: a\. Publish again$"):
        retry("sending", action, (), "Publish again")
    assert (action.calls, pauses) == (1, [])


def test_an_interrupt_while_a_failure_is_handled_is_not_tried_again(pauses) -> None:
    interrupt = KeyboardInterrupt()
    interrupt.__context__ = ConnectionResetError("gone")
    action = Failing(interrupt)
    with pytest.raises(KeyboardInterrupt):
        retry("reading", action)
    assert (action.calls, pauses) == (1, [])


def test_an_interrupt_ends_a_pause_at_once() -> None:
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            retry("reading", Failing(ConnectionError("a")), (60.0,))
    finally:
        timer.cancel()
    assert time.monotonic() - start < 10
