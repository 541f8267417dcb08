"""Types of what `__init__.py` imports when it is first used."""

from hf_geossl.conversion.dino import convert_dino_checkpoint
from hf_geossl.conversion.gtsa import convert_gtsa_checkpoint
from hf_geossl.conversion.loca import convert_loca_checkpoint
from hf_geossl.conversion.timm import convert_timm_checkpoint, to_timm

CONVERTERS: dict[str, str]

__all__ = [
    "CONVERTERS",
    "convert_dino_checkpoint",
    "convert_gtsa_checkpoint",
    "convert_loca_checkpoint",
    "convert_timm_checkpoint",
    "to_timm",
]
