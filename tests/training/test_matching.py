"""A model or views of another method are refused by name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hf_geossl import (
    EquiCoherentTrainer,
    GTSATrainer,
    LOCATrainer,
)
from hf_geossl.modeling.image_format import ImageFormat
from tests.helpers import equicoherent_run, gtsa_run, loca_run
from tests.helpers.methods import METHODS


@pytest.fixture
def images(smooth_images: Any) -> Any:
    return smooth_images


RUNS = {"gtsa": gtsa_run, "loca": loca_run, "equicoherent": equicoherent_run}


TRAINERS = {"gtsa": GTSATrainer, "loca": LOCATrainer, "equicoherent": EquiCoherentTrainer}


@pytest.mark.parametrize("other", RUNS)
@pytest.mark.parametrize("own", RUNS)
@pytest.mark.parametrize("late", [False, True])
def test_model_and_views_of_another_method_are_refused_by_name(
    own: str, other: str, late: bool, images: Any, tmp_path: Path
) -> None:
    """Whether the model is given or made by `model_init`, and whether views are given or the trainer's own."""

    def parts(name: str) -> tuple[Any, Any]:
        config = RUNS[name].small_config()
        views = RUNS[name].small_views(*([config] if name == "equicoherent" else []))
        return METHODS[name].kind("ForPreTraining")(config), views

    def make(model: Any, views: Any) -> Any:
        given = {"model_init": lambda: model} if late else {"model": model}
        return TRAINERS[own](**given, args=RUNS[own].small_arguments(tmp_path), train_dataset=images, views=views)

    (model, views), (theirs, their_views) = parts(own), parts(other)
    if own == other:
        assert make(model, views).views is views
        return
    named = {name: METHODS[name].name for name in RUNS}
    for made in (views, their_views, None):
        told = (
            f"model must be of {named[own]}ForPreTraining, got {named[other]}ForPreTraining; each method has a trainer"
        )
        with pytest.raises(TypeError, match=told):
            make(theirs, made)
    with pytest.raises(TypeError, match=f"views must be {named[own]}Views, got {named[other]}Views; leave them out"):
        make(model, their_views)


FIVE = ImageFormat(
    (1, 2, 3, 4, 5), tuple("abcde"), "uint16", ((0.0, 4095.0),), "bits:12", (0.2,) * 5, (0.1, 0.2, 0.3, 0.4, 0.5)
)


@pytest.mark.parametrize("name", RUNS)
def test_views_make_the_images_that_the_model_takes(
    name: str, images: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RUNS[name]

    def make(config: dict[str, Any], views: dict[str, Any] | None) -> Any:
        made = run.small_config(**config)
        model = METHODS[name].kind("ForPreTraining")(made)
        settings = None
        if views is not None:
            settings = run.small_views(*([made] if name == "equicoherent" else []), **views)
        return TRAINERS[name](model, run.small_arguments(tmp_path), images, views=settings)

    five = {"num_channels": 5}
    trainer = make(five, {"image_format": FIVE})
    assert ImageFormat.from_dict(trainer.model.config.image_format) == FIVE  # travels with the weights
    assert "hue, saturation, grey and solarisation of the views are left out" in caplog.text
    assert trainer.processing_class.image_mean == list(FIVE.mean)
    other = replace(FIVE, range_source="given")  # how the range was chosen does not matter
    make({**five, "image_format": FIVE.to_dict()}, {"image_format": other})
    with pytest.raises(ValueError, match=r"num_channels of the model must be 5, as the views make .*, got 3"):
        make({}, {"image_format": FIVE})
    with pytest.raises(ValueError, match="num_channels of the model must be 3, as the views make .*, got 5"):
        make(five, {})
    different = replace(FIVE, value_range=((0.0, 1000.0),), mean=(0.3,) * 5, range_source="given")
    with pytest.raises(ValueError, match=r"they differ in value_range, mean$"):
        make({**five, "image_format": FIVE.to_dict()}, {"image_format": different})
    with pytest.raises(ValueError, match="the model takes 5 channels, and its configuration does not say which"):
        TRAINERS[name](METHODS[name].kind("ForPreTraining")(run.small_config(**five)), run.small_arguments(tmp_path))
    assert make({}, {}).model.config.image_format is None  # RGB of 8 bits


@pytest.mark.parametrize("name", RUNS)
def test_the_trainers_own_views_are_of_the_models_images(name: str, images: Any, tmp_path: Path) -> None:
    size = {"image_size": 224, "patch_size": 16}
    config = RUNS[name].small_config(**size, num_channels=5, image_format=FIVE.to_dict())
    trainer = TRAINERS[name](METHODS[name].kind("ForPreTraining")(config), RUNS[name].small_arguments(tmp_path), images)
    assert trainer.views.image_format == FIVE
