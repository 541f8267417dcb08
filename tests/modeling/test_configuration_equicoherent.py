"""EquiCoherent's configuration: the papers' defaults, and what is refused."""

import math
from typing import Any

import pytest
import torch

from hf_geossl import EquiCoherentConfig
from tests.helpers.methods import METHODS, randomise

EQUICOHERENT = METHODS["equicoherent"]


HOSTS = ["ibot", "dinov2", "dino", "vicreg", "simclr"]


def _config(**fields: Any) -> Any:
    return EQUICOHERENT.config(**{"num_hidden_layers": 2, **fields})


def _model(std: float = 0.5, **fields: Any) -> Any:
    """Random weights and centers; student and teacher differ. In eval mode, which decides only about centers."""
    model = EQUICOHERENT.model("ForPreTraining", std, **{"num_hidden_layers": 2, **fields})
    if model.teacher is not None:
        randomise(model.teacher, std, seed=5)
    if model.reconstruction is not None:
        randomise(model.reconstruction, 0.2, seed=6)
    generator = torch.Generator().manual_seed(9)
    for name, center in model.named_buffers(recurse=False):
        assert name in ("class_center", "patch_center")
        center.normal_(std=0.2, generator=generator)
    return model


def test_defaults_are_the_papers() -> None:
    def features(**fields: Any) -> tuple[int, int, int]:
        config = EquiCoherentConfig(**fields)
        return config.patch_features, config.equivariant_features, config.num_prototypes

    assert features() == (8192, 2048, 8192)
    assert features(split="logits") == (8192, 2048, 6144)
    assert features(host="dinov2") == (2048, 512, 65536)
    assert features(host="dino")[2] == 65536
    assert features(host="vicreg")[:2] == features(host="simclr")[:2] == (512, 256)
    # rules for small models: a quarter, half where there is no teacher
    assert [features(host=host, patch_features=96)[1] for host in HOSTS] == [24, 24, 24, 48, 48]
    config = EquiCoherentConfig()
    assert (config.host, config.transformation, config.num_intermediate, config.reconstruction_weight) == (
        "ibot",
        "se2",
        2,
        1.0,
    )
    assert (config.split, config.reconstruct_final, config.recon_unmasked) == ("feature", False, False)
    assert (config.head_hidden_size, config.head_bottleneck_size, config.shared_head) == (2048, 256, True)
    assert (config.student_temperature, config.teacher_temperature, config.center_momentum) == (0.1, 0.07, 0.9)
    assert (config.class_loss_weight, config.patch_loss_weight, config.koleo_weight) == (1, 1, 0.1)
    assert (config.centering, config.sinkhorn_iterations, config.pool) == ("softmax", 3, "mean")
    assert (config.invariance_weight, config.variance_weight, config.covariance_weight) == (10, 10, 1)
    assert (config.contrast_temperature, config.drop_path_rate) == (0.1, 0.1)
    assert [EquiCoherentConfig(hidden_size=d).decoder_hidden_size for d in (384, 192, 1024)] == [192, 96, 256]
    assert [EquiCoherentConfig(host=host).norm_last_layer for host in HOSTS[:3]] == [False, False, True]
    assert not any(EquiCoherentConfig(host=host).use_mask_token for host in HOSTS)
    for host in HOSTS:  # a student that is masked has a mask token, and nobody else, so that all are trained
        model = _model(host=host)
        masked = [name for name, _ in model.named_parameters() if name.endswith("mask_token")]
        assert masked == (["equicoherent.embeddings.mask_token"] if host in ("ibot", "dinov2") else [])


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"host": "moco"}, "host must be one of ibot, dinov2, dino, vicreg, simclr, got 'moco'"),
        ({"transformation": "shear"}, "transformation must be one of se2, .*, None, got 'shear'"),
        ({"split": "token"}, "split must be one of feature, logits, got 'token'"),
        ({"centering": "mean"}, "centering must be one of softmax, sinkhorn, got 'mean'"),
        ({"pool": "max"}, "pool must be one of mean, class, got 'max'"),
        ({"equivariant_features": 24}, "equivariant_features must be at least 1 and below patch_features=24.* got 24"),
        ({"equivariant_features": 30}, "equivariant_features .* below patch_features=24, .* got 30"),
        ({"equivariant_features": 0}, "equivariant_features must be at least 1 .* got 0"),
        ({"split": "logits", "host": "dinov2"}, "split='logits' .*iBOT's head, got host='dinov2'"),
        (
            {"split": "logits", "num_prototypes": 20},
            "num_prototypes must be .* = 16 .*, got 20; leave it out or set it to none",
        ),
        ({"centering": "sinkhorn"}, "centering='sinkhorn' is DINOv2's, got host='ibot'"),
        ({"use_class_token": False}, "use_class_token must be True.* got False"),
        ({"num_intermediate": -1}, "num_intermediate must be 0 or more, got -1"),
        ({"reconstruction_weight": -0.5}, "reconstruction_weight must be 0 or more, got -0.5"),
        ({"reconstruction_weight": float("nan")}, "reconstruction_weight must be 0 or more, got nan"),
        ({"koleo_weight": -1}, "koleo_weight must be 0 or more, got -1"),
        ({"student_temperature": 0}, "student_temperature must be above 0, got 0"),
        ({"teacher_temperature": -1.0}, "teacher_temperature must be above 0, got -1"),
        ({"num_prototypes": 0}, "num_prototypes must be at least 2, .* got 0"),
        ({"num_prototypes": 1}, "num_prototypes must be at least 2, .* got 1"),
        (
            {"split": "logits", "num_prototypes": None, "equivariant_features": 23},
            "num_prototypes .* at least 2, .* got 1",
        ),
        ({"reconstruction_weight": math.inf}, "reconstruction_weight must be 0 or more, got inf"),
        ({"class_loss_weight": math.inf}, "class_loss_weight must be 0 or more, got inf"),
        ({"teacher_temperature": math.inf}, "teacher_temperature must be above 0, got inf"),
        ({"decoder_hidden_size": 0}, "decoder_hidden_size must be above 0, got 0"),
        ({"center_momentum": 1.5}, r"center_momentum must be in \[0, 1\], got 1.5"),
        ({"projector_sizes": ()}, r"projector_sizes must be one or more widths, got \(\)"),
        ({"projector_sizes": (8, 0)}, r"projector_sizes must be one or more widths, got \(8, 0\)"),
        ({"host": "dinov2", "centering": "sinkhorn", "sinkhorn_iterations": 0}, "sinkhorn_iterations must be .* got 0"),
    ],
)
def test_configurations_that_make_no_sense_are_refused_by_name(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(Exception, match=told):
        _config(**fields)
