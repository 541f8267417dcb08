"""Depth: losses, heads and crops by their papers; frozen tokens above their floors; DPT end to end, by windows."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F
from transformers import DPTConfig, DPTForDepthEstimation

from hf_geossl import GTSAConfig, GTSAModel
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.fitting.classifiers import hold_out
from hf_geossl.evaluation.fitting.fit import layer_decay_groups
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import load_protocol
from hf_geossl.evaluation.protocols.depth import (
    DPTHead,
    DPTSettings,
    LinearDepthSettings,
    crop_mask,
    fit_linear_depth,
    score_depth,
    train_dpt,
)
from hf_geossl.evaluation.samples import load_samples
from hf_geossl.modeling.dense_heads import silog_loss
from tests.helpers.supervised import small_model
from tests.helpers.tiny_models import foreign_model

QUIET = EvaluationOptions(cache_dir=None, progress=False, bootstrap=50)


SMALL: dict[str, Any] = {"neck_hidden_sizes": (8, 8, 16, 16), "fusion_hidden_size": 16}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(small_model())


@pytest.mark.slow
def test_supervised_tokens_know_more_of_depth_than_random_ones(supervised: Encoder) -> None:
    data = EvaluationData(size=64, limit=300)
    settings = LinearDepthSettings()
    result = load_protocol("depth").measure(supervised, data, QUIET, settings)
    floors = result.details["floors"]
    assert result.metrics["abs_rel"] < 0.8 * floors["random_weights"] < 0.8 * floors["constant"]
    assert result.metrics["delta1"] > 0.4
    for name, value in result.metrics.items():
        low, high = result.intervals[name]
        assert low < value < high
    assert result.details["images"] == 300
    assert isinstance(result.pictures["samples"](), Image.Image)
    json.dumps(result.details, allow_nan=False)

    logs, depths = [], []
    for sample in load_samples("scenes", "train", size=64, limit=300):
        logs.append(sample["depth"][sample["depth"] < 80].double().log())
    constant = float(torch.cat(logs).mean().exp())
    for sample in load_samples("scenes", "test", size=64, limit=300):
        truth = sample["depth"][sample["depth"] < 80]
        depths.append(float(((truth - constant).abs() / truth).mean()))
    assert floors["constant"] == pytest.approx(np.mean(depths), rel=1e-4)


def test_numbers_repeat_with_and_without_a_cache_and_leave_the_generator_alone(
    encoder: Encoder, tmp_path: Path
) -> None:
    data = EvaluationData(size=64, limit=16)
    before, weights = torch.get_rng_state(), encoder.fingerprint
    for task, settings in (
        ("depth", LinearDepthSettings(random_floor=False)),
        ("depth_dpt", DPTSettings(**SMALL, steps=3, batch_size=4)),
    ):
        options = (QUIET, replace(QUIET, cache_dir=tmp_path), replace(QUIET, cache_dir=tmp_path))
        results = [load_protocol(task).measure(encoder, data, how, settings) for how in options]
        assert all(result.metrics == results[0].metrics for result in results)
        other = load_protocol(task).measure(encoder, data, replace(QUIET, seed=1), settings)
        assert (other.metrics == results[0].metrics) == (task == "depth")  # in closed form nothing is drawn
    assert torch.equal(torch.get_rng_state(), before)
    assert encoder.fingerprint == weights


@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_other_libraries_transformers_go_through_the_same_code(kind: str) -> None:
    model = foreign_model(kind, size=48, width=32, layers=5)
    encoder, data = load_encoder(model), EvaluationData(size=64, limit=8)
    for task, settings in (
        ("depth", LinearDepthSettings(random_floor=False)),
        ("depth_dpt", DPTSettings(**SMALL, steps=2, batch_size=4, crop_size=48)),
    ):
        result = load_protocol(task).measure(encoder, data, QUIET, settings)
        assert all(math.isfinite(value) for value in result.metrics.values())
        assert 0 < result.metrics["abs_rel"] < 10
        assert result.details["images"] == 8


def test_images_without_a_depth_that_counts_are_said(caplog: pytest.LogCaptureFixture) -> None:
    truth = torch.tensor([[[1.0, 2.0]], [[0.0, 90.0]]])  # the second has none between 1 mm and 80 m
    batches = iter([(torch.zeros(2, 3, 1, 2), truth, truth)])
    scored = score_depth(batches, 80.0, None)
    assert scored.result(QUIET, "depth", {}).details["images"] == 1
    assert "1 of 2 test images have no pixel whose depth counts, and are left out" in caplog.messages


def test_data_without_depth_are_refused(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "train" / "0.png")
    data = EvaluationData(str(tmp_path), size=32, test_split="train")
    for task in (load_protocol("depth"), load_protocol("depth_dpt")):
        with pytest.raises(ValueError, match="has no 'depth'"):
            task.measure(encoder, data, QUIET, task.settings())
    with pytest.raises(ValueError, match="no training pixel has a depth between 0.001 and 0.01 metres"):
        load_protocol("depth").measure(encoder, EvaluationData(size=64, limit=2), QUIET, LinearDepthSettings(cap=0.01))


@pytest.mark.slow
def test_dpt_learns_a_few_images_and_its_gradient_reaches_the_trunk(encoder: Encoder) -> None:
    data = EvaluationData(size=64, limit=8, test_split="train")
    settings = DPTSettings(**SMALL, steps=80, batch_size=8, learning_rate=5e-3, warmup_steps=5, trunk_factor=0.1)
    result = load_protocol("depth_dpt").measure(encoder, data, QUIET, settings)
    untrained = load_protocol("depth_dpt").measure(encoder, data, QUIET, replace(settings, steps=1))
    assert result.metrics["abs_rel"] < 0.35 < 0.8 < untrained.metrics["abs_rel"]
    assert isinstance(result.pictures["samples"](), Image.Image)

    trunk, head = encoder.trainable_copy(), DPTHead(96, **SMALL, cap=80.0)
    sample = next(data.train.batches(2))
    silog_loss(head(trunk, trunk.normalize(sample["image"])), sample["depth"], 80.0).backward()
    for name, parameter in trunk.module.named_parameters():
        if "layernorm" not in name and "key.bias" not in name and "mask_token" not in name:
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name


def test_dpts_trunk_learns_at_a_fiftieth(encoder: Encoder) -> None:
    head = DPTHead(96, **SMALL, cap=80.0)
    groups = layer_decay_groups(encoder.trainable_copy(), head, 1e-3, 0.01, trunk_factor=DPTSettings().trunk_factor)
    of_head = {id(parameter) for parameter in head.parameters()}
    for group in groups:
        for parameter in group["params"]:
            assert group["lr"] == pytest.approx(1e-3 if id(parameter) in of_head else 2e-5)
    assert sum(len(group["params"]) for group in groups) == len(of_head) + len(list(encoder.module.parameters()))


def test_larger_images_are_predicted_by_windows(encoder: Encoder) -> None:
    samples = load_samples("scenes", "train", size=64, limit=4)
    predict = train_dpt(
        encoder, samples, DPTSettings(**SMALL, steps=1, batch_size=4, crop_size=32), QUIET, description="windows"
    )
    images = next(samples.batches(4))["image"]
    whole = predict(images)
    assert whole.shape == (4, 64, 64)
    torch.testing.assert_close(whole[:, 32:, :32], predict(images[:, :, 32:, :32]))


def test_silog_is_the_formula_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted = torch.rand(2, 3, 4, generator=generator) * 20 + 0.5
    truth = torch.rand(2, 3, 4, generator=generator) * 20 + 0.5
    truth[0, 0, :2], truth[1, 2, 3], truth[1, 0, 0] = 0, 80.0, 1e-4
    errors = [
        math.log(float(predicted[place])) - math.log(float(truth[place]))
        for place in np.ndindex(2, 3, 4)
        if 1e-3 < truth[place] < 80
    ]
    assert len(errors) == 20
    for weight in (0.0, 0.5, 0.85):
        expected = math.sqrt(sum(error**2 for error in errors) / 20 - weight * sum(errors) ** 2 / 20**2)
        assert float(silog_loss(predicted.log(), truth, 80.0, weight)) == pytest.approx(expected, rel=1e-5)
    same = silog_loss((predicted * 3).log(), truth, 80.0, 1.0)
    assert float(same) == pytest.approx(float(silog_loss(predicted.log(), truth, 80.0, 1.0)), rel=1e-4)


def test_silog_of_nothing_and_of_the_truth_has_a_finite_gradient() -> None:
    logs = torch.zeros(1, 2, 2, requires_grad=True)
    for truth in (torch.zeros(1, 2, 2), torch.ones(1, 2, 2), torch.full((1, 2, 2), 90.0)):
        loss = silog_loss(logs, truth, 80.0)
        (gradient,) = torch.autograd.grad(loss, logs)
        assert loss < 1e-5
        assert torch.isfinite(gradient).all()


def test_linear_depth_is_the_ridge_regression_of_every_pixel() -> None:
    """By scikit-learn, on one row a pixel with the token that nearest upsampling shows there."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(40, 4, 3, 5, generator=generator) + 3
    depth = (tokens.sum(dim=-1) / 4 + torch.randn(40, 4, 3, generator=generator)).exp()
    depth = F.interpolate(depth[:, None], (12, 9), mode="nearest")[:, 0] * torch.rand(40, 12, 9, generator=generator)
    depth[torch.rand(40, 12, 9, generator=generator) < 0.2] = 0
    assert (depth > 80).any()
    settings = LinearDepthSettings(penalties=(0.3,))
    found = fit_linear_depth(tokens.numpy(), depth.numpy(), settings, seed=0, device=torch.device("cpu"))
    large = F.interpolate(tokens.permute(0, 3, 1, 2), (12, 9), mode="nearest").permute(0, 2, 3, 1).double()
    known = (depth > 1e-3) & (depth < 80)
    x, y = large[known].numpy(), depth[known].double().log().numpy()
    peer = SklearnRidge(alpha=0.3 * len(x)).fit(StandardScaler().fit_transform(x), y)
    expected = peer.predict(StandardScaler().fit(x).transform(large.reshape(-1, 5).numpy())).reshape(40, 12, 9)
    np.testing.assert_allclose(found.log_depth(tokens, (4, 3)), expected[:, ::3, ::3], rtol=1e-6)
    assert found.mean == pytest.approx(y.mean(), rel=1e-9)
    # bilinear where it is measured
    upsampled = F.interpolate(found.log_depth(tokens, (4, 3))[:, None], (12, 9), mode="bilinear")[:, 0]
    torch.testing.assert_close(found.log_depth(tokens, (12, 9)), upsampled)


