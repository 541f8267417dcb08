"""A small EquiCoherent with random weights and centers, and batches for it."""

from typing import Any

import torch

from tests.helpers.methods import METHODS, randomise

EQUICOHERENT = METHODS["equicoherent"]


def make_config(**fields: Any) -> Any:
    """A small configuration."""
    return EQUICOHERENT.config(**{"num_hidden_layers": 2, **fields})


def make_model(std: float = 0.5, **fields: Any) -> Any:
    """Random weights and centers; student and teacher differ. In eval mode, which decides only about centers."""
    model = EQUICOHERENT.model("ForPreTraining", std, **{"num_hidden_layers": 2, **fields})
    if model.teacher is not None:
        randomise(model.teacher, std, seed=5)
    if model.reconstruction is not None:
        randomise(model.reconstruction, 0.2, seed=6)
    generator = torch.Generator().manual_seed(9)
    for name, center in model.named_buffers(recurse=False):
        assert name in ("class_center", "patch_center")
        center.normal_(std=0.2, generator=generator)
    return model


def make_batch(
    model: Any, batch_size: int = 3, num_local: int = 2, size: tuple[int, int] = (32, 24), seed: int = 11
) -> dict[str, torch.Tensor]:
    """Views that are not square; the first image's first view is not masked."""
    config, generator = model.config, torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    cells = size[0] * size[1] // config.patch_size**2
    batch = {
        "global_pixel_values": draw(batch_size, 2, 3, *size),
        "local_pixel_values": draw(batch_size, num_local, 3, 16, 8),
        "bool_masked_pos": torch.rand(batch_size, 2, cells, generator=generator) < 0.35,
        "intermediate_pixel_values": draw(batch_size, config.num_intermediate, 3, *size),
    }
    batch["bool_masked_pos"][0, 0] = False
    batch["bool_masked_pos"][-1, 1, 2] = True
    if not config.has_teacher:
        del batch["local_pixel_values"]
    return batch
