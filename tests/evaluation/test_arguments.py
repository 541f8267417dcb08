"""The keywords of `evaluate_model`: defaults, sizes in whole patches, and the same in both places."""

from dataclasses import fields
from typing import get_type_hints

import pytest

from hf_geossl.evaluation.arguments import EvaluationArguments, EvaluationKeywords, image_size_of
from hf_geossl.evaluation.samples import Columns
from hf_geossl.evaluation.settings import QUICK_IMAGES
from tests.helpers.pixel_encoder import pixel_encoder


def test_keywords_and_arguments_are_the_same() -> None:
    assert get_type_hints(EvaluationKeywords) == get_type_hints(EvaluationArguments)
    assert [field.name for field in fields(EvaluationArguments)] == list(EvaluationKeywords.__annotations__)


def test_arguments_reach_options_and_data() -> None:
    arguments = EvaluationArguments(limit=7, seed=3, cache_dir="features", dataset_revision="abc", image_size=32)
    assert (arguments.options.seed, str(arguments.options.cache_dir)) == (3, "features")
    data = arguments.data("user/name", pixel_encoder(8))
    assert (data.dataset, data.size, data.limit, data.revision, data.columns) == ("user/name", 32, 7, "abc", Columns())
    assert EvaluationArguments(cache_dir=None).options.cache_dir is None
    assert EvaluationArguments(quick=True).data("user/name", pixel_encoder(8)).limit == QUICK_IMAGES
    assert EvaluationArguments(quick=True, limit=9).data("user/name", pixel_encoder(8)).limit == 9


@pytest.mark.parametrize(("trained", "patch", "expected"), [(224, 16, 224), (32, 8, 32), (100, 16, 96), (3, 8, 8)])
def test_images_have_the_models_size_in_whole_patches(trained: int, patch: int, expected: int) -> None:
    assert image_size_of(pixel_encoder(patch, trained), None) == expected


def test_other_sizes_must_be_whole_patches() -> None:
    assert image_size_of(pixel_encoder(8, 32), 48) == 48
    with pytest.raises(
        ValueError, match="image_size must be a multiple of the patch size 8, got 30; 32 is the nearest"
    ):
        image_size_of(pixel_encoder(8, 32), 30)