def test_linear_depth_has_the_least_silog_of_linear_maps() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, depth = torch.randn(20, 2, 2, 3, generator=generator), torch.rand(20, 8, 8, generator=generator) * 9 + 0.5
    depth = depth * (tokens[..., 0].repeat_interleave(4, 1).repeat_interleave(4, 2) / 2).exp()
    settings = LinearDepthSettings(penalties=(1e-9,))
    found = fit_linear_depth(tokens.numpy(), depth.numpy(), settings, seed=0, device=torch.device("cpu"))
    weight, bias = found.weight.clone().requires_grad_(), found.bias.clone().requires_grad_()
    logs = F.interpolate((tokens.double() @ weight + bias)[:, None], (8, 8), mode="nearest")[:, 0]
    least = silog_loss(logs, depth, 80.0)
    gradients = torch.autograd.grad(least, (weight, bias))
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-6
    assert least < 0.95 * silog_loss(torch.full_like(logs, found.mean), depth, 80.0)


def test_held_out_images_choose_the_penalty_and_those_without_depth_choose_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, depth = torch.randn(10, 2, 2, 30, generator=generator), torch.rand(10, 4, 4, generator=generator) + 0.5
    choose = partial(fit_linear_depth, settings=LinearDepthSettings(), seed=0, device=torch.device("cpu"))
    assert choose(tokens.numpy(), depth.numpy()).penalty == 1.0  # noise: the most that there is
    depth[torch.from_numpy(hold_out(10, 0.2, 0))] = 0
    assert choose(tokens.numpy(), depth.numpy()).penalty == 1e-5
    with pytest.raises(ValueError, match="no training pixel has a depth"):
        choose(tokens.numpy(), np.zeros((10, 4, 4), dtype=np.float32))


