"""Families are told apart by their names, and their tables lose nothing."""

import pytest
import torch
import transformers

from hf_geossl import GTSAConfig, GTSAModel
from hf_geossl.conversion.families import FAMILIES, Family
from hf_geossl.conversion.families.names import from_trunk, to_trunk
from hf_geossl.conversion.trunk_weights import choose_family


def _trunk_state(family: Family, *, gated: bool) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        model = GTSAModel(
            GTSAConfig(
                hidden_size=32, num_attention_heads=2, num_hidden_layers=12, image_size=32, patch_size=8,
                gated_mlp=gated, use_class_token=family.has_class_token is not False,
                num_register_tokens=family.registers[0], layerscale_value=1.0 if family.has_layer_scale else None,
                patch_bias=family.has_patch_bias, embedding_norm=family.has_embedding_norm,
                position_embedding_type=family.defaults.get("position_embedding_type", "learned"),
                use_mask_token=family.has_mask_token,
            )
        )  # fmt: skip
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    return {key: torch.randn(shape) for key, shape in shapes.items()}


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_what_goes_out_by_a_table_comes_in_by_it(family: Family, gated: bool) -> None:
    if gated and not family.naming.gated:
        return
    state, table = _trunk_state(family, gated=gated), family.naming.choose_table(gated)
    theirs, unknown = from_trunk(state, table)
    assert not unknown
    back, unknown = to_trunk(theirs, table)
    assert not unknown
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_every_family_that_is_written_has_a_class_and_a_configuration() -> None:
    written = [family for family in FAMILIES if family.model_class]
    assert len(written) == 8
    for family in written:
        assert hasattr(transformers, family.model_class)
        assert transformers.CONFIG_MAPPING[family.name].model_type == family.name
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.model_class], ids=lambda family: family.name
)
def test_names_alone_tell_a_family(family: Family) -> None:
    theirs, _ = from_trunk(_trunk_state(family, gated=False), family.naming.table)
    if family.name == "deit":  # its token has the name of a register by the first row
        theirs["embeddings.distillation_token"] = theirs.pop("embeddings.register_tokens", torch.zeros(1))
    chosen = choose_family(theirs, (), family.naming.patches)
    assert chosen.name == family.name
