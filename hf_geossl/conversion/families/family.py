"""What a family of ViTs is: its names, what its trunks have, and where transformers keeps it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_geossl.conversion.families.names import Row
from hf_geossl.modeling.configuration_vit import GeometricViTConfig

HEAD_WIDTH = 64
# where heads are not 64 wide: CLIP's, MAE's and ViT's "huge", SigLIP's "so400m", "g", "bigG", DINOv3's 7B
WIDER_HEADS: Mapping[int, int] = {1152: 16, 1280: 16, 1408: 16, 1664: 16, 4096: 32}


@dataclass(frozen=True)
class Naming:
    """The names that weights have in files of some families.

    Args:
        patches (`str`): Name of the filters of the patch embedding, by which a trunk is found in a file.
        table (`tuple[Row, ...]`): Its rows. The first of several for one weight is written.
        gated (`tuple[Row, ...]`): Rows for gated MLPs, which come before `table` where a file has one of them.
    """

    patches: str
    table: tuple[Row, ...]
    gated: tuple[Row, ...] = ()

    def choose_table(self, is_gated: bool) -> tuple[Row, ...]:
        """The rows for a trunk with or without gated MLPs."""
        return self.gated + self.table if is_gated else self.table


def no_extras(config: GeometricViTConfig) -> dict[str, Any]:
    """Of a family whose configuration has no fields of its own."""
    return {}


@dataclass(frozen=True)
class Family:
    """A family of ViTs.

    Args:
        name (`str`): What `--to` and `SourceTrunk.family` call it; its `model_type` in transformers, where it has one.
        naming (`Naming`): Its weights' names.
        defaults (`dict`): Fields of the trunk that neither shapes nor config.json say.
        remark (`str`): What is said wherever a trunk comes from the family or goes to it.
        signs (`tuple[str, ...]`): Parts of names that only files of this family have, of those with the same naming.
        model_class (`str`): Its class in transformers that is written; none is where it is empty.
        model_types (`tuple[str, ...]`): Other `model_type`s whose vision tower it is.
        extras (`Callable`): Makes the fields of its configuration that not all families have, of a trunk's configuration.
        has_class_token (`bool` or `None`): Whether its trunks have a class token; None where they may.
        registers (`tuple[int, int]`): Fewest and most registers.
        has_layer_scale (`bool`): Whether residual branches are scaled.
        can_gate (`bool`): Whether MLPs may be gated.
        needs_qkv_bias, needs_key_bias (`bool`): Whether queries, keys and values always have biases, and whether keys have
            where the others have.
        has_patch_bias, has_embedding_norm (`bool`): Of the patch embedding.
        has_mask_token, has_pooler (`bool`): Whether its class has a mask token, and a pooler unless it is asked for none.
        heads (`dict[int, int]`): Number of heads by width, where they are not 64 wide.
        dimensions (`dict[str, int]`): How many dimensions weights have, where those of the trunk's are more or fewer.
    """

    name: str
    naming: Naming
    defaults: Mapping[str, Any]
    remark: str = ""
    signs: tuple[str, ...] = ()
    model_class: str = ""
    model_types: tuple[str, ...] = ()
    extras: Callable[[GeometricViTConfig], dict[str, Any]] = no_extras
    has_class_token: bool | None = True
    registers: tuple[int, int] = (0, 0)
    has_layer_scale: bool = False
    can_gate: bool = False
    needs_qkv_bias: bool = False
    needs_key_bias: bool = True
    has_patch_bias: bool = True
    has_embedding_norm: bool = False
    has_mask_token: bool = False
    has_pooler: bool = False
    heads: Mapping[int, int] = field(default_factory=lambda: WIDER_HEADS)
    dimensions: Mapping[str, int] = field(default_factory=dict)
