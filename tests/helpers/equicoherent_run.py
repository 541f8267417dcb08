"""A small EquiCoherent run, in the test's process or in one of its own that may be killed: see loca_run.py."""

from pathlib import Path
from typing import Any

from transformers import set_seed

from hf_geossl import (
    EquiCoherentConfig,
    EquiCoherentForPreTraining,
    EquiCoherentTrainer,
    EquiCoherentTrainingArguments,
    EquiCoherentViews,
    load_stream,
)
from tests.helpers.exact_resume import run_and_die


def small_config(**fields: Any) -> EquiCoherentConfig:
    return EquiCoherentConfig(
        **{
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "drop_path_rate": 0.1,
            "patch_features": 48,
            "head_hidden_size": 32,
            "head_bottleneck_size": 16,
            "num_prototypes": 32,
            "projector_sizes": (32, 32),
            **fields,
        }
    )


def small_views(config: EquiCoherentConfig, **fields: Any) -> EquiCoherentViews:
    own = {name: getattr(config, name) for name in ("host", "transformation", "num_intermediate", "patch_size")}
    local = {"num_local": 2} if config.has_teacher else {}
    return EquiCoherentViews(**{**own, **local, "global_size": 32, "local_size": 16, **fields})


def small_arguments(output_dir: str | Path, **fields: Any) -> EquiCoherentTrainingArguments:
    defaults = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "disable_tqdm": True,
        "picture": False,
        "probe_every_steps": 0,  # when features are measured depends on the time that it takes
        "probe_time_share": 1.0,
    }
    return EquiCoherentTrainingArguments(
        output_dir=str(output_dir), **{**defaults, "base_learning_rate": 5e-2, **fields}
    )


def make_trainer(
    output_dir: str | Path,
    data: Any,
    callbacks: Any = None,
    config: dict[str, Any] | None = None,
    eval_dataset: Any = None,
    **fields: Any,
) -> EquiCoherentTrainer:
    set_seed(0)
    small = small_config(**(config or {}))
    return EquiCoherentTrainer(
        model=EquiCoherentForPreTraining(small),
        args=small_arguments(output_dir, **fields),
        train_dataset=load_stream(data, shuffle_block=8) if isinstance(data, str) else data,
        eval_dataset=eval_dataset,
        views=small_views(small),
        callbacks=callbacks,
    )


if __name__ == "__main__":
    run_and_die(make_trainer)
