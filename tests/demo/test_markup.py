"""Pieces of the page: what they show, that texts cannot become markup, and that scripts and style fit them."""

import re

from PIL import Image

from hf_geossl.demo.markup import PICTURE_SCRIPT, STRIP_SCRIPT, STYLE, Figure, bars, figures, said, strip

RED = Image.new("RGB", (8, 4), "red")
HTML = "".join(
    (
        figures(Figure(RED, "x", "pick"), Figure(RED, "y", "box", (0.1, 0.2, 0.6, 0.7)), Figure(RED, "z", rough=True)),
        said("x"),
        bars(["a"], [1.0], 0),
        strip([RED], 0, None, "A"),
    )
)


def test_captions_and_sentences_are_escaped() -> None:
    for html in (figures(Figure(RED, "<b>&")), said("<b>&"), bars(["<b>&"], [1.0], 0), strip([RED], 0, None, "<b>&")):
        assert "&lt;b&gt;&amp;" in html
        assert "<b>" not in html


def test_a_clickable_figure_carries_its_place_and_grid() -> None:
    html = figures(Figure(RED, "x", "pick", (0.25, 0.5), (3, 7)), Figure(RED, "y", rough=True), columns=5, narrow=1)
    assert 'style="--columns: 5; --narrow: 1"' in html
    assert 'data-kind="pick" data-x="0.250000" data-y="0.500000" data-rows="3" data-columns="7"' in html
    assert html.count("data-kind") == 1
    assert html.count('class="geo-rough"') == 1


def test_the_strip_has_the_upload_first_and_one_chosen_picture() -> None:
    html = strip([RED, RED], 1, RED, "Picture A")
    assert re.findall(r'data-index="(-?\d)" aria-pressed="(\w+)"', html) == [
        ("-1", "false"),
        ("0", "false"),
        ("1", "true"),
    ]
    assert 'aria-label="Picture A: the uploaded picture"' in html
    assert 'data-index="-1"' not in strip([RED], 0, None, "Picture A")


def test_bars_have_the_width_of_their_share() -> None:
    html = bars(["a", "b"], [0.125, 0.875], 1)
    assert re.findall(r"width: ([\d.]+)%", html) == ["12.50", "87.50"]
    assert '<span class="true">b</span>' in html


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
    assert re.findall(r"trigger\('(\w+)'", PICTURE_SCRIPT) == ["box", "pick", "pick", "box"]
    assert re.findall(r"trigger\('(\w+)'", STRIP_SCRIPT) == ["choose"]


def test_every_class_of_ours_has_a_style() -> None:
    used = set(re.findall(r"class(?:Name)?=?['\" ]*=? ?['\"](geo-[\w-]+)", HTML + PICTURE_SCRIPT))
    assert used == {"geo-figures", "geo-picture", "geo-rough", "geo-said", "geo-bars", "geo-strip", "geo-frame"}
    assert used <= set(re.findall(r"\.(geo-[\w-]+)", STYLE))
