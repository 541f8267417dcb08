"""The tab of the transformation path writes down what the decoders reconstruct."""

from pathlib import Path
from typing import Any

import pytest

from hf_geossl.demo import heads_reconstruction
from hf_geossl.demo.loading import DemoModel, open_model
from tests.helpers.demo_models import save, shown, whole_model


def test_errors_of_a_point_are_stated_and_the_ends_have_none(
    pages: dict[str, Any], opened: dict[str, DemoModel]
) -> None:
    page, values = pages["equicoherent"], [30.0, 1.0, -2.0]
    point = heads_reconstruction.path_point(opened["equicoherent"], page.samples[0], page.samples, values, 2)
    text = shown(page, "Transformation path", 2, *values)
    assert f"reconstruction: {point.error:.3f}" in text
    assert f"would have {point.mean_image_error:.3f}" in text
    assert "at 2/3 of the way" in text
    assert "No decoder reconstructs this point" in shown(page, "Transformation path", 3, *values)


def test_no_tab_without_decoders(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the tabs need gradio: pip install 'hf_geossl[space]'")
    from hf_geossl.demo.tabs_reconstruction import head_tabs

    assert head_tabs(open_model(save(whole_model("equicoherent", num_intermediate=0), tmp_path)), []) == []
