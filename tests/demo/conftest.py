"""Models and pages that the tests of the demo share."""

from typing import Any

import pytest

from hf_geossl.demo.loading import DemoModel, open_model
from tests.helpers.demo_models import noise, save, whole_model
from tests.helpers.methods import METHODS


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DemoModel]:
    folder = tmp_path_factory.mktemp("whole")
    return {name: open_model(save(whole_model(name), folder / name)) for name in METHODS}


@pytest.fixture(scope="session")
def pages(opened: dict[str, DemoModel]) -> dict[str, Any]:
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'hf_geossl[space]'")
    from hf_geossl.demo.page import Page

    built = {}
    for name, model in opened.items():
        built[name] = Page(model, [noise(seed) for seed in range(4)])
        built[name].demo = built[name].build()
    return built
