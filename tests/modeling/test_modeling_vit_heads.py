"""Classification, segmentation and backbone on the trunk, alone and inside transformers' dense models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    DPTConfig,
    DPTForDepthEstimation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Trainer,
    TrainingArguments,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from hf_geossl import load_backbone
from tests.helpers.methods import (
    METHODS,
    Method,
    images,
    randomise,
)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return METHODS[request.param]


def _patches(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Without the class token, where there is one."""
    return tokens[:, 1:] if model.config.use_class_token else tokens


def test_classification_is_pool_norm_linear(method: Method) -> None:
    model = method.model("ForImageClassification", num_labels=5, layer_norm_eps=1e-3)
    pixels, labels = images(4, 3, 24, 32), torch.tensor([0, 4, 2, 2])
    outputs = model(pixels, labels=labels)
    pooled = method.pooled(model, method.trunk(model)(pixels).last_hidden_state)
    pooled = (pooled - pooled.mean(-1, keepdim=True)) / (pooled.var(-1, unbiased=False, keepdim=True) + 1e-3).sqrt()
    expected = (pooled * model.norm.weight + model.norm.bias) @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(outputs.logits, expected, rtol=0, atol=1e-5)
    nll = -expected.log_softmax(-1)[torch.arange(4), labels].mean()
    assert outputs.loss.item() == pytest.approx(nll.item(), abs=1e-5)
    assert model(pixels).loss is None


