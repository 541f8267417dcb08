"""What messages say of numbers and of data."""

import logging
import os
from pathlib import Path

import pytest

from hf_geossl.data.wording import Place, as_file, counted, name_of, some_of, without_arguments


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


def test_a_line_about_data_names_them_and_comes_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            Place(f"{tmp_path}/my photos/").warn("100% read")
        Place(str(tmp_path), "user/name").warn("100% read")
    assert caplog.messages == ["my photos: 100% read", "user/name: 100% read"]
    assert some_of(["a", "b", "c"]) == "a, b, c"
    assert some_of(["a", "b", "c", "d"], 2) == "a, b, ..."


def test_arguments_are_left_out_for_people_who_run_no_command() -> None:
    assert without_arguments("it has 1 channel (--channels 1,2); it is grey; give --channels 1") == (
        "it has 1 channel; it is grey"
    )
    assert without_arguments("keep the levels with --value_range 0,1") == ""
    assert without_arguments("two - or more (of 5); so") == "two - or more (of 5); so"


def test_a_name_is_the_same_file_whatever_the_system_encodes_names_as(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Straße 猫.png"
    assert as_file(text) == text
    monkeypatch.setattr("os.fsdecode", lambda name: name.decode("ascii", "surrogateescape"))
    assert as_file(text).encode("ascii", "surrogateescape") == text.encode()


def test_names_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    assert name_of(os.fsdecode(b"/data/gr\xfcn")) == "gr\\xfcn"
