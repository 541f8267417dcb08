"""Semantic segmentation, frozen and end to end: numbers that mean something, truth that stays with its pixels."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import UperNetConfig, UperNetForSemanticSegmentation, ViTConfig, ViTModel

from hf_geossl import GTSAConfig
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.fitting.dense_training import random_frames, shuffled_rows, slide
from hf_geossl.evaluation.protocols.propagation import PropagationSettings, measure_propagation
from hf_geossl.evaluation.protocols.segmentation import (
    TASKS,
    FewShotSettings,
    FineTuningSettings,
    LinearSegmentationSettings,
)
from hf_geossl.evaluation.fitting.segmenters import (
    LinearHead,
    SegmentationHead,
    class_names,
    pixel_cross_entropy,
    score,
)
from hf_geossl.evaluation.protocols.semantic_fpn import TASKS as FPN_TASKS
from hf_geossl.evaluation.protocols.semantic_fpn import SemanticFPNHead, SemanticFPNSettings
from hf_geossl.evaluation.protocols.upernet import TASKS as UPERNET_TASKS
from hf_geossl.evaluation.protocols.upernet import UPerNetHead, UPerNetSettings
from hf_geossl.evaluation.samples import Columns, load_samples
from tests.helpers.supervised import small_model

QUIET = EvaluationOptions(cache_dir=None, progress=False, bootstrap=50)
ALL_TASKS = {**TASKS, **FPN_TASKS, **UPERNET_TASKS}
SMALL: dict[str, Any] = {
    "segmentation_finetune": {},
    "semantic_fpn": {"pyramid_channels": 32, "head_channels": 32},
    "upernet": {"hidden_size": 32, "auxiliary_channels": 16},
}


def heads(encoder: Encoder) -> dict[str, SegmentationHead]:
    return {
        "segmentation_finetune": LinearHead(encoder.width, 17),
        "semantic_fpn": SemanticFPNHead(encoder, 17, SemanticFPNSettings(**SMALL["semantic_fpn"])),
        "upernet": UPerNetHead(encoder, 17, UPerNetSettings(**SMALL["upernet"])),
    }


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(small_model())


# ---- frames and windows ----


def test_frames_at_scale_one_are_cut_out_or_mirrored() -> None:
    images = torch.randn(12, 3, 10, 14, generator=torch.Generator().manual_seed(0))
    truth = torch.arange(140, dtype=torch.uint8).view(1, 10, 14).expand(12, -1, -1)
    torch.manual_seed(0)
    frames, maps = random_frames(images, truth, 6, (1, 1), 255)
    places, mirrored = set(), 0
    for image, frame, found in zip(images, frames, maps, strict=True):
        row, column = divmod(int(found[0].min()), 14)
        expected_map, expected = (
            truth[0, row : row + 6, column : column + 6],
            image[:, row : row + 6, column : column + 6],
        )
        if found[0, 0] != found[0].min():
            expected_map, expected, mirrored = expected_map.flip(-1), expected.flip(-1), mirrored + 1
        assert torch.equal(found, expected_map)
        torch.testing.assert_close(frame, expected, rtol=0, atol=1e-5)
        places.add((row, column))
    assert len(places) > 6
    assert 0 < mirrored < 12


def test_frames_scale_an_image_and_its_truth_alike_and_know_nothing_outside() -> None:
    coarse = torch.randint(0, 5, (40, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    truth = F.interpolate(coarse.float(), (32, 32), mode="nearest")  # squares of 8 pixels
    torch.manual_seed(1)
    frames, maps = random_frames(truth.expand(-1, 3, -1, -1) + 1, truth[:, 0].to(torch.uint8), 32, (0.5, 2.0), 255)
    known = maps != 255
    assert maps.dtype == torch.uint8
    assert frames[:, 0][~known].abs().mean() < 0.1  # the outside is 0; edges are interpolated
    agree = (frames[:, 0][known] - 1 - maps[known]).abs() < 0.5
    assert agree.float().mean() > 0.9  # edges of squares are interpolated
    shares = known.float().mean(dim=(1, 2))
    assert shares.min() < 0.4  # scale 1/2 shows a quarter of the frame
    assert 0.2 < (shares == 1).float().mean() < 0.9


def test_windows_give_the_mean_of_all_that_hold_a_pixel() -> None:
    images = torch.randn(2, 3, 11, 8, generator=torch.Generator().manual_seed(2))
    seen: list[torch.Size] = []

    def predict(part: torch.Tensor) -> torch.Tensor:
        seen.append(part.shape)
        return torch.cat(
            [part[:, :1] * 2, part.mean(dim=(1, 2, 3), keepdim=True).expand(-1, 1, *part.shape[2:])], dim=1
        )

    found = slide(predict, images, 5, 3)
    assert set(seen) == {(2, 3, 5, 5)}
    torch.testing.assert_close(found[:, 0], images[:, 0] * 2)
    for y, x in ((0, 0), (4, 4), (10, 7), (6, 3)):
        windows = [(top, left) for top in (0, 3, 6) for left in (0, 3) if top <= y < top + 5 and left <= x < left + 5]
        assert windows
        expected = torch.stack([images[:, :, t : t + 5, s : s + 5].mean(dim=(1, 2, 3)) for t, s in windows]).mean(0)
        torch.testing.assert_close(found[:, 1, y, x], expected)
    seen.clear()
    slide(predict, images, 11, 11)
    assert seen == [(2, 3, 11, 8)]
    slide(predict, images, 9, 9)
    assert seen[1:] == [(2, 3, 9, 8)] * 2
    with pytest.raises(ValueError, match="stride must be in 1..5"):
        slide(predict, images, 5, 6)


def test_rows_come_once_a_pass_and_more_often_where_a_batch_is_larger() -> None:
    rows = shuffled_rows(10, 5, 0)
    passes = [np.concatenate([next(rows), next(rows)]) for _ in range(3)]
    assert all(sorted(part) == list(range(10)) for part in passes)
    assert not np.array_equal(passes[0], passes[1])
    assert sorted(next(shuffled_rows(3, 6, 0))) == [0, 0, 1, 1, 2, 2]


# ---- heads ----


def test_cross_entropy_is_the_mean_over_pixels_with_truth() -> None:
    logits = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(3), requires_grad=True)
    truth = torch.tensor([[[0, 255], [2, 1]], [[255, 255], [1, 0]]], dtype=torch.uint8)
    slow = [
        -torch.log(logits[b, :, y, x].exp() / logits[b, :, y, x].exp().sum())[int(truth[b, y, x])]
        for b, y, x in np.ndindex(2, 2, 2)
        if truth[b, y, x] != 255
    ]
    torch.testing.assert_close(pixel_cross_entropy(logits, truth), torch.stack(slow).mean())
    nothing = pixel_cross_entropy(logits, torch.full_like(truth, 255))
    nothing.backward()
    assert nothing == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_the_linear_head_maps_each_patch_by_itself(encoder: Encoder) -> None:
    head = LinearHead(96, 5)
    pixels = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(4))
    (logits,) = head(encoder, pixels)
    tokens = encoder.module(pixels).last_hidden_state[:, 1:]
    expected = tokens @ head.classifier.weight[:, :, 0, 0].T + head.classifier.bias
    torch.testing.assert_close(logits, expected.transpose(1, 2).reshape(2, 5, 8, 6), rtol=1e-4, atol=1e-5)
    assert head.predict(encoder, pixels).shape == (2, 5, 64, 48)


def test_semantic_fpn_convolves_its_equal_maps_as_if_they_had_strides(encoder: Encoder) -> None:
    head = heads(encoder)["semantic_fpn"].eval()
    assert isinstance(head, SemanticFPNHead)
    convolutions = [[layer for layer in level if isinstance(layer, torch.nn.Conv2d)] for level in head.levels]
    assert [len(level) for level in convolutions] == [1, 1, 2, 3]
    maps: list[torch.Tensor] = []
    for level in head.levels:
        level.register_forward_hook(lambda module, inputs, output: maps.extend([inputs[0], output]))
    pixels = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(5))
    (logits,) = head(encoder, pixels)
    assert logits.shape == (2, 17, 8, 6)
    assert [tuple(part.shape[2:]) for part in maps[::2]] == [(8, 6)] * 4
    assert [tuple(part.shape[2:]) for part in maps[1::2]] == [(8, 6), (16, 12), (32, 24), (64, 48)]


def test_upernet_has_the_loss_of_transformers_own_model(encoder: Encoder) -> None:
    """The published class, with our neck in the place of its backbone and our decoder's weights."""
    head = heads(encoder)["upernet"].eval()
    assert isinstance(head, UPerNetHead)
    config = UperNetConfig(
        backbone_config=GTSAConfig(
            hidden_size=96, num_hidden_layers=4, num_attention_heads=3, intermediate_size=96, out_indices=[1, 2, 3, 4]
        ),
        hidden_size=32,
        auxiliary_channels=16,
        num_labels=17,
    )
    theirs = UperNetForSemanticSegmentation(config).eval()
    theirs.decode_head.load_state_dict(head.decoder.state_dict())
    theirs.auxiliary_head.load_state_dict(head.auxiliary.state_dict())
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(6))
    truth = torch.randint(0, 17, (2, 64, 64), generator=torch.Generator().manual_seed(7))
    truth[:, :9] = 255
    maps = head.neck(encoder.maps(pixels, (0, 0, 1, 2)))
    theirs.backbone.forward_with_filtered_kwargs = lambda *_, **__: type(
        "Maps", (), {"feature_maps": maps, "hidden_states": None, "attentions": None}
    )
    with torch.no_grad():
        outputs = theirs(pixels, labels=truth)
        torch.testing.assert_close(head.compute_loss(encoder, pixels, truth), outputs.loss)
        torch.testing.assert_close(head.predict(encoder, pixels), outputs.logits)


