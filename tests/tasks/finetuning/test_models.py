"""Models over trunks of any family, for the size that is asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from hf_geossl import GTSAConfig, GTSAModel
from hf_geossl.tasks.finetuning.kinds import find_task
from hf_geossl.tasks.finetuning.models import Start, head_class, image_processor_of, open_model
from hf_geossl.tasks.finetuning.settings import HeadSettings


@pytest.fixture
def dinov2(tmp_path: Path) -> tuple[Path, Dinov2Model]:
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path / "dinov2")
    return tmp_path / "dinov2", model


def test_features_of_a_foreign_trunk_stay(dinov2: tuple[Path, Dinov2Model]) -> None:
    folder, theirs = dinov2
    model: Any = Start.open(folder).build(find_task("segmentation"), ["a", "b"], HeadSettings()).eval()
    assert type(model).__name__ == "GTSAForSemanticSegmentation"
    assert (model.config.init_from, model.config.id2label) == ("dinov2", {0: "a", 1: "b"})
    images = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        expected = theirs(images).last_hidden_state
        torch.testing.assert_close(model.base_model(images).last_hidden_state, expected, rtol=1e-5, atol=1e-5)


def test_another_size_resamples_positions_and_the_processor_has_it(trunk: Path) -> None:
    start = Start.open(trunk, 64)
    assert start.image_size == 64
    model = start.build(find_task("depth"), (), HeadSettings(decoder_channels=8, max_depth=10.0))
    assert (model.config.image_size, model.config.max_depth) == (64, 10.0)
    processor: Any = image_processor_of(model, find_task("depth"))
    assert (processor.size["height"], processor.size["width"]) == (64, 64)
    with pytest.raises(ValueError, match="multiple of trunk's patch size 8, got 60: choose 56 or 64"):
        Start.open(trunk, 60)
    with pytest.raises(ValueError, match="decoder of depth must be one of dpt, linear, got 'upernet'"):
        start.build(find_task("depth"), (), HeadSettings(decoder="upernet"))
    with pytest.raises(ValueError, match="decoder_channels must be a multiple of 4"):
        start.build(find_task("depth"), (), HeadSettings(decoder_channels=6))


def test_only_fine_tuned_folders_are_opened(trunk: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="trunk holds GTSAModel, and no fine-tuned model"):
        open_model(trunk)
    with pytest.raises(ValueError, match="is no model's folder"):
        open_model(tmp_path)
    config = GTSAConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
    GTSAModel(config).save_pretrained(tmp_path / "bare")
    text = (tmp_path / "bare" / "config.json").read_text().replace("GTSAModel", "GTSAForDepthEstimation", 1)
    (tmp_path / "bare" / "config.json").write_text(text)
    with pytest.raises(ValueError, match="bare lacks weights of GTSAForDepthEstimation"):
        open_model(tmp_path / "bare")
    assert head_class("loca", "ForDepthEstimation").__name__ == "LOCAForDepthEstimation"
