"""Scripts, style and markup of the page agree with each other."""

import re

from PIL import Image

from hf_geossl.demo.assets import PICTURE_SCRIPT, STRIP_SCRIPT, STYLE
from hf_geossl.demo.markup import Figure, bars, figures, said, strip

RED = Image.new("RGB", (8, 4), "red")
HTML = "".join(
    (
        figures(Figure(RED, "x", "pick"), Figure(RED, "y", "box"), Figure(RED, "z", rough=True)),
        said("x"),
        bars(["a"], [1.0], 0),
        strip([RED], 0, None, "A"),
    )
)


def test_scripts_read_what_the_markup_writes() -> None:
    written = set(re.findall(r"data-(\w+)=", HTML))
    read = set(re.findall(r"(?:data|dataset)\.(\w+)", PICTURE_SCRIPT + STRIP_SCRIPT)) - {"dataset"}
    read |= set(re.findall(r"\[data-(\w+)", PICTURE_SCRIPT + STRIP_SCRIPT))
    assert read == written
    assert set(re.findall(r"\[data-kind=(\w+)\]", PICTURE_SCRIPT)) == {"pick", "box"}


def test_events_are_those_that_the_page_listens_to() -> None:
    assert set(re.findall(r"trigger\('(\w+)', \{([\w0-9, :\[\]\.]*?)[:,]", PICTURE_SCRIPT)) == {
        ("box", "x1"),
        ("pick", "x"),
    }
    assert re.findall(r"trigger\('(\w+)'", PICTURE_SCRIPT) == ["box", "pick", "pick"]
    assert re.findall(r"trigger\('(\w+)'", STRIP_SCRIPT) == ["choose"]


def test_every_class_of_ours_has_a_style() -> None:
    used = set(re.findall(r"class(?:Name)?=?['\" ]*=? ?['\"](geo-[\w-]+)", HTML + PICTURE_SCRIPT))
    assert used == {"geo-figures", "geo-picture", "geo-rough", "geo-said", "geo-bars", "geo-strip", "geo-frame"}
    assert used <= set(re.findall(r"\.(geo-[\w-]+)", STYLE))