@pytest.mark.parametrize("task", SMALL)
def test_gradients_reach_the_whole_trunk(encoder: Encoder, task: str) -> None:
    trunk = encoder.trainable_copy()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(8))
    truth = torch.randint(0, 17, (2, 64, 64), generator=torch.Generator().manual_seed(9))
    heads(encoder)[task].compute_loss(trunk, pixels, truth).backward()
    reached = {name for name, value in trunk.module.named_parameters() if value.grad is not None and value.grad.any()}
    expected = {
        name
        for name, _ in trunk.module.named_parameters()
        if task == "segmentation_finetune" or not name.startswith("layernorm")
    }
    expected = {name for name in expected if "mask_token" not in name and "key.bias" not in name}
    assert expected <= reached
    assert all(value.grad is None for value in encoder.module.parameters())


# ---- protocols ----


def test_supervised_tokens_are_far_above_random_ones(supervised: Encoder) -> None:
    data = EvaluationData(size=64, limit=300)
    result = ALL_TASKS["segmentation"].measure(supervised, data, QUIET, LinearSegmentationSettings(steps=250))
    floors = result.details["floors"]
    assert floors["constant"] < 0.03
    assert floors["constant"] < floors["random_weights"] < 0.14
    assert result.metrics["mean_iou"] > floors["random_weights"] + 0.08
    low, high = result.intervals["mean_iou"]
    assert low < result.metrics["mean_iou"] < high
    assert high - low < 0.1
    values = [iou for iou in result.details["iou_per_class"].values() if iou is not None]
    assert np.mean(values) == pytest.approx(result.metrics["mean_iou"])
    assert result.details["iou_per_class"]["sky"] > result.details["iou_per_class"]["sign"]
    assert result.details["settings"] == asdict(LinearSegmentationSettings(steps=250))
    picture = result.pictures["samples"]()
    assert isinstance(picture, Image.Image)
    assert len(picture.getcolors(2**24) or ()) > 100
    json.dumps(result.details, allow_nan=False)


