"""Operations of heads are those that they take: by hand, and beside the counts of heads that really run."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hf_geossl.evaluation.heads.detection import build_detector
from hf_geossl.evaluation.heads.operations import count_operations
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.protocol import load_protocol
from hf_geossl.evaluation.settings import Scale
from tests.helpers.supervised import small_model

GIVEN: dict[str, dict[str, Any]] = {
    "segmentation_finetune": {"num_classes": 5},
    "semantic_fpn": {"num_classes": 5, "pyramid_channels": 16, "head_channels": 8},
    "upernet": {"num_classes": 5, "hidden_size": 8, "auxiliary_channels": 8},
    "depth_dpt": {"neck_hidden_sizes": (4, 8, 8, 8), "fusion_hidden_size": 8},
}


def test_a_convolution_counts_two_for_each_weight_and_position_and_draws_nothing() -> None:
    state = torch.random.get_rng_state()
    assert count_operations(lambda: nn.Conv2d(3, 8, 3)(torch.empty(2, 3, 6, 5))) == 2 * 8 * 3 * 9 * 2 * 4 * 3
    assert torch.equal(state, torch.random.get_rng_state())


def measured(run: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("task", GIVEN)
def test_dense_heads_are_counted_as_they_run_beside_passes_over_full_maps(task: str) -> None:
    encoder, settings = load_encoder(small_model()), load_protocol(task).settings(**GIVEN[task])
    size = 4 * encoder.patch_size
    images, truth = torch.rand(2, 3, size, size), torch.ones(2, size, size).to(torch.uint8)
    head = settings.make_head(encoder, 5)
    trunk = measured(lambda: encoder.tokens(images))
    in_training = measured(lambda: head.compute_loss(encoder, images, truth)) - trunk
    training, test = settings.head_operations(Scale(8, 8, encoder.width, 16, 0))
    assert training == test == in_training / 2
    numbers = {"depth_dpt": 1, "upernet": 10}.get(task, 5) * size**2
    with_pixels = settings.head_operations(Scale(8, 8, encoder.width, 16, size**2))
    assert with_pixels == (training + 500 * numbers, test + 100 * numbers)


def test_heads_over_patches_are_counted_as_by_hand_and_work_takes_them_three_times_in_training() -> None:
    scale = Scale(10, 7, 24, 9, 48**2)
    keypoints = load_protocol("keypoints").settings(steps=3, images_per_step=2, channels=4, random_floor=True)
    # transposed convolutions of 4 x 4 from 3 x 3 and 6 x 6 positions, then 17 points at 12 x 12
    one = 2 * (16 * 9 * 24 * 4 + 16 * 36 * 4 * 4 + 144 * 4 * 17)
    assert keypoints.head_operations(scale) == (one, one)
    work = keypoints.work(scale)
    assert work.operations == 2 * 5 * one * (3 * 3 * 2 + 7)  # two runs, five objects an image
    assert work.encoded == 2 * 5 * (4.5 * 3 * 2 + 7)
    one, _ = load_protocol("segmentation_finetune").settings(num_classes=6).head_operations(scale)
    assert one == 2 * 9 * 24 * 6 + 500 * 6 * 48**2
    few = load_protocol("segmentation_few_shot").settings(num_classes=6, shares=(0.5, 1.0), subsets=3)
    assert few.work(scale).operations == 6 * (3 * few.steps * few.batch_size * one + 7 * (one - 400 * 6 * 48**2))


@torch.no_grad()
def test_the_detector_is_counted_as_it_runs() -> None:
    encoder = load_encoder(small_model())
    size, given = 8 * encoder.patch_size, {"channels": 8, "head_width": 16, "regions": 8, "proposals": 12}
    detector = build_detector(encoder, size, 3, masks=True, **given).eval()
    pooled: dict[str, int] = {}
    for name in ("box_head", "mask_head"):
        getattr(detector.roi_heads, name).register_forward_hook(
            lambda _, inputs, out, name=name: pooled.update({name: len(inputs[0])})
        )
    images = torch.rand(1, 3, size, size)
    head = measured(lambda: detector(list(images))) - measured(lambda: encoder.tokens(images))

    def foreseen(masks: bool) -> float:
        own = {**given, "num_categories": 3, "proposals": pooled["box_head"], "masks": masks}
        return load_protocol("detection").settings(**own).head_operations(Scale(8, 8, encoder.width, 64, 0))[1]

    masks = foreseen(True) - foreseen(False)  # of as many regions as proposals
    assert head == foreseen(False) + masks / pooled["box_head"] * pooled["mask_head"]
