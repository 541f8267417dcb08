"""Checkpoints of the DINO and DINOv2 authors' programs in."""

from pathlib import Path
from typing import Literal

from hf_geossl.conversion.checkpoint_file import read_torch_file
from hf_geossl.conversion.families.blocks import PROGRAMS
from hf_geossl.conversion.trunk_weights import build_trunk, given_fields, read_trunk
from hf_geossl.modeling.configuration_vit import GeometricViTConfig
from hf_geossl.modeling.modeling_vit_heads import ViTTrunkModel


def convert_dino_checkpoint(
    path: str | Path,
    weights: Literal["teacher", "student"] = "teacher",
    config: GeometricViTConfig | None = None,
) -> ViTTrunkModel:
    """Takes over a ViT of the DINO authors' program, or of DINOv2's.

    Args:
        path (`str` or `Path`): A backbone file (`dino_deitsmall16_pretrain.pth`, `dinov2_vits14_reg4_pretrain.pth`,
            `dinov3_vits16_pretrain.pth`) or a full
            training checkpoint (DINOv2's `teacher_checkpoint.pth`).
        weights (`"teacher"` or `"student"`): Which network of a full checkpoint; the published ones are teachers.
        config (`GeometricViTConfig`, *optional*): What shapes do not say; by default one head for each 64 channels.

    Returns:
        `ViTTrunkModel` in eval mode, of the method that takes over plain ViTs: `last_hidden_state` equals DINO's
        normalised tokens at every image size (positions are resampled as DINO's program does, or DINOv2's with registers).

    Raises:
        FileNotFoundError, ValueError: As the converters of full checkpoints; also for another `weights`.
    """
    if weights not in ("teacher", "student"):
        raise ValueError(f"weights must be 'teacher' or 'student', got {weights!r}")
    content, hints = read_torch_file(path), given_fields(config)
    return build_trunk(read_trunk(content, Path(path).name, weights=weights, families=PROGRAMS, hints=hints), config)
