"""Notes: what decoding did to a user's values, collected by whoever reads the images."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from hf_geossl.data.wording import counted, without_arguments

# kind -> what happened, said of one image or of many; and the details of one image, with what to do about it
NOTES = {
    "transparency": (
        "transparency laid over white",
        "if channel {number} is a band of its own, --channels takes it by its number",
    ),
    "transparency_ignored": ("transparency left out", "the colours of transparent pixels are used as they are stored"),
    "alpha_band": (
        "a channel tagged as transparency but with many levels taken as a band",
        "channel {number} has {levels} levels, {share:.0%} of the pixels between clear and opaque; "
        "--channels names the channels to read",
    ),
    "channels": (
        "more channels than the model takes, the others left out",
        "{taken} of {count} read; name others by --channels, such as --channels {example}",
    ),
    "depth": (
        "more than 8 bits reduced to 8",
        "{low:g} to {high:g} became 0 to 255; keep the levels with --value_range {example}",
    ),
    "dark": (
        "nearly black, because the values fill little of the range of their type",
        "the largest value is {largest:g} of {high:g}; give the range that is used, such as --value_range {example}",
    ),
    "floats": ("floating point values from 0 to 1 scaled to 0 to 255", "keep the levels with --value_range 0,1"),
    "frames": ("only the first of several frames or pages read", "{count} in this file"),
    "cmyk": ("CMYK converted to RGB", "by the plain formula, without its colour profile"),
    "type": ("stored in another type than the model's images", "{stored} instead of {expected}; {how}"),
    "nodata": ("pixels without a value set to the low end of the range", "{count} here"),
    "array": ("one of several arrays read", "{name!r}, not {others}"),
    "georeference": (
        "a georeference that predictions do not keep",
        "{where}; tags of TIFF files are kept: gdal_translate IMAGE IMAGE.tif writes them",
    ),
    "white": ("floating point values whose white is the small end left as they are", "the file says MinIsWhite"),
}


@dataclass(frozen=True)
class Note:
    """One thing that was done to one image.

    Args:
        kind (`str`): a key of `NOTES`.
        detail (`str`): about this image.
    """

    kind: str
    detail: str

    @property
    def summary(self) -> str:
        """What happened, without the details of one image."""
        return NOTES[self.kind][0]

    @property
    def facts(self) -> str:
        """What happened, for people who run no command, without advice about its arguments."""
        facts = without_arguments(self.detail)
        return f"{self.summary} ({facts})" if facts else self.summary

    def __str__(self) -> str:
        return f"{self.summary} ({self.detail})"


_COLLECTED: ContextVar[list[Note] | None] = ContextVar("collected_notes", default=None)


def note(kind: str, **details: object) -> None:
    """Records what was done to the image that is being decoded, if anybody collects notes.

    Args:
        kind (`str`): a key of `NOTES`.
        details: the fields of its second text.
    """
    text = NOTES[kind][1].format(**details)
    collected = _COLLECTED.get()
    if collected is not None:
        collected.append(Note(kind, text))


@contextmanager
def collect_notes() -> Iterator[list[Note]]:
    """Collects the notes of what is decoded inside the `with` block, in this thread; blocks may be nested.

    Yields:
        `list[Note]`: grows while images are decoded.
    """
    collected: list[Note] = []
    token = _COLLECTED.set(collected)
    try:
        yield collected
    finally:
        _COLLECTED.reset(token)


def describe_counts(counts: Mapping[str, int], images: int) -> list[str]:
    """Says how many images have each kind of note.

    Args:
        counts (`Mapping[str, int]`): by kind.
        images (`int`): of how many.

    Returns:
        `list[str]`: such as "12 of 300 images: transparency laid over white", most frequent first.
    """
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [f"{number:,} of {counted(images, 'image')}: {NOTES[kind][0]}" for kind, number in ordered]
