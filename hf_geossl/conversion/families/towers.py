"""The vision towers of CLIP and SigLIP, as transformers names them."""

from typing import Any

from hf_geossl.conversion.families.family import Family, Naming
from hf_geossl.conversion.families.names import rows
from hf_geossl.modeling.configuration_vit import GeometricViTConfig

_LAYER, _THEIRS = "encoder.layer.{n}", "encoder.layers.{n}"
_NAMING = Naming(
    "embeddings.patch_embedding.weight",
    rows(
        ("embeddings.cls_token", "embeddings.class_embedding"),
        ("embeddings.position_embeddings", "embeddings.position_embedding.weight"),
        ("embeddings.patch_embeddings.{leaf}", "embeddings.patch_embedding.{leaf}"),
        ("embeddings.norm.{leaf}", "pre_layrnorm.{leaf}"),  # transformers' own spelling
        (f"{_LAYER}.attention.qkv.{{leaf}}", f"{_THEIRS}.self_attn.{{q_proj+k_proj+v_proj}}.{{leaf}}"),
        (f"{_LAYER}.attention.projection.{{leaf}}", f"{_THEIRS}.self_attn.out_proj.{{leaf}}"),
        (f"{_LAYER}.norm1.{{leaf}}", f"{_THEIRS}.layer_norm1.{{leaf}}"),
        (f"{_LAYER}.norm2.{{leaf}}", f"{_THEIRS}.layer_norm2.{{leaf}}"),
        (f"{_LAYER}.mlp.fc1.{{leaf}}", f"{_THEIRS}.mlp.fc1.{{leaf}}"),
        (f"{_LAYER}.mlp.fc2.{{leaf}}", f"{_THEIRS}.mlp.fc2.{{leaf}}"),
        ("layernorm.{leaf}", "post_layernorm.{leaf}"),
    ),
)
_EXACT = {"position_interpolation": "bicubic", "position_interpolation_offset": 0.0}
_DIMENSIONS = {"embeddings.cls_token": 1, "embeddings.position_embeddings": 2}


def _without_head(config: GeometricViTConfig) -> dict[str, Any]:
    return {"vision_use_head": False}


FAMILIES = (
    Family(
        "clip_vision_model",
        _NAMING,
        _EXACT | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
        remark="CLIP's last_hidden_state is before its post_layernorm; a trunk's tokens are what that makes of it",
        signs=("pre_layrnorm", "class_embedding"),
        model_class="CLIPVisionModel",
        model_types=("clip",),
        needs_qkv_bias=True,
        has_patch_bias=False,
        has_embedding_norm=True,
        dimensions=_DIMENSIONS,
    ),
    Family(
        "siglip_vision_model",
        _NAMING,
        _EXACT | {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
        model_class="SiglipVisionModel",
        model_types=("siglip",),
        extras=_without_head,
        has_class_token=False,
        needs_qkv_bias=True,
        dimensions=_DIMENSIONS,
    ),
)
