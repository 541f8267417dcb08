"""Decoders: anchors, pools and post-processing beside torchvision's and transformers' own, and losses written out."""

import copy
import sys
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from transformers import YolosImageProcessor

from hf_geossl import GTSAConfig, GTSAForDepthEstimation, GTSAForObjectDetection, GTSAForSemanticSegmentation
from hf_geossl.modeling.dense_heads import (
    BoxDetector,
    PatchAnchors,
    PatchPool,
    SimplePyramid,
    log_metres,
    to_centers,
    to_corners,
)


def _config(**given: Any) -> GTSAConfig:
    shape = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    return GTSAConfig(**shape | given)


def test_anchors_are_torchvisions_around_the_middle_of_each_position() -> None:
    levels = [torch.zeros(1, 4, side, side) for side in (32, 16, 8, 4, 2)]
    images = ImageList(torch.zeros(2, 3, 128, 128), [(128, 128)] * 2)
    ours = PatchAnchors(16)(images, levels)
    # the larger ones are those of torchvision's detectors, of images of any size
    sizes = tuple((side // 4, side) for side in (32, 64, 128, 256, 512))
    generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    theirs = generator(images, levels)[0]
    counts = [6 * side**2 for side in (32, 16, 8, 4, 2)]
    offsets = torch.cat(
        [torch.full((count, 1), half) for count, half in zip(counts, (2.0, 4.0, 8.0, 16.0, 16.0), strict=True)]
    )
    assert len(ours) == 2
    # which it rounds to whole pixels, and puts around the corner
    assert (ours[0] - offsets - theirs).abs().max() <= 0.5


def test_regions_are_pooled_as_torchvision_does() -> None:
    torch.manual_seed(0)
    levels = SimplePyramid(8, 16)(torch.randn(2, 8, 7, 4))
    boxes = [torch.tensor([[0.0, 0.0, 30.0, 50.0], [1.0, 2.0, 60.0, 110.0]]), torch.tensor([[4.0, 4.0, 8.0, 9.0]])]
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=3, sampling_ratio=2)
    expected = theirs(levels, boxes, [(112, 64)] * 2)
    torch.testing.assert_close(PatchPool(3, 16)(levels, boxes, None), expected)


def test_detections_are_what_transformers_reads_of_them() -> None:
    torch.manual_seed(0)
    model = GTSAForObjectDetection(_config(id2label={0: "a", 1: "b"}, decoder_channels=8)).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        outputs = model(images)
        decoder: BoxDetector = model.decoder
        trunk: Any = model.base_model
        last = trunk.to_maps(trunk.patch_tokens(trunk(images)), images)
        levels = decoder.pyramid(last)
        proposals, _ = decoder.rpn(ImageList(images, [(32, 32)] * 2), levels, None)
        found, _ = decoder.roi_heads(levels, proposals, [(32, 32)] * 2, None)
    read = YolosImageProcessor().post_process_object_detection(outputs, threshold=0.05, target_sizes=[(32, 32)] * 2)
    for ours, theirs in zip(read, found, strict=True):
        assert len(ours["scores"]) == len(theirs["scores"]) > 0
        torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(ours["boxes"], theirs["boxes"], rtol=1e-4, atol=1e-3)
        assert torch.equal(ours["labels"], theirs["labels"] - 1)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_a_detector_in_half_precision_computes_as_its_weights_in_float32_do() -> None:
    """torchvision mixes types otherwise, and bfloat16 would round coordinates to several pixels."""
    torch.manual_seed(0)
    half = BoxDetector(32, 8, num_categories=3, channels=16).eval().bfloat16()
    last, pixels = torch.randn(2, 32, 5, 3).bfloat16(), torch.randn(2, 3, 40, 24)
    with torch.no_grad():
        found, expected = half(last, pixels, None), copy.deepcopy(half).float()(last, pixels, None)
    assert found[1].shape[1] > 1
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[2], expected[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_depths_of_a_model_in_half_precision_are_near_and_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, images = GTSAForDepthEstimation(_config(decoder_channels=8)).eval(), torch.randn(2, 3, 40, 24)
    with torch.no_grad():
        expected, found = model(images).predicted_depth, model.to(dtype)(images).predicted_depth
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)


def test_region_proposals_begin_as_torchvisions() -> None:
    torch.manual_seed(0)
    ours = GTSAForObjectDetection(_config(id2label={0: "a"}, decoder_channels=16)).decoder.rpn.head
    for name, theirs in RPNHead(16, 3).named_parameters():
        assert abs(ours.get_parameter(name).std() - theirs.std()) < 0.003, name
        assert "bias" not in name or ours.get_parameter(name).count_nonzero() == theirs.count_nonzero() == 0


def test_images_without_objects_are_trained_on() -> None:
    torch.manual_seed(0)
    model = GTSAForObjectDetection(_config(decoder_channels=8)).train()
    labels = [
        {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.3]])},
        {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
    ]
    loss = model(torch.randn(2, 3, 32, 32), labels=labels).loss
    loss.backward()
    assert 0 < loss.item() < 20
    assert model.gtsa.embeddings.patch_embeddings.weight.grad.abs().sum() > 0
    assert model.eval()(torch.randn(1, 3, 32, 32), labels=labels[:1]).loss is None


