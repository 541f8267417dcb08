"""A small GTSA run, in the test's process or in one of its own that may be killed: python gtsa_run.py SETTINGS_JSON."""

from pathlib import Path
from typing import Any

from transformers import set_seed

from hf_geossl import GTSAConfig, GTSAForPreTraining, GTSATrainer, GTSATrainingArguments, GTSAViews, load_stream
from tests.helpers.exact_resume import run_and_die


def small_config(**fields: Any) -> GTSAConfig:
    return GTSAConfig(
        **{
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "projector_hidden_size": 16,
            "projection_size": 16,
            "predictor_hidden_size": 16,
            "rotation_hidden_sizes": (16, 8),
            "roi_output_sizes": (3, 2),
            "num_matches": (8, 2),
            **fields,
        }
    )


def small_views(**fields: Any) -> GTSAViews:
    return GTSAViews(**{"global_size": 32, "local_size": 16, "num_local": 2, **fields})


def small_arguments(output_dir: str | Path, **fields: Any) -> GTSATrainingArguments:
    defaults = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "disable_tqdm": True,
        "picture": False,
        "probe_every_steps": 0,  # when features are measured depends on the time that it takes
        "probe_time_share": 1.0,
    }
    return GTSATrainingArguments(output_dir=str(output_dir), **{**defaults, "base_learning_rate": 5e-2, **fields})


def make_trainer(output_dir: str | Path, data: Any, callbacks: Any = None, **fields: Any) -> GTSATrainer:
    set_seed(0)
    given = {name: fields.pop(name) for name in ("probe_dataset", "eval_dataset") if name in fields}
    return GTSATrainer(
        model=GTSAForPreTraining(small_config()),
        args=small_arguments(output_dir, **fields),
        train_dataset=load_stream(data, shuffle_block=8) if isinstance(data, str) else data,
        views=small_views(),
        callbacks=callbacks,
        **given,
    )


if __name__ == "__main__":
    run_and_die(make_trainer)