def test_segmentation_is_linear_on_patches_then_bilinear(method: Method) -> None:
    model = method.model("ForSemanticSegmentation", num_labels=5)
    pixels = images(2, 3, 24, 40)
    tokens = _patches(model, method.trunk(model)(pixels).last_hidden_state)
    scores = (tokens @ model.classifier.weight.T + model.classifier.bias).reshape(2, 3, 5, 5).permute(0, 3, 1, 2)
    rows = (torch.arange(24) + 0.5) / 8 - 0.5  # where each pixel lies between the patches, clamped at the edge
    columns = (torch.arange(40) + 0.5) / 8 - 0.5

    def hat(at: torch.Tensor, length: int) -> torch.Tensor:
        at = at.clamp(0, length - 1)
        return (1 - (at[:, None] - torch.arange(length)).abs()).clamp_min(0)

    expected = hat(rows, 3) @ scores @ hat(columns, 5).T
    torch.testing.assert_close(model(pixels).logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("ignored", [255, 7, -1])
def test_segmentation_loss_leaves_the_ignored_label_out(method: Method, ignored: int) -> None:
    model = method.model("ForSemanticSegmentation", num_labels=5, semantic_loss_ignore_index=ignored)
    pixels = images(2, 3, 16, 24)
    labels = torch.randint(0, 5, (2, 16, 24), generator=torch.Generator().manual_seed(0))
    labels[0, :10] = ignored
    outputs = model(pixels, labels=labels)
    terms = [
        -outputs.logits[b, :, y, x].log_softmax(0)[labels[b, y, x]]
        for b in range(2)
        for y in range(16)
        for x in range(24)
        if labels[b, y, x] != ignored
    ]
    assert len(terms) == 2 * 16 * 24 - 10 * 24
    assert outputs.loss.item() == pytest.approx(torch.stack(terms).mean().item(), abs=1e-5)
    assert model(pixels, labels=torch.full_like(labels, ignored)).loss.item() == 0  # a batch without truth is no NaN


@pytest.mark.parametrize("shape", [(2, 24, 16), (2, 2, 3), (1, 16, 24), (2, 1, 16, 24)])
def test_segmentation_labels_of_another_size_are_refused(method: Method, shape: tuple[int, ...]) -> None:
    model = method.kind("ForSemanticSegmentation")(method.config(num_labels=3, num_hidden_layers=1))
    with pytest.raises(ValueError, match=r"labels must have shape \(2, 16, 24\)"):
        model(torch.zeros(2, 3, 16, 24), labels=torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("kind", ["ForImageClassification", "ForSemanticSegmentation"])
def test_accumulated_batches_move_the_weights_as_one_large_batch(method: Method, kind: str, tmp_path: Path) -> None:
    """transformers' Trainer does not divide the loss where it believes that the model does."""
    label = torch.tensor(1) if kind == "ForImageClassification" else torch.arange(256).reshape(16, 16) % 3
    data = [{"pixel_values": images(3, 16, 16, seed=i), "labels": (label + i) % 3} for i in range(4)]
    moved = []
    for batch_size, accumulation in ((4, 1), (1, 4)):
        model = method.model(kind, num_labels=3, num_hidden_layers=1)
        args = TrainingArguments(
            str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=1.0,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
        )
        before = model.classifier.weight.detach().clone()
        Trainer(model, args, train_dataset=data).train()
        moved.append(model.classifier.weight.detach() - before)
    assert moved[0].norm() > 1e-2
    torch.testing.assert_close(moved[1], moved[0], rtol=1e-4, atol=1e-6)


def test_backbone_gives_the_trunks_layers_as_maps_and_as_tokens(method: Method) -> None:
    trunk = method.model("Model", out_indices=[0, 2, 4])
    pixels = images(2, 3, 24, 40)
    hidden = trunk(pixels, output_hidden_states=True).hidden_states
    for normalised in (True, False):
        for reshaped in (True, False):
            config = method.config(out_indices=[0, 2, 4], apply_layernorm=normalised, reshape_hidden_states=reshaped)
            backbone = method.kind("Backbone")(config).eval()
            backbone.load_state_dict(trunk.state_dict())
            assert backbone.out_features == ["stem", "stage2", "stage4"]
            assert backbone.channels == [32, 32, 32]
            outputs = backbone(pixels)
            assert outputs.hidden_states is None
            for found, index in zip(outputs.feature_maps, (0, 2, 4), strict=True):
                expected = trunk.layernorm(hidden[index]) if normalised else hidden[index]
                patches = _patches(trunk, expected)
                if reshaped:
                    expected = torch.stack([patches[:, i].T.T for i in range(15)], dim=1)
                    expected = expected.reshape(2, 3, 5, 32).permute(0, 3, 1, 2)
                elif not config.use_class_token:  # who takes tokens expects one before them
                    expected = torch.cat([sum(patches.unbind(1))[:, None] / 15, patches], dim=1)
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert len(backbone(pixels, output_hidden_states=True).hidden_states) == 5


def test_upernet_trains_saves_and_reloads(method: Method, tmp_path: Path) -> None:
    trunk = method.model("Model", std=0.1)
    trunk.save_pretrained(tmp_path / "trunk")
    config = UperNetConfig(
        backbone_config=method.config(out_indices=[1, 2, 3, 4]),
        hidden_size=16,
        auxiliary_in_channels=32,
        auxiliary_channels=8,
        pool_scales=[1, 2],
        num_labels=3,
    )
    torch.manual_seed(0)
    model = UperNetForSemanticSegmentation(config).eval()
    randomise(model)
    pretrained = load_backbone(str(tmp_path / "trunk"), out_indices=[1, 2, 3, 4])
    assert type(pretrained) is method.kind("Backbone")
    model.backbone.load_state_dict(pretrained.state_dict())
    pixels = images(2, 3, 32, 48)
    maps = model.backbone(pixels).feature_maps
    expected = _patches(trunk, trunk(pixels).last_hidden_state).transpose(1, 2).reshape(2, 32, 4, 6)
    torch.testing.assert_close(maps[-1], expected, rtol=0, atol=1e-6)
    model.save_pretrained(tmp_path / "segmenter")
    again = UperNetForSemanticSegmentation.from_pretrained(tmp_path / "segmenter")
    logits = model(pixels).logits
    assert logits.shape == (2, 3, 32, 48)
    torch.testing.assert_close(again(pixels).logits, logits, rtol=0, atol=1e-5 * logits.abs().max().item())
    again.train()(pixels, labels=torch.zeros(2, 32, 48, dtype=torch.long)).loss.backward()
    assert again.backbone.embeddings.position_embeddings.grad.norm() > 0


def test_dpt_takes_the_backbones_tokens(method: Method, tmp_path: Path) -> None:
    """One token more than patches: the class token, or the mean of the patches in its place."""
    config = DPTConfig(
        backbone_config=method.config(out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=False),
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_in_index=-1,
        readout_type="project",
        hidden_size=32,
        patch_size=8,
    )
    torch.manual_seed(0)
    model = DPTForDepthEstimation(config).eval()
    randomise(model.backbone, std=0.1)
    pixels = images(1, 3, 32, 32)
    tokens = model.backbone(pixels).feature_maps
    expected = model.backbone(pixels, output_hidden_states=True).hidden_states[1:]
    for found, wanted in zip(tokens, expected, strict=True):
        assert found.shape == (1, 17, 32)
        if not model.backbone.config.use_class_token:
            wanted = torch.cat([wanted.mean(1, keepdim=True), wanted], dim=1)
        assert torch.equal(found, wanted)
    model.save_pretrained(tmp_path)
    depth = model(pixels).predicted_depth
    assert torch.equal(DPTForDepthEstimation.from_pretrained(tmp_path)(pixels).predicted_depth, depth)


def test_mask2former_takes_the_backbone(method: Method, tmp_path: Path) -> None:
    config = Mask2FormerConfig(
        backbone_config=method.config(out_indices=[1, 2, 3, 4]),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=5,
        num_labels=3,
    )
    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation(config).eval()
    assert type(model.model.pixel_level_module.encoder) is method.kind("Backbone")
    pixels = images(1, 3, 64, 64)
    model.save_pretrained(tmp_path)
    again = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)
    logits = model(pixels).class_queries_logits
    assert logits.shape == (1, 5, 4)
    assert torch.equal(again(pixels).class_queries_logits, logits)
