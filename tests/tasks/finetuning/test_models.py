"""Models over trunks of any family, for the size that is asked for."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from transformers import (
    BeitConfig,
    BeitModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    SwinConfig,
    SwinModel,
)

from hf_geossl import GTSAConfig, GTSAModel
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.tasks.finetuning.kinds import find_task
from hf_geossl.tasks.finetuning.models import Start, head_class, image_processor_of, open_model
from hf_geossl.tasks.finetuning.settings import HeadSettings
from tests.helpers.foreign_trunks import write_foreign_trunk


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


def test_what_evaluation_reads_and_no_trunk_stands_for_is_taken_as_it_is(tmp_path: Path) -> None:
    write_foreign_trunk("beit", tmp_path / "beit")
    write_foreign_trunk("cait", tmp_path / "cait")
    start = Start.open(tmp_path / "beit")
    (line,) = start.lines
    assert line.startswith("beit stays BeitModel of transformers, which the fine-tuned model needs to open (")
    assert "BEiT has a relative position bias" in line
    model: Any = start.build(find_task("classification"), ["a", "b"], HeadSettings())
    assert (model.config.init_from, model.config.get_image_format().mean) == ("beit", (0.5, 0.5, 0.5))
    assert Start.open(tmp_path / "beit", 48).image_size == 48  # its positions are resampled by its own code
    with pytest.raises(ValueError, match="cait was made for images of 32 pixels and does not take 48 x 48"):
        Start.open(tmp_path / "cait", 48)
    with pytest.raises(ValueError, match="multiple of beit's patch size 8, got 60: choose 56 or 64"):
        Start.open(tmp_path / "beit", 60)
    model.save_pretrained(tmp_path / "tuned")
    image_processor_of(model, find_task("classification")).save_pretrained(tmp_path / "tuned")
    encoder = load_encoder(tmp_path / "tuned")
    assert (type(encoder.module).__name__, encoder.mean, encoder.image_size) == ("BeitModel", (0.5, 0.5, 0.5), 32)
    again: Any = Start.open(tmp_path / "tuned").build(find_task("depth"), (), HeadSettings(decoder="linear"))
    assert again.base_model.state_dict().keys() == model.base_model.state_dict().keys()
    for name, tensor in model.base_model.state_dict().items():
        assert torch.equal(again.base_model.state_dict()[name], tensor), name


def test_what_evaluation_does_not_read_either_is_refused_with_its_reason(tmp_path: Path) -> None:
    config = SwinConfig(image_size=32, patch_size=2, embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=4)
    SwinModel(config).save_pretrained(tmp_path / "swin")
    with pytest.raises(ValueError, match="Swin attends in windows and has no layers of one width"):
        Start.open(tmp_path / "swin")
    ConvNextModel(ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4)).save_pretrained(tmp_path / "convnext")
    sizes = {"embed_dim": 16, "num_heads": 1, "stages": (1, 1, 1, 1)}
    save_for_hf(timm.create_model("hiera_tiny_224", num_classes=0, **sizes), tmp_path / "hiera", model_args=sizes)
    sizes = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
    save_for_hf(timm.create_model("beit_base_patch16_224", num_classes=0, **sizes), tmp_path / "wide", model_args=sizes)
    for name, words in (
        ("convnext", "ConvNeXt has convolutions and no tokens"),
        ("hiera", "must be a plain VisionTransformer, got Hiera"),
        ("wide", "has unknown blocks.0.attn.relative_position_bias_table"),
    ):
        with pytest.raises(ValueError, match=words):
            Start.open(tmp_path / name)
    for name in ("convnext", "hiera"):
        with pytest.raises(TypeError, match="must be a (plain )?vision transformer"):
            load_encoder(tmp_path / name)
    wide = BeitConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=(32, 48), patch_size=8)
    BeitModel(wide).save_pretrained(tmp_path / "wide")
    assert Start.open(tmp_path / "wide").lines[0] == "wide was made for 32 x 48 pixels: 48 x 48 here"
    bands = BeitConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, num_channels=5)
    BeitModel(bands).save_pretrained(tmp_path / "bands")
    with pytest.raises(ValueError, match="bands takes 5 channels and does not say which"):
        _ = Start.open(tmp_path / "bands").image_format
