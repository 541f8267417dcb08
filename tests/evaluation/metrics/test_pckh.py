"""PCKh by hand."""

import numpy as np

from hf_geossl.evaluation.metrics import (
    PCKh,
)


def test_pckh_by_hand() -> None:
    truth = np.zeros((2, 3, 2))
    guess = np.array([[[5, 0], [0, 5.01], [1, 1]], [[3, 4], [30, 40], [np.nan, 0]]])
    visible = [[1, 1, 0], [1, 1, 0]]
    result = PCKh().compute(predictions=guess, references=truth, head_sizes=[10, 10], visible=visible)
    assert result["pckh"] == 2 / 4
    np.testing.assert_array_equal(result["pckh_per_joint"], [1, 0, np.nan])
    wider = PCKh(threshold=5.0).compute(predictions=guess, references=truth, head_sizes=[10, 10], visible=visible)
    assert wider["pckh"] == 1
    larger_head = PCKh().compute(predictions=guess, references=truth, head_sizes=[11, 10], visible=visible)
    assert larger_head["pckh"] == 3 / 4
