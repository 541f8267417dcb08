"""A model or views of another method are refused by name."""

from pathlib import Path
from typing import Any

import pytest

from hf_geossl import (
    EquiCoherentTrainer,
    GTSATrainer,
    LOCATrainer,
)
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
