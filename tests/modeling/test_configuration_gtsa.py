"""GTSA's configuration refuses what makes no sense, by the name of the field."""

from typing import Any

import pytest

from tests.helpers.methods import METHODS

_config = METHODS["gtsa"].config


@pytest.mark.parametrize(
    "fields",
    [
        {"num_matches": (6,)},
        {"roi_output_sizes": (4, 0)},
        {"rotation_hidden_sizes": ()},
        {"rotation_hidden_sizes": (16, 0)},
        {"projection_size": 0},
        {"position_interpolation_offset": 1.0},
        {"position_interpolation_offset": -0.1},
    ],
)
def test_configurations_that_make_no_sense_are_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=next(iter(fields))):
        _config(**fields)
