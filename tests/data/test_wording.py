"""Counted nouns."""

import pytest

from hf_geossl.data.wording import counted


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ("file",), "0 files"),
        (1, ("file",), "1 file"),
        (2, ("file",), "2 files"),
        (1_280_000, ("image",), "1,280,000 images"),
        (1, ("file of another kind", "files of other kinds"), "1 file of another kind"),
        (3, ("file of another kind", "files of other kinds"), "3 files of other kinds"),
    ],
)
def test_the_noun_agrees_with_its_number(number: int, words: tuple[str, ...], text: str) -> None:
    assert counted(number, *words) == text
