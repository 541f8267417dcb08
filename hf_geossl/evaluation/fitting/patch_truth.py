"""Maps of truth summed over the pixels of each patch: all that the loss of a map with one value a patch depends on.

A pixel belongs to the patch that nearest upsampling shows there, so that these losses are those of maps that were brought to
the size of the images that way, and cheaper by up to the number of pixels in a patch.
"""

import torch
from torch.nn import functional

from hf_geossl.evaluation.reading.sample_reader import IGNORED


def patch_sums(values: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Sums of maps over the pixels of each patch, in the maps' precision.

    Args:
        values (`torch.Tensor` of shape `(images, height, width)`): Maps.
        grid (`(int, int)`): Rows and columns of patches.

    Returns:
        `torch.Tensor` of shape `(images, rows, columns)`.
    """
    cells = _patch_of_pixels(values, grid)
    return values.new_zeros(len(values), grid[0] * grid[1]).index_add_(1, cells, values.flatten(1)).unflatten(1, grid)


def class_histograms(semantic: torch.Tensor, grid: tuple[int, int], num_classes: int) -> torch.Tensor:
    """How many pixels of each class a patch has; those without truth are not counted.

    Args:
        semantic (`torch.Tensor` of shape `(images, height, width)`): Classes, 255 where there is no truth.
        grid (`(int, int)`): Rows and columns of patches.
        num_classes (`int`): How many there are.

    Returns:
        `torch.Tensor` of shape `(images, rows, columns, classes)`, float32.

    Raises:
        ValueError: If there is another class.
    """
    unknown = semantic == IGNORED
    largest = int(torch.where(unknown, 0, semantic).amax())
    if largest >= num_classes:
        raise ValueError(f"the maps hold class {largest}, and classes end at {num_classes - 1}: raise num_classes")
    classes = torch.where(unknown, num_classes, semantic.long()).flatten(1)
    cells = _patch_of_pixels(semantic, grid) * (num_classes + 1) + classes
    counts = torch.zeros(len(cells), grid[0] * grid[1] * (num_classes + 1), device=cells.device)
    counts.scatter_add_(1, cells, torch.ones((), device=cells.device).expand(cells.shape))
    return counts.view(len(cells), *grid, num_classes + 1)[..., :-1]


def histogram_cross_entropy(logits: torch.Tensor, histograms: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the nearest-upsampled logits of patches over all pixels that have a truth; 0 where none has.

    Args:
        logits (`torch.Tensor` of shape `(images, classes, rows, columns)`): One for each patch.
        histograms (`torch.Tensor` of shape `(images, rows, columns, classes)`): Of `class_histograms`.
    """
    logs = functional.log_softmax(logits.float(), dim=1)
    return -torch.einsum("bcyx,byxc->", logs, histograms) / histograms.sum().clamp(min=1)


def _patch_of_pixels(maps: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The number of the patch, row by row, that each pixel of maps `(..., height, width)` lies in: `(height * width,)`."""
    row, column = (
        torch.arange(length, device=maps.device) * patches // length
        for length, patches in zip(maps.shape[-2:], grid, strict=True)
    )
    return (row[:, None] * grid[1] + column).flatten()
