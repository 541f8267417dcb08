"""The parts of a trainer: what a checkpoint holds of them, what views are compared by, and which pictures a method has."""

import json
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_geossl.methods import METHODS
from hf_geossl.training.checkpoints.checkpointer import FORMAT
from hf_geossl.training.parts import views_settings
from tests.helpers import equicoherent_run, gtsa_run, loca_run


@dataclass(frozen=True)
class Crops:
    size: int = 32
    scale: tuple[float, float] = (0.2, 1.0)


@dataclass(frozen=True)
class SomeViews:
    crops: Crops = Crops()
    exact_color: bool = False

    def describe(self) -> str:
        return "words that may change"


def test_views_are_compared_by_all_values_and_their_class() -> None:
    views: Any = SomeViews()
    assert views_settings(views) == {
        "class": "SomeViews",
        "crops": {"size": 32, "scale": (0.2, 1.0)},
        "exact_color": False,
    }


def test_words_of_the_views_do_not_matter() -> None:
    class Other(SomeViews):
        """Another docstring."""

        def describe(self) -> str:
            return "other words"

    Other.__name__ = "SomeViews"
    ours, theirs = (views_settings(views) for views in (SomeViews(), Other()))  # type: ignore[arg-type]
    assert ours == theirs


@pytest.mark.parametrize("run", [gtsa_run, loca_run, equicoherent_run])
def test_a_methods_views_are_compared_by_their_fields(run: Any) -> None:
    views = run.small_views(*([run.small_config()] if run is equicoherent_run else []))
    settings = views_settings(views)
    assert settings["class"] == type(views).__name__
    assert is_dataclass(views)
    assert {name: value for name, value in settings.items() if name != "class"} == asdict(views)
    assert json.loads(json.dumps(settings))


def test_a_checkpoint_holds_the_state_of_all_parts(images: Any, tmp_path: Path) -> None:
    trainer = gtsa_run.make_trainer(tmp_path, images, save_steps=3, logging_steps=2, gradient_accumulation_steps=2)
    trainer.train()
    state = json.loads((tmp_path / "checkpoint-3" / "run_state_0.json").read_text())
    assert set(state) == {"format", "settings", "stream", "meter", "guard", "probes", "seconds"}
    assert state["format"] == FORMAT
    assert state["settings"]["batches of a step"] == 2
    assert (state["meter"]["steps"], state["guard"]) == (1, {"skipped": 0, "in_a_row": 0})
    resumed = gtsa_run.make_trainer(tmp_path, images, save_steps=3, logging_steps=2, gradient_accumulation_steps=2)
    checkpoint = resumed.parts.find(str(tmp_path / "checkpoint-3"), resumed.model.config)
    resumed.parts.start(checkpoint)
    assert resumed.parts.meter.state_dict() == state["meter"]
    assert resumed.parts.log_line.first_step == 3
    assert resumed.parts.stopwatch.trained >= state["seconds"] > 0
    resumed.parts.start(None)
    assert resumed.parts.meter.state_dict()["steps"] == 0
    resumed.parts.stop()


@pytest.mark.parametrize("run", [gtsa_run, loca_run, equicoherent_run])
@pytest.mark.parametrize("wanted", [True, False])
def test_pictures_are_those_of_the_methods_row(run: Any, wanted: bool, images: Any, tmp_path: Path) -> None:
    trainer = run.make_trainer(tmp_path, images, picture=wanted)
    files = [picture.file for picture in METHODS[trainer.method].pictures]
    book = trainer.parts.pictures(trainer.method)
    assert [picture.file for picture in book.pictures] == (files if wanted else [])


def test_fsdp_that_is_not_used_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ValueError, match="FSDP2 was asked for, and accelerate uses it on GPUs only"):
        gtsa_run.make_trainer(tmp_path, [{"image": np.zeros((48, 48, 3), np.uint8)}] * 4)
