"""LOCA's configuration: the paper's defaults, and what is refused."""

from typing import Any

import pytest

from hf_geossl import LOCAConfig
from tests.helpers.methods import METHODS

LOCA = METHODS["loca"]


_config = LOCA.config


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"head_hidden_size": 0}, "head_hidden_size must be at least 1, got 0"),
        ({"head_bottleneck_size": -1}, "head_bottleneck_size must be at least 1, got -1"),
        ({"num_prototypes": 0}, "num_prototypes must be at least 1, got 0"),
        ({"num_kept_query_tokens": 0}, "num_kept_query_tokens must be at least 1, got 0"),
        ({"student_temperature": 0}, "student_temperature must be above 0, got 0"),
        ({"teacher_temperature": float("nan")}, "teacher_temperature must be above 0, got nan"),
        ({"sinkhorn_iterations": -1}, "sinkhorn_iterations must be 0 or more, got -1"),
        ({"visible_reference_ratio": -0.1}, "visible_reference_ratio must be 0 or more, got -0.1"),
        ({"visible_reference_ratio": float("nan")}, "visible_reference_ratio must be 0 or more, got nan"),
        ({"reference_selection": "last"}, "reference_selection must be one of .*, got 'last'"),
        ({"location_target": "query"}, "location_target must be one of reference, self, got 'query'"),
        ({"use_cluster_loss": 2}, "use_cluster_loss"),
        ({"location_weight": -1.0}, "location_weight must be 0 or more"),
        ({"location_weight": 0.0, "use_cluster_loss": False}, "above 0 where there is no cluster loss, got 0.0"),
    ],
)
def test_configurations_that_make_no_sense_are_refused_by_name(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(Exception, match=told):
        _config(**fields)


def test_defaults_are_the_papers() -> None:
    config = LOCAConfig()
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (384, 6, 12)
    assert (config.hidden_act, config.layer_norm_eps, config.drop_path_rate) == ("gelu_pytorch_tanh", 1e-6, 0.0)
    assert (config.use_class_token, config.position_interpolation) == (False, "bilinear")
    assert (config.head_hidden_size, config.head_bottleneck_size, config.num_prototypes) == (2048, 256, 4096)
    assert (config.student_temperature, config.teacher_temperature, config.sinkhorn_iterations) == (0.1, 0.05, 3)
    assert (config.num_kept_query_tokens, config.visible_reference_ratio) == (70, 0.2)
    assert (config.reference_selection, config.use_cluster_loss) == ("consecutive", True)
    assert config.location_target == "reference"
