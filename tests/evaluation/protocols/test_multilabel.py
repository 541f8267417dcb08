"""Several labels an image: the mean over labels, and its floor."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from hf_geossl.evaluation.protocol import TaskResult
from tests.helpers.supervised import RenderedData


@pytest.mark.slow
def test_average_precision_is_that_of_each_label_by_itself(measured: dict[str, TaskResult]) -> None:
    result = measured["multilabel"]
    values = [value for value in result.details["average_precision"].values() if not np.isnan(value)]
    assert result.metrics["mean_average_precision"] == pytest.approx(np.mean(values))
    truth = np.stack([sample["multi_label"].numpy() for sample in RenderedData().test])
    equal = [average_precision_score(column, np.zeros(len(column))) for column in truth.T if column.any()]
    assert result.details["floors"]["mean_average_precision"]["equal scores"] == pytest.approx(np.mean(equal))
