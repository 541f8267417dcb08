"""The page as it is built: its tabs, and what a person reads where something fails."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import hf_geossl.demo as demo_package
from hf_geossl.demo import pictures
from tests.helpers.demo_models import FORMATS, encoded, first_picture, model_of


def test_without_gradio_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo_package, "find_spec", lambda name: None)
    for start in (demo_package.build_demo, demo_package.launch_demo):
        with pytest.raises(ImportError, match="pip install 'hf_geossl\\[space\\]'"):
            start(tmp_path)


def test_every_method_has_its_tabs(pages: dict[str, Any]) -> None:
    own = {"gtsa": "Quarter turn", "loca": "Drag a box", "equicoherent": "Transformation path"}
    for name, page in pages.items():
        tabs = ["Features", "Correspondence", own[name], "Attention", "Nearest neighbours"]
        assert [tab.name for tab in page.tabs] == tabs
        assert not page.demo.analytics_enabled


def test_errors_reach_the_person_as_one_sentence_and_the_log_as_a_trace(caplog: pytest.LogCaptureFixture) -> None:
    gradio = pytest.importorskip("gradio", reason="the page needs gradio: pip install 'hf_geossl[space]'")
    from hf_geossl.demo.page import plainly

    def fail(kind: type[Exception]) -> None:
        raise kind("at /home/somebody/model.py")

    with pytest.raises(gradio.Error) as caught:
        plainly(fail)(RuntimeError)
    assert caught.value.message == (
        "This could not be computed. Your pictures are kept; please try again or choose others."
    )
    assert "/home/somebody/model.py" in caplog.text
    with pytest.raises(gradio.Error, match="at /home"):
        plainly(fail)(pictures.UploadError)


@pytest.mark.parametrize(("method", "kind"), [("gtsa", "bands"), ("loca", "gray"), ("equicoherent", "bands")])
def test_pictures_of_other_images_are_uploaded_and_shown_in_the_colours_that_are_chosen(
    method: str, kind: str, tmp_path: Path
) -> None:
    gradio = pytest.importorskip("gradio", reason="the page needs gradio: pip install 'hf_geossl[space]'")
    from hf_geossl.demo.page import Page

    page = Page(model_of(method, kind, tmp_path), [])
    demo = page.build()
    called = {function.api_name: function.fn for function in demo.fns.values()}
    states = [block for block in demo.blocks.values() if isinstance(block, gradio.State)]
    nothing = [state.value for state in states if type(state.value).__name__ == "Picked"]
    values = {tab.name: [one.value for one in tab.inputs] for tab in page.tabs}
    assert "Nearest neighbours" not in values
    text = page._about()
    assert FORMATS[kind].describe() in text
    assert "There are no sample pictures of this kind" in text
    assert page.sessions == (30 if kind == "bands" else 150)

    def shown(name: str, first: Any, second: Any, channels: Any = None) -> str:
        answer = called[name.lower().replace(" ", "_")](first, second, False, (0.3, 0.6), channels, *values[name])
        assert answer[0] == name
        return "".join(answer[1:])

    assert "Upload picture A first." in shown("Attention", *nothing)
    assert "Upload pictures A and B first." in shown("Correspondence", *nothing)
    first, strip = called["upload_a"](encoded(kind, 0), None)
    assert 'data-index="-1" aria-pressed="true"' in strip
    assert "Upload picture B first." in shown("Correspondence", first, nothing[1])
    alone = shown("Features", first, nothing[1])
    assert (alone.count("Features of A"), "Upload picture B too." in alone) == (2, True)  # caption, and its text
    second, _ = called["upload_b"](encoded(kind, 1), None)
    for name in values:
        assert shown(name, first, second).count("<img") >= 1
    for channels in (None, (0,)):
        seen = np.asarray(first_picture(shown("Attention", first, second, channels), 0).convert("RGB")).astype(int)
        own = np.asarray(first.upload.displayed(channels)).astype(int)
        assert np.abs(seen - own)[:100].mean() < 12  # through JPEG, above the marked patch
    with pytest.raises(gradio.Error, match="This file cannot be read as an image of this model, which takes"):
        called["upload_a"](b"no picture", None)


def test_the_choice_of_channels_shows_strips_and_tabs_anew(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'hf_geossl[space]'")
    from hf_geossl.demo.page import Page, Picked

    samples = [pictures.read_upload(encoded("bands", seed), FORMATS["bands"]) for seed in range(3)]
    page = Page(model_of("gtsa", "bands", tmp_path), samples)
    recolor = next(function.fn for function in page.build().fns.values() if function.name == "recolor")
    channels, *strips = recolor(Picked(0), Picked(1), 0, 4, 3, 2)
    assert channels == (0,)
    for strip in strips:
        small = np.asarray(first_picture(strip, 2).convert("RGB")).astype(int)
        expected = page.samples[2].displayed((0,)).resize((96, 96))
        assert np.abs(small - np.asarray(expected)).mean() < 12
    tab = page.tabs[-1]
    assert tab.name == "Nearest neighbours"
    found = first_picture(page._show(tab, Picked(0), Picked(1), False, (0.5, 0.5), (0,))[0], 1).convert("RGB")
    colors = np.asarray(found).astype(int)
    assert (colors.max(-1) - colors.min(-1)).max() < 12  # grey
    assert recolor(Picked(0), Picked(1), -1, 4, 3, 2)[0] is None


def test_what_decoding_did_stands_under_the_upload_of_any_model(pages: dict[str, Any]) -> None:
    page = pages["gtsa"]
    take = next(function.fn for function in page.demo.fns.values() if function.api_name == "upload_b")
    file = io.BytesIO()
    Image.new("RGBA", (8, 8), (255, 0, 0, 100)).save(file, "PNG")
    picked, strip = take(file.getvalue(), None)
    assert '<p class="geo-note">Of this file: transparency laid over white.</p>' in strip
    choose = next(function.fn for function in page.demo.fns.values() if function.name == "choose")
    sample = choose(SimpleNamespace(index=1), picked, None)
    assert "geo-note" not in sample[1]
    assert "geo-note" in choose(SimpleNamespace(index=-1), sample[0], None)[1]