def test_supervised_tokens_carry_masks_farther_than_random_ones(supervised: Encoder) -> None:
    data = EvaluationData(size=64, limit=12)
    result = measure_propagation(supervised, data, QUIET, PropagationSettings(frames=5))
    floors = result.details["floors"]
    # .61, .53 and .55 when written
    assert result.metrics["j_and_f_mean"] > floors["random_weights"]["j_and_f_mean"] + 0.04
    assert result.metrics["j_and_f_mean"] > floors["first_mask"]["j_and_f_mean"] + 0.02


def test_numbers_repeat_with_and_without_a_cache_and_leave_the_generator_alone(
    encoder: Encoder, tmp_path: Path
) -> None:
    data = EvaluationData(size=64, limit=24)
    before, weights = torch.get_rng_state(), encoder.fingerprint
    cached = replace(QUIET, cache_dir=tmp_path)
    frozen = LinearSegmentationSettings(steps=10, random_floor=False)
    tuned = FineTuningSettings(steps=3, batch_size=4)
    for task, settings in (("segmentation", frozen), ("segmentation_finetune", tuned)):
        results = [ALL_TASKS[task].measure(encoder, data, how, settings) for how in (QUIET, cached, cached)]
        assert all(result.metrics == results[0].metrics for result in results)
        assert all(result.intervals == results[0].intervals for result in results)
        other = ALL_TASKS[task].measure(encoder, data, replace(QUIET, seed=1), settings)
        assert other.metrics != results[0].metrics
    assert torch.equal(torch.get_rng_state(), before)
    assert encoder.fingerprint == weights


@pytest.mark.parametrize("task", SMALL)
def test_end_to_end_training_learns_a_few_images(encoder: Encoder, task: str) -> None:
    data = EvaluationData(size=64, limit=8, test_split="train")
    settings = ALL_TASKS[task].settings(
        **SMALL[task], steps=80, batch_size=8, learning_rate=3e-3, warmup_steps=5, scales=(1.0, 1.0)
    )
    result = ALL_TASKS[task].measure(encoder, data, QUIET, settings)
    assert result.details["floors"]["constant"] < 0.06
    assert result.metrics["mean_iou"] > 0.45
    assert result.metrics["pixel_accuracy"] > 0.8


