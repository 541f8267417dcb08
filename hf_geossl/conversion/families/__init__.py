"""Families of ViTs, one table each, that is read in both directions."""

from hf_geossl.conversion.families import blocks, dinov3, towers, transformers_vit
from hf_geossl.conversion.families.family import Family

FAMILIES: tuple[Family, ...] = (
    *transformers_vit.FAMILIES,
    *dinov3.FAMILIES,
    *towers.FAMILIES,
    *blocks.FAMILIES,
)
__all__ = ["FAMILIES", "Family"]
