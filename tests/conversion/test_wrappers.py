"""A ViT is found in what programs put around it."""

import pytest
import torch

from hf_geossl.conversion.wrappers import find_trunk, flatten, looks_like, parts_of

_PATCHES = torch.zeros(8, 3, 4, 4)


@pytest.mark.parametrize(
    ("patches", "beside"),
    [
        ("patch_embed.proj.weight", "head.weight"),
        ("embeddings.patch_embeddings.projection.weight", "classifier.weight"),
        ("embeddings.patch_embeddings.weight", "pooler.dense.weight"),
        ("embeddings.patch_embedding.weight", "text_model.x.weight"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "a._orig_mod.b."])
def test_what_stands_before_the_patch_embedding_goes(patches: str, beside: str, prefix: str) -> None:
    content = {f"{prefix}{patches}": _PATCHES, f"{prefix}cls_token": torch.zeros(1)}
    state, left, found = find_trunk({"epoch": 3, "x": {beside: torch.zeros(1)}, "state_dict": content}, "file")
    assert (sorted(state), left, found) == (sorted([patches, "cls_token"]), parts_of([f"x.{beside}"]), patches)


def test_chunks_of_blocks_are_counted_through() -> None:
    content = {"patch_embed.proj.weight": _PATCHES, "blocks.2.11.norm1.weight": torch.zeros(1)}
    assert "blocks.11.norm1.weight" in find_trunk(content, "file")[0]


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"])
def test_wrappers_of_single_blocks_go(wrapper: str) -> None:
    names = (f"{wrapper}.blocks.0.{wrapper}.norm1.weight", f"{wrapper}.blocks.0.attn.{wrapper}.qkv.weight")
    content = {f"{wrapper}.patch_embed.proj.weight": _PATCHES, **dict.fromkeys(names, torch.zeros(1))}
    assert list(find_trunk(content, "file")[0]) == [
        "patch_embed.proj.weight", "blocks.0.norm1.weight", "blocks.0.attn.qkv.weight"
    ]  # fmt: skip


def test_a_name_that_only_ends_like_a_patch_embedding_is_none() -> None:
    with pytest.raises(ValueError, match="it lacks a patch embedding of a known name"):
        find_trunk({"my_patch_embed.proj.weight": _PATCHES}, "file")


@pytest.mark.parametrize(
    "words", [("teacher", "student"), ("momentum_encoder", "base_encoder"), ("model_ema", "model")]
)
def test_networks_are_known_by_many_words(words: tuple[str, str]) -> None:
    content = {word: {"patch_embed.proj.weight": torch.full_like(_PATCHES, index)} for index, word in enumerate(words)}
    for index, weights in enumerate(("teacher", "student")):
        state, left, _ = find_trunk(content, "file", weights)
        assert state["patch_embed.proj.weight"][0, 0, 0, 0] == index
        assert left == (f"{words[1 - index]}.patch_embed",)


def test_parts_and_depth_are_bounded() -> None:
    assert parts_of(["a.b.c", "a.b.d", "e"]) == ("a.b", "e")
    keys = ["model.teacher.head.0.weight", "model.student.head.0.weight", "x"]
    assert parts_of(keys, "model.teacher.backbone.") == ("model.student", "model.teacher.head", "x")
    nested: dict[str, object] = {"weight": torch.zeros(1)}
    nested["self"] = nested
    assert len(flatten(nested)) == 5
    assert looks_like(["a"]) == ""
