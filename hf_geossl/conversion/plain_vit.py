"""Files of ViTs whose program is known by the kind of the converter: their weights as a trunk."""

from collections.abc import Mapping
from typing import Any

from hf_geossl.conversion.checkpoint_file import State
from hf_geossl.conversion.families.blocks import NAMING
from hf_geossl.conversion.families.names import to_trunk
from hf_geossl.conversion.trunk_weights import TRUNK_FIELDS, build_trunk, read_trunk
from hf_geossl.modeling.configuration_vit import GeometricViTConfig
from hf_geossl.modeling.modeling_vit_heads import ViTTrunkModel


def rename_blocks(state: State) -> State:
    """Gives weights in timm's names the trunk's, in float32; names of other parts stay."""
    renamed, unknown = to_trunk(state, NAMING.table)
    return renamed | {key: state[key] for key in unknown}


def hints_of(config: GeometricViTConfig | None, **defaults: object) -> dict[str, Any]:
    """The fields that a configuration gives to what shapes do not say: all of a trunk's; without one the defaults."""
    if config is None:
        return defaults
    return {name: value for name in TRUNK_FIELDS if (value := getattr(config, name, None)) is not None}


def convert_plain_vit(
    content: Mapping[Any, Any],
    name: str,
    config: GeometricViTConfig | None,
    weights: str | None = None,
    **defaults: object,
) -> ViTTrunkModel:
    """Makes a trunk, in eval mode and float32, of a plain ViT's weights.

    Args:
        content, name, weights: As in `read_trunk`.
        config: What shapes do not say.
        **defaults: Fields where there is no `config`.

    Raises:
        ValueError: As `read_trunk`; also if a weight is missing, unknown or of another shape.
    """
    return build_trunk(read_trunk(content, name, weights=weights, hints=hints_of(config, **defaults)), config)


def given_fields(config: GeometricViTConfig | None) -> dict[str, Any]:
    """The fields of a configuration that differ from their defaults; the number of heads where its width is given too."""
    if config is None:
        return {}
    defaults = type(config)()
    fields = {name: value for name, value in hints_of(config).items() if value != getattr(defaults, name, None)}
    if "hidden_size" in fields:
        fields["num_attention_heads"] = config.num_attention_heads
    return fields
