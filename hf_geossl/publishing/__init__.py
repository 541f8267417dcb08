"""Checkpoint conversion and exports."""

from .convert import convert_dino_checkpoint, convert_gtsa_checkpoint, convert_timm_checkpoint, to_timm
from .convert_loca import convert_loca_checkpoint

__all__ = [
    "convert_dino_checkpoint",
    "convert_gtsa_checkpoint",
    "convert_loca_checkpoint",
    "convert_timm_checkpoint",
    "to_timm",
]
