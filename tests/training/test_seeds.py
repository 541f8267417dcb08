"""Seeds: functions of the run's seed and a position."""

from types import SimpleNamespace

import numpy as np
import torch

from hf_geossl.training.seeds import EVALUATION, EVALUATION_VIEWS, PROCESS, TRAINING, ProcessSeedCallback, seed_at


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


def test_the_first_process_draws_what_it_would_draw_alone() -> None:
    def drawn(rank: int, step: int = 0) -> list[float]:
        args = SimpleNamespace(process_index=rank, seed=7)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            ProcessSeedCallback().on_train_begin(args, SimpleNamespace(global_step=step), None)  # type: ignore[arg-type]
            return torch.rand(3).tolist()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        alone = torch.rand(3).tolist()
    assert drawn(0) == alone
    assert drawn(1) == drawn(1)
    assert len({tuple(values) for values in (alone, drawn(1), drawn(2), drawn(1, step=5))}) == 4
