"""The simulation of docs/shard_assignment.py says of a small run what the streams themselves do."""

import importlib.util
import itertools
from types import ModuleType

import numpy as np
import pytest
import torch

from hf_geossl.data.batches import StreamBatches
from hf_geossl.data.streams import ImageStream
from tests.helpers.golden import ROOT


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    path = ROOT / "docs" / "shard_assignment.py"
    spec = importlib.util.spec_from_file_location("shard_assignment", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Views:
    def __call__(self, image: object, *, seed: int) -> dict[str, torch.Tensor]:
        return {"seed": torch.tensor(seed)}

    def collate(self, samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {"seed": torch.stack([sample["seed"] for sample in samples])}


def test_simulation_counts_what_streams_deliver(simulation: ModuleType) -> None:
    """64 units of 2 or 3 rows, 4 processes of 2 streams: images of the first pass after each of its parts."""
    ranks, each, rows = 4, 2, 150
    stream = ImageStream.from_dataset([{"image": np.full((2, 2, 3), n, np.uint8)} for n in range(rows)], seed=3)
    units = stream.source.units
    assert units == 64
    sizes = np.array([len(range(unit, rows, units)) for unit in range(units)])  # as `indexed_source` deals them
    run = simulation.Assignment(sizes, ranks, each, epochs=2, seed=3)
    run.check_complete()
    batches = [
        StreamBatches(stream, _Views(), 1, rank=r, world_size=ranks, num_streams=ranks * each) for r in range(ranks)
    ]
    seen = [[rank.advance(batch)[0] for batch in itertools.islice(rank.loader(), 36)] for rank in batches]
    for steps in (4, 12, 16, 36):
        given = [key for keys in seen for key in keys[:steps]]
        passes = (ranks * steps + 0.5) / rows  # as many of each stream
        first = run.seen(passes)[0] * rows
        again = run.seen(passes)[1:].sum() * rows
        assert first + again == pytest.approx(len(given))
        assert len(set(given)) <= first + again
        if steps <= 12:  # before anyone begins the next pass
            assert len(set(given)) == round(first) == len(given)


def test_simulation_finds_a_rule_that_is_broken(simulation: ModuleType) -> None:
    run = simulation.Assignment(np.full(100, 7), 8, 2, epochs=2)
    run.check_complete()
    run.order[3] = run.order[4]
    with pytest.raises(AssertionError, match="epoch 0 does not hold every unit once"):
        run.check_complete()


def test_simulation_at_size_is_complete_and_even(simulation: ModuleType) -> None:
    """10^9 images on 4096 processes, without visiting one."""
    sizes = np.random.default_rng(0).integers(1000, 4000, 400_000)
    run = simulation.Assignment(sizes, 4096, 8, epochs=1)
    run.check_complete()
    assert run.images == pytest.approx(1e9, rel=0.01)
    assert run.seen(1.0)[0] > 0.95
    at = run.positions(1.0)
    assert 0.6 < at.min() < 1 < at.max() < 1.5
    assert simulation.state_bytes(4096 * 8) < 10e6
