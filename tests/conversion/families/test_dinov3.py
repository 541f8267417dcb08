"""DINOv3 of transformers comes in, is trained, and goes back, with equal features; its own files come in."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from hf_geossl.conversion.family_export import save_family
from hf_geossl.conversion.source import convert_source, read_source
from tests.helpers.vit_families import TRANSFORMERS, assert_equal_features, make, take_a_step

NAMES = [name for name in TRANSFORMERS if name.startswith("dinov3")]


@pytest.mark.parametrize("name", NAMES)
def test_features_are_equal_both_ways_and_after_a_step_of_training(name: str, tmp_path: Path) -> None:
    theirs = TRANSFORMERS[name]()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = convert_source(tmp_path / "theirs")
    assert ours.config.position_embedding_type == "rope"
    assert ours.config.key_bias == theirs.config.key_bias
    assert_equal_features(ours, theirs)
    take_a_step(ours)
    save_family(ours, "dinov3", tmp_path / "back")
    back = AutoModel.from_pretrained(tmp_path / "back").eval()
    assert type(back) is type(theirs)
    assert_equal_features(back, ours)


@pytest.mark.parametrize("gated", [False, True])
def test_its_own_files_hide_the_bias_of_keys(gated: bool, tmp_path: Path) -> None:
    fields = {"use_gated_mlp": True, "hidden_act": "silu"} if gated else {}
    theirs = make("DINOv3ViTModel", num_register_tokens=4, num_attention_heads=4, **fields)
    state = {}
    for key, value in theirs.state_dict().items():
        name = key.removeprefix("model.").removeprefix("embeddings.").replace("layer.", "blocks.")
        for old, new in (
            ("register_tokens", "storage_tokens"),
            ("patch_embeddings", "patch_embed.proj"),
            ("attention.o_proj", "attn.proj"),
            ("layer_scale1.lambda1", "ls1.gamma"),
            ("layer_scale2.lambda1", "ls2.gamma"),
            *((("gate_proj", "w1"), ("up_proj", "w2"), ("down_proj", "w3")) if gated else ()),
            ("up_proj", "fc1"),
            ("down_proj", "fc2"),
        ):
            name = name.replace(old, new)
        if "mask_token" in name:
            value = value[0]
        state[name] = value
    for index in range(2):
        place = f"blocks.{index}.attention."
        parts = [state.pop(f"{place}{part}_proj.weight") for part in "qkv"]
        query, value = (state.pop(f"{place}{part}_proj.bias") for part in "qv")
        place = f"blocks.{index}.attn.qkv."
        state[f"{place}weight"] = torch.cat(parts)
        state[f"{place}bias"] = torch.cat([query, torch.full_like(query, 7.0), value])  # masked there
        state[f"{place}bias_mask"] = torch.cat([torch.ones(128), torch.zeros(128), torch.ones(128)])
    state["rope_embed.periods"] = 100 ** torch.arange(0, 1, 1 / 8)  # 32 channels a head
    torch.save(state, tmp_path / "dinov3_vits16.pth")
    trunk = read_source(tmp_path / "dinov3_vits16.pth")
    assert (trunk.family, trunk.fields["num_attention_heads"], trunk.fields["key_bias"]) == ("dinov3", 4, False)
    assert_equal_features(convert_source(tmp_path / "dinov3_vits16.pth"), theirs)
