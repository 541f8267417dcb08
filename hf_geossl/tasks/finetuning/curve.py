"""The learning curve of a fine-tuning: loss and metric over its steps, beside what trivial predictions reach."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from hf_geossl.hub.headlines import GUESSING, metric_words
from hf_geossl.tasks.finetuning.kinds import FineTuningTask
from hf_geossl.training.pictures.learning_curve import Panel, draw_curves


def draw_curve(history: Sequence[Mapping[str, Any]], task: FineTuningTask, result: Mapping[str, Any]) -> Image.Image:
    """Draws training loss, loss on test images and the task's metric, from a Trainer's `log_history`.

    Args:
        history (`Sequence[Mapping]`): The log of the run.
        task (`FineTuningTask`): Whose metric.
        result (`Mapping`): As `results.json` has it, for the floors.
    """
    floors = result.get("details", {}).get("floors", {}).get(task.metric, {})
    named = {name.replace("_", " ").replace("constant", GUESSING): value for name, value in floors.items()}
    shown = []
    for key, title, levels in (
        ("loss", "training loss", {}),
        ("eval_loss", "test loss", {}),
        (f"eval_{task.metric}", metric_words(task.metric), named),
    ):
        points = [(int(entry["step"]), float(entry[key])) for entry in history if key in entry]
        points = [(step, value) for step, value in points if value == value]  # not NaN
        if points:
            shown.append(Panel(title, points, levels, is_share=key == "eval_accuracy"))
    return draw_curves(shown)
