"""What a run prints: a progress bar, and one short line for each log line."""

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Protocol

from tqdm.auto import tqdm
from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    trainer,
)

from hf_geossl.data.evaluation_batches import FirstImages
from hf_geossl.data.streams import ImageStream
from hf_geossl.data.wording import folded
from hf_geossl.training.monitors.instruments import INSTRUMENTS


def take_progress(owner: trainer.Trainer, callback: TrainerCallback) -> None:
    """Puts a callback in the place of those of transformers that show progress, where a trainer has them.

    They are its bar, its lines, and in a notebook its table, which counts epochs.
    """
    kinds = (trainer.DEFAULT_PROGRESS_CALLBACK, ProgressCallback, PrinterCallback)
    if any([owner.pop_callback(kind) for kind in kinds]):  # noqa: C419
        owner.add_callback(callback)


class MonotonicBar(tqdm):
    """A progress bar by a clock that nobody sets while it runs."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._time = time.monotonic
        self.start_t = self.last_print_t = self._time()


class _CountsImages(Protocol):
    """Training arguments that know how many images a step takes."""

    disable_tqdm: bool | None

    @property
    def global_batch_size(self) -> int: ...


class ImagesProgressCallback(ProgressCallback):
    """transformers' progress bar, with the loss and images a second beside it; its log lines in words."""

    doing = "pretraining"  # what the bar says

    def __init__(self, args: _CountsImages, metrics: Sequence[str] = (), quantities: Sequence[str] = ()) -> None:
        super().__init__()
        self.training_bar: Any = None
        self.images_per_step, self.show_bar = args.global_batch_size, not args.disable_tqdm
        self.metrics, self.quantities = metrics, quantities
        self.loss = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Opens the bar at the step that the run goes on from."""
        self.current_step = state.global_step
        if state.is_world_process_zero and self.show_bar:
            self.training_bar = MonotonicBar(
                desc=self.doing,
                total=state.max_steps,
                initial=state.global_step,
                unit=" steps",
                dynamic_ncols=True,
                bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",  # it fits 80 columns
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Moves the bar."""
        if self.training_bar is None:
            return
        rate = self.training_bar.format_dict["rate"]
        speed = f"{rate * self.images_per_step:.1f} images/s" if rate else ""
        self.training_bar.set_postfix_str(", ".join(part for part in (self.loss, speed) if part), refresh=False)
        super().on_step_end(args, state, control, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Prints one short line; `report_to` and `trainer_state.json` have all of it."""
        line = self.describe(state.global_step, logs or {})
        if line is not None and state.is_world_process_zero:
            with tqdm.external_write_mode():
                # a pipe or a file gets each line when it is written, and before the bar comes back
                print(folded(line), flush=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Closes the bar."""
        self.close()

    def close(self) -> None:
        """Closes the bar, where there is one: what is printed next begins a line."""
        if self.training_bar is not None:
            self.training_bar.close()
            self.training_bar = None

    def describe(self, step: int, logs: Mapping[str, float]) -> str | None:
        """A log line in words; None where there is nothing to say."""
        if "train_runtime" in logs:
            took = timedelta(seconds=round(logs["train_runtime"]))
            speed = f", {logs['train_samples_per_second']:.1f} images/s" if "train_samples_per_second" in logs else ""
            loss = f", mean loss {logs['train_loss']:.3f}" if "train_loss" in logs else ""
            return f"step {step}: trained for {took}{speed}{loss}"
        if "loss" in logs:
            self.loss = f"loss {logs['loss']:.3f}"
            return f"step {step}: {', '.join(self._parts(logs))}"
        if "eval_loss" in logs:
            line = ", ".join(describe_losses(logs, self.metrics, self.quantities, prefix="eval_"))
            return f"step {step}, {count_of(int(logs['eval_images']), 'held-out image')}: {line}"
        if "skipped_steps" in logs:
            return f"step {step}: {count_of(int(logs['skipped_steps']), 'step')} left out, none made since"
        numbers = ", ".join(
            f"{name.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
            for name, value in logs.items()
            if name != "epoch"
        )
        return f"step {step}: {numbers}" if numbers else None

    def _parts(self, logs: Mapping[str, float]) -> list[str]:
        parts = describe_losses(logs, self.metrics, self.quantities)
        parts.append(f"learning rate {logs['learning_rate']:.2e}")
        parts += [f"{name.replace('_', ' ')} {value:.2f}" for name, value in logs.items() if name.endswith("_spread")]
        parts += [
            f"{INSTRUMENTS[name]} {100 * logs[name]:.0f} %"
            for name in INSTRUMENTS
            if name.endswith("_accuracy") and name in logs
        ]
        if "images_per_second" in logs:
            parts.append(f"{logs['images_per_second']:.1f} images/s")
        if "matrix_rate_share" in logs:
            parts.append(f"{100 * logs['matrix_rate_share']:.0f} % of the bf16 rate")
        if logs.get("data_wait", 0.0) >= 0.005:
            parts.append(f"{100 * logs['data_wait']:.0f} % waiting for images")
        if "memory_mb" in logs:
            parts.append(f"{logs['memory_mb'] / 1024:.1f} GiB")
        if logs.get("skipped_images"):
            parts.append(f"broken images passed over {count_of(int(logs['skipped_images']), 'time')}")
        if logs.get("skipped_steps"):
            parts.append(f"{count_of(int(logs['skipped_steps']), 'step')} left out")
        return parts


def count_of(number: int, noun: str) -> str:
    """A number with its noun: "1 image", "2 images"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def describe_losses(
    logs: Mapping[str, float], metrics: Sequence[str], quantities: Sequence[str] = (), prefix: str = ""
) -> list[str]:
    """Losses, quantities and metrics (in percent) in words: "loss 1.234", ...; `prefix` begins their names."""
    named = {name.removeprefix(prefix): value for name, value in logs.items() if name.startswith(prefix)}
    parts = [f"{name.removesuffix('_loss')} {value:.3f}" for name, value in named.items() if name.endswith("_loss")]
    shares = [f"{name.replace('_', ' ')} {100 * named[name]:.1f} %" for name in metrics if name in named]
    parts += [f"{name} {named[name]:.3f}" for name in quantities if name in named]
    return [f"loss {named['loss']:.3f}", *(part.replace("_", " ") for part in parts), *shares]


def describe_stream(stream: ImageStream | FirstImages) -> str:
    """Name and split of a stream."""
    split = stream.fingerprint["split"]
    return stream.source.name.removesuffix(f"/{split}") + (f" ({split})" if split else "")


def describe_evaluation(
    measured: Mapping[str, float], metrics: Sequence[str], quantities: Sequence[str], stream: ImageStream | FirstImages
) -> str:
    """What an evaluation has measured, in a line."""
    losses = ", ".join(describe_losses(measured, metrics, quantities, prefix="eval_"))
    return (
        f"losses on {count_of(int(measured['eval_images']), 'held-out image')} of {describe_stream(stream)}: {losses}"
    )