def test_few_shot_reports_mean_and_spread_over_nested_subsets(encoder: Encoder) -> None:
    train = load_samples("scenes", "train", size=64, limit=64)
    for seed in range(3):
        eighth, half = ({int(sample["index"]) for sample in train.subset(share, seed)} for share in (1 / 8, 1 / 2))
        assert eighth < half
        assert (len(eighth), len(half)) == (8, 32)
    data = EvaluationData(size=64, limit=16)
    settings = FewShotSettings(shares=(1 / 8, 1.0), steps=4, batch_size=4)
    result = ALL_TASKS["segmentation_few_shot"].measure(encoder, data, QUIET, settings)
    for share, size in (("1/8", 2), ("1", 16)):
        runs = result.details["subsets"][share]
        values = [run["mean_iou"] for run in runs]
        assert [run["training_images"] for run in runs] == [size] * 3
        assert len(set(values)) == 3
        assert result.metrics[f"mean_iou_{share}"] == pytest.approx(sum(values) / 3)
        assert result.metrics[f"mean_iou_{share}_std"] == pytest.approx(np.std(values, ddof=1))
        low, high = result.intervals[f"mean_iou_{share}"]
        assert low <= result.metrics[f"mean_iou_{share}"] <= high
    assert isinstance(result.pictures["samples_1_8"](), Image.Image)


@pytest.mark.parametrize("kind", ["timm", "transformers"])
@pytest.mark.parametrize("task", ["segmentation", *SMALL])
def test_other_libraries_transformers_go_through_the_same_code(kind: str, task: str) -> None:
    torch.manual_seed(0)
    if kind == "timm":
        model: Any = timm.models.VisionTransformer(
            img_size=48, patch_size=16, embed_dim=32, depth=5, num_heads=2, num_classes=0
        )
    else:
        config = ViTConfig(
            hidden_size=32,
            num_hidden_layers=5,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=48,
            patch_size=16,
        )
        model = ViTModel(config, add_pooling_layer=False)
    settings = ALL_TASKS[task].settings(steps=2, batch_size=4)
    if task != "segmentation":
        settings = replace(settings, **SMALL[task], crop_size=48, window_stride=32)  # four windows an image
    result = ALL_TASKS[task].measure(load_encoder(model), EvaluationData(size=64, limit=8), QUIET, settings)
    assert 0 < result.metrics["mean_iou"] < 0.3
    assert result.details["images"] == 8


def folder_with_maps(path: Path, *, classes: int, maps: bool = True) -> str:
    rows = []
    (path / "train").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(4):
        image = Image.fromarray(generator.integers(0, 255, (40, 48, 3), dtype=np.uint8))
        image.save(path / "train" / f"{index}.png")
        truth = np.arange(40 * 48, dtype=np.uint8).reshape(40, 48) % (classes + 1)
        Image.fromarray(truth).save(path / "train" / f"{index}_map.png")
        rows.append({"file_name": f"{index}.png"} | ({"annotation_file_name": f"{index}_map.png"} if maps else {}))
    if not maps:
        for file in path.glob("train/*_map.png"):
            file.unlink()
    (path / "train" / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def test_a_folder_of_images_and_maps_is_measured(encoder: Encoder, tmp_path: Path) -> None:
    folder = folder_with_maps(tmp_path / "maps", classes=6)
    columns = Columns(reduce_labels=True)
    data = EvaluationData(folder, size=32, test_split="train", columns=columns)
    assert class_names(data.train, None, QUIET, encoder) == tuple("012345")
    assert class_names(data.train, 9, QUIET, encoder) == tuple("012345678")
    for task, settings in (
        ("segmentation", LinearSegmentationSettings(steps=2, batch_size=2)),
        ("segmentation_finetune", FineTuningSettings(steps=2, batch_size=2)),
    ):
        result = ALL_TASKS[task].measure(encoder, data, QUIET, settings)
        assert set(result.details["iou_per_class"]) == set("012345")
        assert result.details["images"] == 4
    bare = EvaluationData(folder_with_maps(tmp_path / "bare", classes=6, maps=False), size=32, test_split="train")
    for task in ALL_TASKS:
        with pytest.raises(ValueError, match="has no 'semantic'"):
            ALL_TASKS[task].measure(encoder, bare, QUIET, ALL_TASKS[task].settings())


def test_a_constant_prediction_scores_the_constant_floor() -> None:
    truth = torch.tensor([[[0, 0, 1], [2, 0, 255]], [[0, 1, 1], [0, 0, 0]]], dtype=torch.uint8)
    images = torch.zeros(2, 3, 2, 3, dtype=torch.uint8)
    scored = score(iter([(images, truth, torch.zeros_like(truth))]), ("a", "b", "c", "d"))
    assert scored.constant_floor == pytest.approx(7 / 11 / 3)
    assert scored.numbers["mean_iou"] == pytest.approx(scored.constant_floor)
    assert scored.iou_per_class == {"a": pytest.approx(7 / 11), "b": 0.0, "c": 0.0, "d": None}
