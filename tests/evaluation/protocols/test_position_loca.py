"""LOCA's position accuracy: by hand, by a perfect head, and at chance."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationOptions
from hf_geossl.evaluation.protocols import position_loca as position
from tests.helpers.supervised import (
    RenderedData,
    locating_model,
    measure_quietly,
    small_model,
)
from tests.helpers.tiny_models import tiny_loca

QUIET = EvaluationOptions(progress=False, cache_dir=None, bootstrap=50)


def test_positions_are_scored_by_hand() -> None:
    positions = torch.tensor([[0, 5, -1, 15]])
    logits = F.one_hot(torch.tensor([[0, 8, 3, 12]]), 16).float()
    # right; (1, 1) found at (2, 0); outside; (3, 3) found at (3, 0)
    found, distance, inside = position.score_positions(logits, positions, 4)[0].tolist()
    assert (found, inside) == (1, 3)
    assert distance == pytest.approx(2**0.5 + 3)
    assert position.summarize(np.array([1, 2**0.5 + 3, 3])) == pytest.approx(
        {"accuracy": 1 / 3, "distance": (2**0.5 + 3) / 3}
    )


def test_a_head_that_knows_every_position_is_right_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder(tiny_loca())
    views = position._views(encoder, encoder.pretraining_model, position.PositionSettings(focal_queries=3))
    batch = next(RenderedData(limit=12).samples("test", size=40).batches(12))
    truths: list[torch.Tensor] = []
    original = position.score_positions

    def perfect(logits: torch.Tensor, positions: torch.Tensor, columns: int) -> torch.Tensor:
        truths.append(positions)
        return original(F.one_hot(positions.clamp_min(0), logits.shape[-1]), positions, columns)

    monkeypatch.setattr(position, "score_positions", perfect)
    sums = position._score_batch(encoder.pretraining_model, views, batch, 3, torch.device("cpu"), 0)
    assert sums.keys() == {"random_query", "random_query_masked", "focal_queries", "focal_queries_masked"}
    for values in sums.values():
        assert torch.equal(values[:, 0], values[:, 2])
        assert values[:, 1].sum() == 0
    assert sums["random_query"][:, 2].sum() == (truths[0] >= 0).sum() > 0


def test_views_show_as_much_of_an_image_as_the_settings_say() -> None:
    settings = position.PositionSettings(reference_scale=(0.5, 0.6), focal_scale=(0.2, 0.25))
    encoder = load_encoder(tiny_loca())
    sample = position._views(encoder, encoder.pretraining_model, settings).views(
        np.zeros((100, 100, 3), dtype=np.uint8), seed=0
    )
    x1, y1, x2, y2 = sample["crop_boxes"].unbind(dim=1)
    shares = (x2 - x1) * (y2 - y1) / 100**2
    assert ((shares[:2] > 0.48) & (shares[:2] < 0.62)).all()
    assert ((shares[2:] > 0.18) & (shares[2:] < 0.27)).all()


@pytest.mark.parametrize("given", [{}, {"location_target": "self"}], ids=["loca", "self"])
def test_position_accuracy_of_random_weights_is_chance_and_no_matter_of_batches(given: dict[str, Any]) -> None:
    encoder, data = load_encoder(tiny_loca(**given)), RenderedData(limit=40)
    settings = position.PositionSettings(focal_queries=2)
    result = position.measure_position(encoder, data, QUIET, settings)
    assert set(result.metrics) == {f"position_{w}{m}" for w in ("accuracy", "distance") for m in ("", "_masked")}
    assert result.details["floors"]["position_accuracy"] == {"chance": 1 / 16}
    assert result.details["floors"]["position_accuracy_masked"] == {"chance": 1 / 16}
    assert result.metrics["position_accuracy"] == pytest.approx(1 / 16, abs=0.06)
    assert 1 < result.metrics["position_distance"] < 4
    again = position.measure_position(encoder, data, replace(QUIET, batch_size=9), settings)
    assert again.metrics == pytest.approx(result.metrics, abs=1e-3)
    assert result.details["visible_positions_masked"] == 3


def test_predicted_positions_are_those_of_the_training_step() -> None:
    model = tiny_loca()
    reference, query = torch.randn(2, 2, 3, 32, 32)
    visible = torch.tensor([4, 1, 9])
    step = model(
        reference,
        query,
        random_query_positions=torch.zeros(2, 16, dtype=torch.long),
        kept_query_tokens=torch.arange(16),
        visible_reference_tokens=visible,
    )
    torch.testing.assert_close(model.predict_positions(reference, query, visible), step.random_query_logits)


def test_position_needs_the_training_head() -> None:
    with pytest.raises(ValueError, match="position needs the training head of a LOCAForPreTraining"):
        position.measure_position(load_encoder(small_model()), RenderedData(), QUIET, position.PositionSettings())


@pytest.mark.slow
def test_positions_are_found_by_who_learned_locas_loss(locating: Encoder) -> None:
    data = RenderedData(limit=60)
    result = measure_quietly("position", locating, data, focal_queries=3)
    random = measure_quietly("position", load_encoder(locating_model(1)), data, focal_queries=3)
    for metric in ("position_accuracy", "position_accuracy_masked"):
        assert random.metrics[metric] == pytest.approx(1 / 16, abs=0.03)
        assert result.metrics[metric] > random.metrics[metric] + 0.06  # .18, .19 over .07
