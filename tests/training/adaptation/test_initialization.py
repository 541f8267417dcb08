"""`load_for_pretraining`: trunks of student and teacher from elsewhere, heads fresh or those of a run, and what is refused."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model, ViTImageProcessor, set_seed

from hf_geossl import GTSAForPreTraining, GTSAModel, load_for_pretraining
from hf_geossl.methods import METHODS
from tests.helpers import equicoherent_run, gtsa_run, loca_run

RUNS = {"gtsa": gtsa_run, "loca": loca_run, "equicoherent": equicoherent_run}
HEADS: dict[str, dict[str, Any]] = {
    "gtsa": {
        "projector_hidden_size": 16, "projection_size": 16, "predictor_hidden_size": 16, "rotation_hidden_sizes": (16, 8),
        "roi_output_sizes": (3, 2), "num_matches": (8, 2),
    },
    "loca": {"head_hidden_size": 32, "head_bottleneck_size": 16, "num_prototypes": 16, "num_kept_query_tokens": 6},
    "equicoherent": {
        "patch_features": 48, "head_hidden_size": 32, "head_bottleneck_size": 16, "num_prototypes": 32,
    },
}  # fmt: skip
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.25, 0.2]


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DINOv2 with layer scales that scale, made by transformers, with a processor of its own."""
    folder = tmp_path_factory.mktemp("sources") / "tiny-dinov2"
    set_seed(3)
    model = Dinov2Model(
        Dinov2Config(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=7,
            layerscale_value=0.7,
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    ViTImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", sorted(METHODS))
def test_student_and_teacher_start_as_the_source(method: str, dinov2: Path, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        model = load_for_pretraining(method, dinov2, drop_path_rate=0.0, **HEADS[method]).eval()
    assert model.config.init_from == "tiny-dinov2"
    pixels = torch.randn(2, 3, 42, 28)
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(dinov2)(pixels).last_hidden_state
        for owner in (model, model.teacher):
            found = getattr(owner, method)(pixels).last_hidden_state
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    described = model.config.get_image_format()
    assert (list(described.mean), list(described.std), described.is_rgb8) == (MEAN, STD, True)
    assert any("mask token" in record.message for record in caplog.records) == (method != "equicoherent")


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_run_starts_from_it_and_is_described(method: str, dinov2: Path, images: Any, tmp_path: Path) -> None:
    """The trainer's own views fit the patch of 7; LOCA's class token takes part in attention alone."""
    size = {"image_size": 28} if method == "loca" else {}
    model = load_for_pretraining(method, dinov2, **HEADS[method], **size)
    run = RUNS[method]
    fitting = run.make_trainer(tmp_path / "other", images)
    args = run.small_arguments(tmp_path, max_steps=2, anchor_weight=1.0, logging_steps=1)
    views = type(fitting).default_views(fitting, model)
    assert (views.mean, views.std) == (tuple(MEAN), tuple(STD))
    small: dict[str, Any] = {"global_size": 28, "local_size": 14}
    if method == "loca":
        small = {"reference_size": 28, "focal_size": 14, "patch_size": 7}
    elif method == "equicoherent":
        small |= {"host": "ibot", "patch_size": 7}
    trainer = type(fitting)(model, args, images, views=type(views)(image_format=views.image_format, **small))
    trainer.train()
    trainer.save_model()
    card = (tmp_path / "README.md").read_text()
    assert "| started from | tiny-dinov2 |" in card
    assert str(dinov2.parent) not in card + (tmp_path / "config.json").read_text()
    assert trainer.state.log_history[0]["anchor_loss"] < 0.3


def test_a_run_goes_on_with_heads_and_teacher_at_another_size(images: Any, tmp_path: Path, caplog: Any) -> None:
    trainer = loca_run.make_trainer(tmp_path / "run", images, save_steps=4, teacher_momentum=0.5)
    trainer.train()
    trainer.save_model()
    before = trainer.model.state_dict()
    with caplog.at_level(logging.WARNING):
        model = load_for_pretraining("loca", tmp_path / "run", image_size=48)
    after = model.state_dict()
    other = {name for name, value in after.items() if before[name].shape != value.shape}
    assert {name.rpartition(".")[0] for name in other} == {
        "position_predictor", "teacher.position_predictor", "loca.embeddings", "teacher.loca.embeddings",
    }  # fmt: skip
    assert all(torch.equal(after[name], before[name]) for name in after.keys() - other)
    assert not torch.equal(after["loca.layernorm.weight"], after["teacher.loca.layernorm.weight"])
    said = " ".join(record.message for record in caplog.records)
    assert "has positions for 4 x 4 patches: resampled to 6 x 6" in said
    assert "heads and teacher stay, but for position_predictor, teacher.position_predictor" in said
    same = load_for_pretraining("loca", tmp_path / "run").state_dict()
    assert all(torch.equal(same[name], before[name]) for name in before)


def test_a_run_of_another_method_gives_its_teachers_trunk(images: Any, tmp_path: Path) -> None:
    trainer = gtsa_run.make_trainer(tmp_path / "run", images, save_steps=4, teacher_momentum=0.5)
    trainer.train()
    model = load_for_pretraining("equicoherent", tmp_path / "run", **HEADS["equicoherent"])
    assert torch.equal(model.equicoherent.layernorm.weight, trainer.model.teacher.gtsa.layernorm.weight)
    assert torch.equal(model.teacher.equicoherent.layernorm.weight, trainer.model.teacher.gtsa.layernorm.weight)


def test_other_channels_and_patches(dinov2: Path) -> None:
    channels = {"image_format": {"channels": [1, 2, 3, 4], "names": list("abcd"), "mean": [0.5] * 4, "std": [0.2] * 4}}
    model = load_for_pretraining(
        "gtsa",
        dinov2,
        num_channels=4,
        channel_weights="repeat",
        patch_size=14,
        image_size=56,
        **HEADS["gtsa"],
        **channels,
    )
    assert model.gtsa.embeddings.patch_embeddings.weight.shape == (32, 4, 14, 14)
    assert torch.equal(model.gtsa.embeddings.position_embeddings, model.teacher.gtsa.embeddings.position_embeddings)
    assert model.config.get_image_format().names == tuple("abcd")


def test_what_contradicts_the_source_is_refused_in_a_sentence(dinov2: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="hidden_size must be 32, as in tiny-dinov2 that the run starts from, got 64: leave"
    ):
        load_for_pretraining("gtsa", dinov2, hidden_size=64)
    with pytest.raises(ValueError, match="method must be one of gtsa, loca, equicoherent, got 'dino'"):
        load_for_pretraining("dino", dinov2)
    GTSAModel(gtsa_run.small_config(use_class_token=False)).save_pretrained(tmp_path / "headless")
    with pytest.raises(
        ValueError, match="headless cannot be pretrained with EquiCoherent: use_class_token must be True"
    ):
        load_for_pretraining("equicoherent", tmp_path / "headless")


def test_heads_are_fresh_and_of_the_seed(dinov2: Path) -> None:
    models = []
    for seed in (1, 1, 2):
        set_seed(seed)
        models.append(load_for_pretraining("gtsa", dinov2, **HEADS["gtsa"]))
    assert isinstance(models[0], GTSAForPreTraining)
    weights = [model.projector.projection.weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(models[0].teacher.projector.projection.weight, weights[0])
