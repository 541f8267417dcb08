"""A small LOCA run, in the test's process or in one of its own that may be killed: python loca_run.py SETTINGS_JSON."""

from pathlib import Path
from typing import Any

from transformers import set_seed

from hf_geossl import LOCAConfig, LOCAForPreTraining, LOCATrainer, LOCATrainingArguments, LOCAViews, load_stream
from tests.helpers.exact_resume import run_and_die


def small_config(**fields: Any) -> LOCAConfig:
    return LOCAConfig(
        **{
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "drop_path_rate": 0.1,
            "head_hidden_size": 32,
            "head_bottleneck_size": 16,
            "num_prototypes": 16,
            "num_kept_query_tokens": 6,
            **fields,
        }
    )


def small_views(**fields: Any) -> LOCAViews:
    return LOCAViews(**{"reference_size": 32, "focal_size": 16, "num_focal": 2, "patch_size": 8, **fields})


def small_arguments(output_dir: str | Path, **fields: Any) -> LOCATrainingArguments:
    defaults = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "disable_tqdm": True,
        "picture": False,
        "probe_every_steps": 0,  # when features are measured depends on the time that it takes
        "probe_time_share": 1.0,
    }
    return LOCATrainingArguments(output_dir=str(output_dir), **{**defaults, "base_learning_rate": 5e-2, **fields})


def make_trainer(
    output_dir: str | Path,
    data: Any,
    callbacks: Any = None,
    config: dict[str, Any] | None = None,
    eval_dataset: Any = None,
    **fields: Any,
) -> LOCATrainer:
    set_seed(0)
    return LOCATrainer(
        model=LOCAForPreTraining(small_config(**(config or {}))),
        args=small_arguments(output_dir, **fields),
        train_dataset=load_stream(data, shuffle_block=8) if isinstance(data, str) else data,
        eval_dataset=eval_dataset,
        views=small_views(),
        callbacks=callbacks,
    )


if __name__ == "__main__":
    run_and_die(make_trainer)
