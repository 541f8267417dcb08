"""What a trained model does not depend on: a failure is one warning that says what to do."""

import logging
from typing import Any

import pytest

from hf_geossl.training.outputs.attempts import attempt


def test_what_succeeds_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    made: list[Any] = []
    assert attempt("the card", lambda *args, **kwargs: made.append((args, kwargs)), "do it again", 1, key=2) is True
    assert made == [((1,), {"key": 2})]
    assert caplog.records == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (ValueError("two\n  lines"), "ValueError: two lines"),
        (AssertionError(), "AssertionError: no reason given"),
    ],
)
def test_what_fails_is_one_line_with_a_remedy(error: Exception, message: str, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise error

    with caplog.at_level(logging.WARNING):
        assert attempt("the model card", fail, "`geossl card run` makes it again") is False
    assert caplog.messages == [f"the model card could not be made ({message}): `geossl card run` makes it again"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_who_wants_to_stop_is_let(error: type[BaseException]) -> None:
    def stop() -> None:
        raise error

    with pytest.raises(error):
        attempt("the card", stop, "do it again")
