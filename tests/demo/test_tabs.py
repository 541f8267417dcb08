"""The tabs of any trunk write down what the analyses computed."""

from typing import Any

import numpy as np

from hf_geossl.demo import analyses, pictures
from hf_geossl.demo.loading import DemoModel
from tests.helpers.demo_models import first_picture, shown


def test_correspondence_names_the_patch_and_marks_it(pages: dict[str, Any], opened: dict[str, DemoModel]) -> None:
    picture, other = pages["gtsa"].samples[:2]
    match = analyses.find_match(opened["gtsa"], picture, other, (2, 1))
    text = shown(pages["gtsa"], "Correspondence")
    assert f"row 3, column 2 of A is found in row {match.best[0] + 1}, column {match.best[1] + 1} of B" in text
    assert f"(cosine {match.cosine:.3f})" in text
    best = np.array(first_picture(text, 2).convert("RGB")).astype(int)
    left, top, *_ = pictures.cell_box(match.best, (4, 4), (448, 448))
    assert abs(best[top + 50, left - 5] - (0, 200, 255)).max() < 90  # the mark, through JPEG


def test_attention_and_neighbours_state_their_numbers(pages: dict[str, Any], opened: dict[str, DemoModel]) -> None:
    page = pages["equicoherent"]
    text = shown(page, "Attention", "class", 1)
    seen = analyses.attention_map(opened["equicoherent"], page.samples[0], None, 1)
    assert f"largest share of one patch is {100 * seen.max().item():.1f}%" in text
    assert "head 2" in text
    text = shown(page, "Nearest neighbours")
    nearest = analyses.nearest_pictures(opened["equicoherent"], page.samples[0], page.samples)
    assert f"1. cosine {nearest[0][1]:.3f}" in text
    assert "Features of B" in shown(page, "Features")


def test_notes_follow_from_whether_the_class_token_stands_for_a_picture(pages: dict[str, Any]) -> None:
    def written(name: str) -> str:
        return " ".join(str(block.value) for block in pages[name].demo.blocks.values() if hasattr(block, "value"))

    assert "GTSA does not train its class token directly, so a patch tells more." in written("gtsa")
    assert "This model has no class token." in written("loca")
    assert "class token directly" not in written("equicoherent")
    assert "for a picture the class token" in written("equicoherent")
    assert "for a picture the mean of the patch tokens" in written("gtsa")
