"""The tab of the quarter turn writes down what the head predicts."""

import re
from pathlib import Path
from typing import Any

import pytest

from hf_geossl.demo import heads_gtsa
from hf_geossl.demo.loading import DemoModel, open_model
from tests.helpers.demo_models import save, shown, whole_model


def test_bars_are_the_probabilities_and_the_true_turn_is_bold(
    pages: dict[str, Any], opened: dict[str, DemoModel]
) -> None:
    text = shown(pages["gtsa"], "Quarter turn", 1)
    expected = heads_gtsa.turn_probabilities(opened["gtsa"], pages["gtsa"].samples[0], 1)
    assert [float(n) for n in re.findall(r"<span>([\d.]+)%</span>", text)] == pytest.approx(
        [100 * p for p in expected], abs=0.06
    )
    assert "turned by 90°</span>" in text.split('class="true">')[1]


def test_tabs_are_those_that_the_model_can_fill(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the tabs need gradio: pip install 'hf_geossl[space]'")
    from hf_geossl.demo.tabs_gtsa import head_tabs

    def titles(name: str, **fields: Any) -> list[str]:
        model = open_model(save(whole_model("gtsa", **fields), tmp_path / name))
        return [title for title, _ in head_tabs(model, [])]

    assert titles("square") == ["Quarter turn"]
    assert titles("wide", image_size=(32, 48)) == []
    assert titles("decoders", reconstruction="blur") == ["Quarter turn", "Transformation path"]