def test_boxes_go_there_and_back() -> None:
    boxes = torch.tensor([[0.25, 0.5, 0.1, 0.2]])
    torch.testing.assert_close(to_corners(boxes), torch.tensor([[0.2, 0.4, 0.3, 0.6]]))
    torch.testing.assert_close(to_centers(to_corners(boxes)), boxes)


def test_without_torchvision_the_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models.detection.faster_rcnn", None)
    with pytest.raises(ImportError, match="object detection needs torchvision: pip install torchvision"):
        GTSAForObjectDetection(_config())


@pytest.mark.parametrize(
    ("kind", "decoder"),
    [(GTSAForSemanticSegmentation, "dpt"), (GTSAForDepthEstimation, "upernet"), (GTSAForObjectDetection, "linear")],
)
def test_a_decoder_that_a_model_does_not_have_is_refused(kind: Any, decoder: str) -> None:
    with pytest.raises(ValueError, match=f"decoder_type of {kind.__name__} must be one of .*, got '{decoder}'"):
        kind(_config(decoder_type=decoder))


def test_depths_stay_below_the_cap_and_have_the_loss_that_is_written_out() -> None:
    torch.manual_seed(0)
    assert log_metres(torch.tensor([-50.0, 0.0, 50.0]), 10.0).exp().tolist() == pytest.approx(
        [0.0, 5.0, 10.0], abs=1e-6
    )
    for decoder in ("dpt", "linear"):
        model = GTSAForDepthEstimation(_config(decoder_type=decoder, decoder_channels=8, max_depth=10.0)).eval()
        images, depth = torch.randn(2, 3, 32, 48), torch.rand(2, 32, 48) * 12
        depth[:, :4] = 0
        outputs = model(images, labels=depth)
        assert outputs.predicted_depth.shape == (2, 32, 48)
        known = (depth > 1e-3) & (depth < 10)
        error = outputs.predicted_depth[known].double().log() - depth[known].double().log()
        expected = (error.square().mean() - 0.5 * error.mean().square()).sqrt()
        torch.testing.assert_close(outputs.loss.double(), expected, rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match=r"labels must have shape \(2, 32, 48\)"):
        model(images, labels=depth[:, :8])


def test_upernet_has_the_cross_entropy_of_both_heads() -> None:
    torch.manual_seed(0)
    model = GTSAForSemanticSegmentation(_config(decoder_type="upernet", decoder_channels=8, num_labels=3)).eval()
    images, labels = torch.randn(2, 3, 32, 32), torch.randint(0, 3, (2, 32, 32))
    outputs = model(images, labels=labels)
    _, maps = model.base_model.layer_maps(images)
    coarse, auxiliary = (F.interpolate(part, (32, 32), mode="bilinear") for part in model.decoder(maps))
    torch.testing.assert_close(outputs.logits, coarse)
    expected = F.cross_entropy(coarse, labels) + 0.4 * F.cross_entropy(auxiliary, labels)
    torch.testing.assert_close(outputs.loss, expected)
    assert outputs.hidden_states is None
    assert len(model(images, output_hidden_states=True).hidden_states) == 5
