"""Types of what `__init__.py` imports when it is first used."""

from hf_geossl.conversion.adaptation import adapt_source
from hf_geossl.conversion.dino import convert_dino_checkpoint
from hf_geossl.conversion.family_export import save_family, to_family
from hf_geossl.conversion.gtsa import convert_gtsa_checkpoint
from hf_geossl.conversion.loca import convert_loca_checkpoint
from hf_geossl.conversion.source import convert_source, read_source
from hf_geossl.conversion.timm import convert_timm_checkpoint, to_timm
from hf_geossl.conversion.trunk_weights import SourceTrunk

CONVERTERS: dict[str, str]

__all__ = [
    "CONVERTERS",
    "SourceTrunk",
    "adapt_source",
    "convert_dino_checkpoint",
    "convert_gtsa_checkpoint",
    "convert_loca_checkpoint",
    "convert_source",
    "convert_timm_checkpoint",
    "read_source",
    "save_family",
    "to_family",
    "to_timm",
]
