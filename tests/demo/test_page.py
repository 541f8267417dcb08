"""The page as it is built: its tabs, and what a person reads where something fails."""

from pathlib import Path
from typing import Any

import pytest

import hf_geossl.demo as demo_package
from hf_geossl.demo import pictures


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
