"""Foreign weights in, without executing anything that they carry, and out again."""

from hf_geossl.conversion.foreign import (
    convert_dino_checkpoint,
    convert_gtsa_checkpoint,
    convert_timm_checkpoint,
    to_timm,
)
from hf_geossl.conversion.loca import convert_loca_checkpoint

__all__ = [
    "convert_dino_checkpoint",
    "convert_gtsa_checkpoint",
    "convert_loca_checkpoint",
    "convert_timm_checkpoint",
    "to_timm",
]
