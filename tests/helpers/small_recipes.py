"""Recipes of runs that take seconds, one a method, and the errors that commands print."""

import pytest

from hf_geossl.cli.main import main

SMALL = {
    "method": "gtsa",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "projector_hidden_size": 16,
    "projection_size": 16,
    "predictor_hidden_size": 16,
    "rotation_hidden_sizes": [16, 8],
    "roi_output_sizes": [3, 2],
    "num_matches": [8, 2],
    "global_size": 32,
    "local_size": 16,
    "num_local": 2,
    "per_device_train_batch_size": 8,
    "max_steps": 4,
    "logging_steps": 2,
    "save_steps": 2,
    "shuffle_block": 8,
    "base_learning_rate": 0.1,
    "use_cpu": True,
}

SMALL_LOCA = {
    "method": "loca",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "head_hidden_size": 32,
    "head_bottleneck_size": 16,
    "num_prototypes": 16,
    "num_kept_query_tokens": 6,
    "reference_size": 32,
    "focal_size": 16,
    "num_focal": 2,
    "per_device_train_batch_size": 8,
    "max_steps": 4,
    "logging_steps": 2,
    "save_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "shuffle_block": 8,
    "base_learning_rate": 0.05,
    "use_cpu": True,
}

SMALL_EQUICOHERENT = {
    "method": "equicoherent",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "patch_features": 48,
    "head_hidden_size": 32,
    "head_bottleneck_size": 16,
    "num_prototypes": 32,
    "projector_sizes": [32, 32],
    "global_size": 32,
    "local_size": 16,
    "per_device_train_batch_size": 4,
    "max_steps": 2,
    "logging_steps": 1,
    "shuffle_block": 8,
    "base_learning_rate": 0.05,
    "use_cpu": True,
}


def error_line(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that a command which fails prints."""
    assert main(list(argv)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]
