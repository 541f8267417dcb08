"""What an evaluation says that it will take: counts of work that are those which tasks do, and a line of seconds."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from hf_geossl.evaluation.duration import FIXED, Speed, duration_line, estimate, measure_speed
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import load_protocol
from hf_geossl.evaluation.reading.sample_store import SampleStore, StoredRows
from hf_geossl.evaluation.settings import Scale, Work
from tests.helpers.supervised import small_model

GIVEN: dict[str, dict[str, Any]] = {
    "knn": {"neighbours": (1,), "main_neighbours": 1},
    "linear": {"c_values": (1.0,)},
    "rotation": {"c_values": (1.0,)},
    "homography": {"steps": 3, "batch_size": 4},
    "equivariance": {
        "transformations_per_image": 2,
        "transformations": ("translation",),
        "mlp_epochs": 0,
        "components": 2,
    },
    "segmentation_finetune": {"steps": 3, "warmup_steps": 0, "batch_size": 4, "scales": (1.0, 1.0)},
}


@pytest.mark.parametrize("task", GIVEN)
def test_the_images_that_are_encoded_and_read_are_those_that_were_foreseen(
    task: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    encoder, counts = load_encoder(small_model(seed=1)), Counter[str]()
    data = EvaluationData(size=32, limit=12, store=SampleStore())
    protocol = load_protocol(task)
    settings = protocol.settings(**GIVEN[task])
    checked, fill = Encoder._checked, StoredRows.fill

    def count(self: Encoder, run: Any, pixel_values: Any) -> Any:
        share = pixel_values.shape[-1] ** 2 / 32**2  # of a whole image
        counts["encoded"] += round(len(pixel_values) * share * (4.5 if self.module.training else 1))
        return checked(self, run, pixel_values)

    def read(self: StoredRows) -> bool:
        before = self.filled
        filled = fill(self)
        counts["images"] += 0 if before else len(self)
        return filled

    monkeypatch.setattr(Encoder, "_checked", count)
    monkeypatch.setattr(StoredRows, "fill", read)
    protocol.measure(
        encoder, data, EvaluationOptions(progress=False, cache_dir=tmp_path, bootstrap=0, batch_size=8), settings
    )
    work = settings.work(Scale(12, 12, encoder.width, 16, 32**2, modes=2))
    assert counts["encoded"] == pytest.approx(work.encoded, rel=0.2)
    assert counts["images"] == sum(work.images.values())


def test_images_that_tasks_share_cost_the_first_alone() -> None:
    speed = Speed(image=2.0, encoding=0.5, step=0.1, operation=0.01)
    first, second = Work({"images": 10}, 4, 3, 100), Work({"images": 12, "from above": 1}, 0)
    assert estimate({"a": first, "b": second}, speed) == {"a": FIXED + 20 + 2 + 0.3 + 1, "b": FIXED + 4 + 2}


def test_the_line_names_each_task_and_reading_takes_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, data = load_encoder(small_model()), EvaluationData(size=32, limit=30)
    options = EvaluationOptions(progress=False)
    chosen = {name: load_protocol(name).settings() for name in ("knn", "linear")}
    speed = measure_speed(encoder, data, options)
    assert 0 < speed.operation < 1e-7
    assert 0 < speed.encoding < 1
    monkeypatch.setattr("hf_geossl.evaluation.duration.measure_speed", lambda *given: Speed(0.1, 0.05, 0.0, 0.0))
    assert duration_line(encoder, data, options, chosen) == "about 20 s (knn 13 s, linear 7 s)"
    assert duration_line(encoder, replace(data, limit=3000), options, {"knn": chosen["knn"]}) == "about 20 min for knn"
    assert duration_line(encoder, data, options, {}) is None
