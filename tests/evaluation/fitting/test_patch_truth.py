"""Truth summed over patches: the losses of nearest-upsampled maps, to the last digits."""

import pytest
import torch
from torch.nn import functional as F

from hf_geossl.evaluation.fitting.patch_truth import class_histograms, histogram_cross_entropy, patch_sums


@pytest.mark.parametrize(("size", "grid"), [((32, 24), (4, 3)), ((30, 45), (7, 4))])
def test_histograms_give_the_cross_entropy_of_nearest_upsampled_logits(
    size: tuple[int, int], grid: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(3, 5, *grid, generator=generator) * 3).requires_grad_()
    truth = torch.randint(0, 5, (3, *size), generator=generator, dtype=torch.uint8)
    truth[torch.rand(3, *size, generator=generator) < 0.3] = 255
    truth[1, :20, :11] = 255  # whole patches without truth
    histograms = class_histograms(truth, grid, 5)
    assert histograms.sum() == (truth != 255).sum()
    large = F.interpolate(logits, size, mode="nearest")
    expected = F.cross_entropy(large, truth.long(), ignore_index=255)
    found = histogram_cross_entropy(logits, histograms)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    (gradient,), (expected_gradient,) = (torch.autograd.grad(loss, logits) for loss in (found, expected))
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-7)


def test_a_batch_without_truth_costs_nothing_and_an_unknown_class_is_refused() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    truth = torch.full((1, 8, 8), 255, dtype=torch.uint8)
    loss = histogram_cross_entropy(logits, class_histograms(truth, (2, 2), 3))
    assert loss == 0
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.equal(gradient, torch.zeros_like(logits))
    truth[0, 0, 0] = 3
    with pytest.raises(ValueError, match="the maps hold class 3, and classes end at 2"):
        class_histograms(truth, (2, 2), 3)


def test_sums_of_whole_patches_are_those_of_pooling() -> None:
    values = torch.randn(2, 24, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(patch_sums(values, (3, 4)), F.avg_pool2d(values, 8) * 64, rtol=0, atol=1e-12)
