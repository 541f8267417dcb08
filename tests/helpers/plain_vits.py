"""Plain ViTs of timm with random weights, and checkpoints of them, for tests of conversion."""

from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

State = dict[str, torch.Tensor]


def vit_of(**fields: Any) -> VisionTransformer:
    """A timm ViT with weights that no initialisation would give."""
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1, "num_classes": 0}
    model = VisionTransformer(**{**size, **fields})
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.normal_(std=0.1, generator=generator)
    return model.eval()


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def authors_state(vit: VisionTransformer, projector: int = 24, projection: int = 20, predictor: int = 28) -> State:
    """A full checkpoint in the authors' key names; the student's trunk is `vit`, the teacher's twice that."""
    width = vit.embed_dim
    shapes = {
        "base_projector.blocks.0.0": (projector, width, 3, 3),
        "base_projector.blocks.1.0": (projector, projector, 3, 3),
        "base_projector.proj": (projection, projector, 1, 1),
        "base_predictor.blocks.0.0": (predictor, projection, 3, 3),
        "base_predictor.proj": (projection, predictor, 1, 1),
        "rot_predictor.0": (40, width),
        "rot_predictor.1": (40,),
        "rot_predictor.3": (36, 40),
        "rot_predictor.4": (36,),
        "rot_predictor.6": (12, 36),
        "rot_predictor.7": (12,),
        "rot_predictor.8": (4, 12),
    }
    generator = torch.Generator().manual_seed(2)
    state = {f"base_encoder.{key}": value.clone() for key, value in vit.state_dict().items()}
    state |= {f"momentum_encoder.{key}": 2 * value for key, value in vit.state_dict().items()}
    for key, shape in shapes.items():
        state[f"{key}.weight"] = torch.randn(shape, generator=generator)
        state[f"{key}.bias"] = torch.randn(shape[0], generator=generator)
    for key in [key for key in state if key.startswith("base_projector.")]:
        state[key.replace("base_", "momentum_")] = 3 * state[key]
    return state


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def tokens_of(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.forward_features(pixels) if isinstance(model, VisionTransformer) else model(pixels)[0]


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * max(1.0, expected.abs().max().item()))
