"""Configurations of the trunk that make no sense are refused by the name of the field."""

from typing import Any

import pytest

from tests.helpers.methods import (
    METHODS,
    Method,
)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return METHODS[request.param]


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_size": 0},
        {"patch_size": -8},
        {"image_size": 36},
        {"image_size": [32, 4]},
        {"drop_path_rate": 1.0},
        {"intermediate_size": 0},
        {"layer_norm_eps": float("nan")},
        {"initializer_range": -0.1},
        {"position_interpolation": "nearest"},
    ],
)
def test_configurations_that_make_no_sense_are_refused_by_name(method: Method, fields: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=next(iter(fields))):
        method.config(**fields)


def test_heads_that_do_not_divide_the_width_are_refused(method: Method) -> None:
    with pytest.raises(ValueError, match="multiple of num_attention_heads, got 33 and 2"):
        method.kind("Model")(method.config(hidden_size=33))
