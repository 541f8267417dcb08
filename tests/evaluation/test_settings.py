"""Settings that make no sense are refused when they are made, before anything is measured."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from hf_geossl.evaluation.protocol import load_protocol
from hf_geossl.evaluation.registry import TASKS
from hf_geossl.evaluation.settings import MOST_PASSES, QUICK_STEPS, bounded, differences, make_settings

SETTINGS = {name: load_protocol(name).settings for name in TASKS}
NAN = float("nan")
FEATURE = "feature must be pooled, both, mean or class_tokens_N with N from 1, got"
TRAINED = ("segmentation_few_shot", "segmentation_finetune", "semantic_fpn", "upernet", "depth_dpt")
REFUSED: list[tuple[tuple[str, ...], dict[str, Any], str]] = [
    (("linear", "multilabel", "rotation"), {"c_values": ()}, "c_values must hold at least one value, got none"),
    (("linear", "rotation"), {"c_values": (1.0, 0.0)}, "c_values must be above 0 and finite, got (1.0, 0.0)"),
    (
        ("linear", "rotation", "linear_sgd", "equivariance"),
        {"held_out": 1.0},
        "held_out must be between 0 and 1, got 1.0",
    ),
    (("linear", "rotation"), {"max_iterations": 0}, "max_iterations must be at least 1, got 0"),
    (("knn", "linear", "rotation", "equivariance"), {"feature": "patches"}, f"{FEATURE} patches"),
    (("knn", "linear"), {"feature": "class_tokens_0"}, f"{FEATURE} class_tokens_0"),
    (("linear_sgd",), {"learning_rates": ()}, "learning_rates must hold at least one value, got none"),
    (("linear_sgd",), {"epochs": 0}, "epochs must be at least 1, got 0"),
    (("linear_sgd",), {"momentum": 1.0}, "momentum must be at least 0 and below 1, got 1.0"),
    (("linear_sgd",), {"class_token_layers": 0}, "class_token_layers must be at least 1, got 0"),
    (("segmentation", "detection", "keypoints", *TRAINED), {"steps": 0}, "steps must be at least 1, got 0"),
    (("segmentation", "detection", *TRAINED), {"batch_size": 0}, "batch_size must be at least 1, got 0"),
    (
        ("segmentation", "detection", *TRAINED),
        {"learning_rate": NAN},
        "learning_rate must be above 0 and finite",
    ),
    (("segmentation", *TRAINED), {"warmup_steps": -1}, "warmup_steps must be at least 0, got -1"),
    (("segmentation", "segmentation_finetune"), {"num_classes": 1}, "num_classes must be at least 2, got 1"),
    (("keypoints", "detection", *TRAINED), {"layer_decay": 0.0}, "layer_decay must be above 0 and at most 1, got 0.0"),
    (TRAINED, {"scales": (2.0, 1.0)}, "scales must be the smaller and the larger end of a range, got (2.0, 1.0)"),
    (TRAINED[:-1], {"crop_size": 32, "window_stride": 48}, "window_stride must be at most crop_size = 32, got 48"),
    (("segmentation_few_shot",), {"shares": (0.5, 1.5)}, "shares must be above 0 and at most 1, got (0.5, 1.5)"),
    (("segmentation_few_shot",), {"shares": ()}, "shares must hold at least one value, got none"),
    (("segmentation_few_shot",), {"subsets": 0}, "subsets must be at least 1, got 0"),
    (("semantic_fpn",), {"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
    (("upernet",), {"pool_scales": ()}, "pool_scales must hold at least one value, got none"),
    (("upernet",), {"batch_size": 1}, "batch_size must be at least 2 for the BatchNorm"),
    (("depth",), {"penalties": (0.0,)}, "penalties must be above 0 and finite"),
    (("depth", "depth_dpt"), {"cap": 0.001}, "cap must be above 0.001 metres, got 0.001"),
    (("depth", "depth_dpt"), {"eval_crop": "kitti"}, "eval_crop must be one of eigen, garg, or None, got 'kitti'"),
    (("equivariance",), {"penalties": ()}, "penalties must hold at least one value, got none"),
    (("equivariance",), {"components": -1}, "components must be at least 0, got -1"),
    (("equivariance",), {"train_images": 1}, "train_images must be at least 2, got 1"),
    (("position",), {"focal_queries": -1}, "focal_queries must be at least 0, got -1"),
    (("position",), {"reference_scale": (0.0, 1.0)}, "reference_scale must be above 0 and at most 1, got (0.0, 1.0)"),
    (("position",), {"visible_tokens": 1.5}, "visible_tokens must be above 0 and at most 1, got 1.5"),
    (("propagation",), {"smallest_object": -0.1}, "smallest_object must be at least 0 and below 1, got -0.1"),
    (("orientation", "keypoints"), {"smallest_side": 1.0}, "smallest_side must be at least 0 and below 1, got 1.0"),
    (("keypoints",), {"margin": 0.5}, "margin must be at least 1, got 0.5"),
    (("homography",), {"steps": 0}, "steps must be at least 1, got 0"),
]


@pytest.mark.parametrize(("task", "given", "told"), [(t, given, told) for ts, given, told in REFUSED for t in ts])
def test_nonsense_is_refused_in_a_sentence(task: str, given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
        SETTINGS[task](**given)


@pytest.mark.parametrize("task", TASKS)
def test_the_defaults_are_accepted_and_lists_of_one(task: str) -> None:
    settings = SETTINGS[task]
    settings()
    if task == "linear":
        assert settings(c_values=(1.0,), feature="class_tokens_12").feature == "class_tokens_12"


@dataclass(frozen=True)
class FakeSettings:
    """Of every kind."""

    steps: int = 3
    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[float, float] = (0.5, 2.0)
    kinds: Sequence[str] = ("kite",)
    name: str | None = None
    quick: bool = False


def test_settings_are_of_the_kind_that_they_say() -> None:
    given = {"steps": 7, "rate": 1, "sizes": [3], "name": "x", "quick": True}
    settings = make_settings("fake", FakeSettings, given)
    assert settings == FakeSettings(steps=7, rate=1.0, sizes=(3,), name="x", quick=True)
    assert isinstance(settings.rate, float)
    assert make_settings("fake", FakeSettings, {"pair": [1, 2], "kinds": ["car"]}) == FakeSettings(
        pair=(1.0, 2.0), kinds=("car",)
    )
    assert make_settings("fake", FakeSettings, {"name": None}) == FakeSettings()
    wrong: dict[str, Any] = {
        "steps": 1.5,
        "rate": "1",
        "sizes": ["a"],
        "name": 3,
        "quick": 1,
        "pair": [1],
        "kinds": "car",
    }
    for key, value in wrong.items():
        with pytest.raises(ValueError, match=f"fake.{key} must be"):
            make_settings("fake", FakeSettings, {key: value})
    with pytest.raises(ValueError, match="fake.steps must be int, such as 3, got True"):
        make_settings("fake", FakeSettings, {"steps": True})


def test_a_limit_bounds_the_steps_of_heads_and_quick_shortens_them_further_but_for_what_was_given() -> None:
    upernet = SETTINGS["upernet"]()
    assert bounded(upernet, (), limit=None, quick=False) == upernet
    assert bounded(upernet, (), limit=upernet.batch_size * upernet.steps, quick=False) == upernet
    few = bounded(upernet, (), limit=10, quick=False)
    assert few.steps == MOST_PASSES * 10 / 16
    assert few.warmup_steps == few.steps // 10
    assert bounded(upernet, ("steps", "warmup_steps"), limit=10, quick=True).steps == upernet.steps
    keypoints = bounded(SETTINGS["keypoints"](), (), limit=10, quick=False)
    assert keypoints.steps == MOST_PASSES * 10 / keypoints.images_per_step
    quick = bounded(upernet, (), limit=None, quick=True)
    assert (quick.steps, quick.warmup_steps) == (QUICK_STEPS, QUICK_STEPS // 10)
    equivariance = SETTINGS["equivariance"]()
    smaller = bounded(equivariance, (), limit=999, quick=False)
    assert differences(smaller, equivariance) == "mlp_hidden_size 256 instead of 1024"
    assert bounded(equivariance, (), limit=1000, quick=False) == equivariance


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_quick_settings_that_make_sense(task: str) -> None:
    quick = bounded(SETTINGS[task](), (), limit=64, quick=True)
    assert type(quick) is SETTINGS[task]
    assert getattr(quick, "steps", 0) <= quick.QUICK.get("steps", QUICK_STEPS)
