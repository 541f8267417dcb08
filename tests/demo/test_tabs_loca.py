"""The tab of the dragged box writes down where the head places its patches."""

from pathlib import Path
from typing import Any

import pytest

from hf_geossl.demo import heads_loca
from hf_geossl.demo.loading import DemoModel, open_model
from tests.helpers.demo_models import save, shown, whole_model


def test_the_sentence_counts_the_patches_in_their_places(pages: dict[str, Any], opened: dict[str, DemoModel]) -> None:
    box = (0.25, 0.25, 0.75, 0.75)
    placed = heads_loca.place_box(opened["loca"], pages["loca"].samples[0], box)
    text = shown(pages["loca"], "Drag a box", box)
    assert f"{round(4 * placed.exact)} of 4 patches are put exactly" in text
    assert "guessing: 6.2%" in text


def test_no_tab_where_no_box_can_be_placed(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the tabs need gradio: pip install 'hf_geossl[space]'")
    from hf_geossl.demo.tabs_loca import head_tabs

    for name, fields in (("own", {"location_target": "self"}), ("wide", {"image_size": (32, 48)})):
        assert head_tabs(open_model(save(whole_model("loca", **fields), tmp_path / name)), []) == []
