"""Seeds of a run: each is a function of the run's seed and of a position, so that nothing depends on what was drawn before."""

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# the first number of a position says what is drawn there
TRAINING, EVALUATION_VIEWS, PROCESS, EVALUATION = range(4)


def seed_at(seed: int, *position: int) -> int:
    """A seed for what is drawn at a position of the run.

    Args:
        seed (`int`): Of the run.
        position (`int`): Any non-negative numbers.

    Returns:
        `int`: In [0, 2^63).
    """
    drawn = np.random.SeedSequence((seed, *position)).generate_state(1, np.uint64)
    return int(drawn[0] >> np.uint64(1))


class ProcessSeedCallback(TrainerCallback):
    """Lets each process draw its own stochastic depth and tokens; the first draws what it would draw alone."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Seeds the process; the generators of a checkpoint are loaded after this."""
        if args.process_index:
            torch.manual_seed(seed_at(args.seed, args.process_index, PROCESS, state.global_step))
