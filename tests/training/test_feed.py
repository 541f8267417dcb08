"""From batches to inputs: drawn from the run's seed and the batch's place in the run, whatever the number of processes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hf_geossl.training.feed import EVALUATION, EVALUATION_VIEWS, PROCESS, TRAINING, TrainingFeed, seed_at
from tests.helpers.gtsa_run import make_trainer, small_arguments


class DrawingViews:
    """Views whose augmentation is the first number that the generator draws."""

    def augment(self, batch: Any, generator: torch.Generator) -> Any:
        return {**batch, "drawn": torch.randint(2**31, (), generator=generator).item()}


def _feed(rank: int, world_size: int) -> TrainingFeed:
    args: Any = SimpleNamespace(seed=5, world_size=world_size, process_index=rank)
    views: Any = DrawingViews()
    feed = TrainingFeed(args, views)
    batches: Any = SimpleNamespace(advance=lambda batch: batch.pop("keys"), skipped_images=3)
    feed.batches = batches
    return feed


def _drawn(feed: TrainingFeed, step: int, batches: int) -> list[int]:
    feed.begin_step()
    return [feed.make_inputs({"keys": []}, step, dict)[0]["drawn"] for _ in range(batches)]  # type: ignore[misc]


def test_a_batch_draws_from_its_place_in_the_run() -> None:
    expected = [
        torch.randint(2**31, (), generator=torch.Generator().manual_seed(seed_at(5, 0, TRAINING, 7, place))).item()
        for place in range(4)
    ]
    assert _drawn(_feed(0, 1), 7, 4) == expected
    assert len(set(expected)) == 4
    two = [_drawn(_feed(rank, 2), 7, 2) for rank in range(2)]  # the same four batches, on two processes
    assert [two[place % 2][place // 2] for place in range(4)] == expected
    assert _drawn(_feed(0, 1), 8, 4) != expected


def test_inputs_do_not_depend_on_what_was_drawn_before() -> None:
    feed = _feed(0, 1)
    first = _drawn(feed, 3, 2)
    torch.rand(5)
    _drawn(feed, 4, 3)
    assert _drawn(feed, 3, 2) == first


def test_the_batch_stays_as_it_is_and_its_keys_are_returned() -> None:
    batch = {"keys": ["a", "b"], "crops": torch.zeros(2)}
    feed = _feed(0, 1)
    moved: list[set[str]] = []

    def to_device(crops: dict[str, Any]) -> dict[str, Any]:
        moved.append(set(crops))
        return crops

    inputs, keys = feed.make_inputs(batch, 0, to_device)
    assert keys == ["a", "b"]
    assert set(batch) == {"keys", "crops"}
    assert moved == [{"crops"}]
    assert set(inputs) == {"crops", "drawn"}
    assert (feed.micro_batch, feed.skipped_images) == (1, 3)
    said: list[str] = []
    feed.opened().log_notes = said.append  # type: ignore[method-assign]
    feed.log_notes()
    assert said == ["in the whole run"]


def test_before_training_there_are_no_batches(tmp_path: Path) -> None:
    views: Any = DrawingViews()
    feed = TrainingFeed(small_arguments(tmp_path), views)
    assert feed.skipped_images == 0
    feed.log_notes()  # nothing to say
    with pytest.raises(ValueError, match="there are batches and checkpoints during training only: call train"):
        feed.opened()
    with pytest.raises(ValueError, match="training needs a train_dataset: load_stream"):
        feed.open(None, None)


def test_a_run_from_other_streams_than_its_checkpoints_keeps_those(images: Any, tmp_path: Path) -> None:
    make_trainer(tmp_path, images, max_steps=2, save_steps=2, num_streams=2).train()
    resumed = make_trainer(tmp_path, images, max_steps=3)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.feed.batches is not None
    assert resumed.feed.batches.state_dict()["num_streams"] == 2


def test_a_seed_is_numpys_seed_sequence_of_the_position() -> None:
    """63 bits, so that torch, which takes signed numbers, takes them all."""
    expected = int(np.random.SeedSequence([5, 1, 2, 3]).generate_state(1, np.uint64)[0]) // 2
    assert seed_at(5, 1, 2, 3) == expected
    assert 0 <= expected < 2**63
    torch.Generator().manual_seed(2**63 - 1)


def test_no_two_positions_share_a_seed() -> None:
    """Steps, places in a step, purposes and processes of a run, and neighbouring seeds of runs."""
    kinds = (TRAINING, EVALUATION_VIEWS, PROCESS, EVALUATION)
    assert len(set(kinds)) == 4
    positions = [
        (seed, 0, kind, step, place) for seed in (0, 1) for kind in kinds for step in range(40) for place in (0, 1)
    ]
    assert len({seed_at(*position) for position in positions}) == len(positions) == 640
