"""Notes go to whoever collects them, and to nobody else."""

from concurrent.futures import ThreadPoolExecutor
from string import Formatter

import pytest

from hf_geossl.data.notes import NOTES, Note, collect_notes, describe_counts, note


def test_the_innermost_block_of_this_thread_collects() -> None:
    note("cmyk")  # nobody collects
    with collect_notes() as outer:
        note("frames", count="3 images")
        with collect_notes() as inner:
            note("cmyk")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(note, "floats").result()
    note("cmyk")
    assert outer == [Note("frames", "3 images in this file")]
    assert [entry.kind for entry in inner] == ["cmyk"]
    assert str(outer[0]) == "only the first of several frames or pages read (3 images in this file)"
    assert outer[0].summary == "only the first of several frames or pages read"
    assert outer[0].facts == str(outer[0])
    depth = Note("depth", "0 to 65535 became 0 to 255; keep the levels with --value_range 0,65535")
    assert depth.facts == "more than 8 bits reduced to 8 (0 to 65535 became 0 to 255)"
    assert Note("floats", "keep the levels with --value_range 0,1").facts == NOTES["floats"][0]


def test_an_error_ends_collecting_too() -> None:
    with pytest.raises(ZeroDivisionError), collect_notes() as notes:
        raise ZeroDivisionError
    note("cmyk")
    assert notes == []


@pytest.mark.parametrize("kind", NOTES)
def test_every_kind_says_what_happened_and_has_its_details(kind: str) -> None:
    summary, detail = NOTES[kind]
    fields = {name.partition("!")[0]: 1 for _, name, _, _ in Formatter().parse(detail) if name}
    with collect_notes() as notes:
        note(kind, **fields)
    assert str(notes[0]).startswith(summary)
    with pytest.raises(KeyError):
        note("unknown kind")


def test_counts_in_words() -> None:
    assert describe_counts({"cmyk": 2, "transparency": 1200, "frames": 2}, 3000) == [
        "1,200 of 3,000 images: transparency laid over white",
        "2 of 3,000 images: CMYK converted to RGB",
        "2 of 3,000 images: only the first of several frames or pages read",
    ]
    assert describe_counts({}, 10) == []
    assert describe_counts({"cmyk": 1}, 1) == ["1 of 1 image: CMYK converted to RGB"]
