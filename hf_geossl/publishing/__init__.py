"""Checkpoint conversion, exports, cards, and the way to the Hub."""

from .convert import convert_dino_checkpoint, convert_gtsa_checkpoint, convert_timm_checkpoint, to_timm
from .convert_loca import convert_loca_checkpoint
from .push import Publication, PublishedFile, PublishError, check_write_access, publish

__all__ = [
    "Publication",
    "PublishError",
    "PublishedFile",
    "check_write_access",
    "convert_dino_checkpoint",
    "convert_gtsa_checkpoint",
    "convert_loca_checkpoint",
    "convert_timm_checkpoint",
    "publish",
    "to_timm",
]