def test_dpt_is_transformers_own_up_to_the_last_activation() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "patch_size": 16,
    }
    trunk = GTSAModel(GTSAConfig(**sizes)).eval()
    encoder = load_encoder(trunk)
    head = DPTHead(16, **SMALL, cap=10.0).eval()
    config = DPTConfig(
        backbone_config=GTSAConfig(
            **sizes, out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=False
        ),
        hidden_size=16,
        readout_type="ignore",
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
    )
    theirs = DPTForDepthEstimation(config).eval()
    theirs.backbone.load_state_dict(trunk.state_dict())
    theirs.neck.load_state_dict(head.decoder.neck.state_dict())
    theirs.head.load_state_dict(head.decoder.head.state_dict())
    theirs.head.head[-1] = torch.nn.Identity()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = 10.0 * theirs(pixels).predicted_depth.sigmoid()
        assert expected.std() > 1e-3
        torch.testing.assert_close(head(encoder, pixels).exp(), expected, rtol=1e-4, atol=1e-5)
        assert head(encoder, pixels[:, :, :48]).shape == (2, 48, 64)


def test_crops_are_the_published_ones() -> None:
    for eval_crop, (height, width), (top, bottom, left, right) in (
        ("eigen", (480, 640), (45, 471, 41, 601)),
        ("garg", (375, 1242), (153, 371, 44, 1197)),
        ("eigen", (240, 320), (22, 235, 20, 300)),
        ("garg", (64, 64), (26, 63, 2, 61)),
        (None, (5, 7), (0, 5, 0, 7)),
    ):
        expected = np.zeros((height, width), dtype=bool)
        expected[top:bottom, left:right] = True
        np.testing.assert_array_equal(crop_mask(eval_crop, height, width), expected)


