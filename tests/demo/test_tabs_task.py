"""The tab of a fine-tuned model shows what `geossl predict` writes of the same picture, and names its classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_geossl.demo.pictures import data_url
from hf_geossl.tasks.prediction.image_results import show_prediction
from hf_geossl.tasks.prediction.opened_images import DecodedImage
from hf_geossl.tasks.prediction.settings import PredictionSettings
from hf_geossl.tasks.prediction.task_models import open_task_model
from tests.helpers.demo_models import shown
from tests.helpers.task_folders import picture, task_folder

TABS = {"classes": "Classes", "linear": "Segmentation", "segformer": "Segmentation", "dpt": "Depth", "yolos": "Objects"}
TRUNK = ["Features", "Correspondence", "Attention", "Nearest neighbours"]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    for seed in range(2):
        Image.fromarray(picture(448, 448, seed)).save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def opened(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'hf_geossl[space]'")
    from hf_geossl.demo.page import open_page

    folders = {name: task_folder(name, tmp_path_factory.mktemp(name)) for name in TABS}
    pages = {name: open_page(folder, samples) for name, folder in folders.items()}
    for page in pages.values():
        page.build()
    return {name: (folder, pages[name]) for name, folder in folders.items()}


@pytest.mark.parametrize("name", sorted(TABS))
def test_the_page_of_a_fine_tuned_folder_shows_what_is_predicted(
    name: str, opened: dict[str, tuple[Path, Any]]
) -> None:
    folder, page = opened[name]
    ours = name in ("classes", "linear")
    assert [tab.name for tab in page.tabs] == [TABS[name], *(TRUNK if ours else [])]
    inputs = [0.1] if name == "yolos" else []
    html = shown(page, TABS[name], *inputs)
    image = DecodedImage(picture(448, 448), None)
    task = open_task_model(folder, device="cpu")
    drawn, entries = show_prediction(task, image, PredictionSettings(score_threshold=0.1))
    assert all(text.replace("<", "&lt;") in html for text, _ in entries)
    assert "fine-tuned for" in page._details()
    if name != "classes":
        left = drawn.width - 448  # a depth has the picture beside it
        assert data_url(drawn.crop((left, 0, drawn.width, 448))) in html


def test_legends_hold_what_a_person_named_a_class() -> None:
    from hf_geossl.demo.markup import legend

    entries: Sequence[Any] = [("<b> 3 %", (1, 2, 3)), ("other", None)]
    assert legend(entries) == (
        '<ul class="geo-legend"><li><span style="background: rgb(1, 2, 3)"></span>&lt;b&gt; 3 %</li><li>other</li></ul>'
    )
