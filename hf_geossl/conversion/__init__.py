"""Foreign weights in, without executing anything that they carry, and out again.

The names are in `__init__.pyi`; each is imported when it is first used. `CONVERTERS` says for each source of checkpoints which
function reads it, `"module:function"`, as the rows of `methods.py` have them.
"""

from importlib import import_module

from hf_geossl.methods import METHODS

CONVERTERS: dict[str, str] = {
    converter.source: converter.function for method in METHODS.values() for converter in method.converters
}
_PLACES = {reference.partition(":")[2]: reference.partition(":")[0] for reference in CONVERTERS.values()}
_PLACES |= {
    "adapt_source": "hf_geossl.conversion.adaptation",
    "convert_source": "hf_geossl.conversion.source",
    "read_source": "hf_geossl.conversion.source",
    "save_family": "hf_geossl.conversion.family_export",
    "to_family": "hf_geossl.conversion.family_export",
    "to_timm": "hf_geossl.conversion.timm",
    "SourceTrunk": "hf_geossl.conversion.trunk_weights",
}
__all__ = ["CONVERTERS", *_PLACES]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