def test_only_pixels_of_the_crop_are_measured(encoder: Encoder) -> None:
    data = EvaluationData(size=64, limit=12)
    settings = LinearDepthSettings(random_floor=False, eval_crop="garg")
    result = load_protocol("depth").measure(encoder, data, QUIET, settings)
    whole = load_protocol("depth").measure(encoder, data, QUIET, replace(settings, eval_crop=None))
    logs = [sample["depth"][sample["depth"] < 80].double().log() for sample in data.train]
    constant, found = float(torch.cat(logs).mean().exp()), []
    for sample in data.test:
        truth = sample["depth"][26:63, 2:61]
        truth = truth[truth < 80]
        found.append(float(((truth - constant).abs() / truth).mean()))
    assert result.details["floors"]["constant"] == pytest.approx(np.mean(found), rel=1e-4)
    assert whole.details["floors"]["constant"] != pytest.approx(np.mean(found), rel=1e-3)
    assert result.metrics["abs_rel"] != whole.metrics["abs_rel"]
    small = DPTSettings(**SMALL, steps=1, batch_size=4)
    numbers = [
        load_protocol("depth_dpt").measure(encoder, data, QUIET, replace(small, eval_crop=crop))
        for crop in (None, "eigen")
    ]
    assert numbers[0].metrics != numbers[1].metrics
