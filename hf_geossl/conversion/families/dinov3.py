"""DINOv3's ViT, as transformers names it."""

from typing import Any

from hf_geossl.conversion.families.family import Family, Naming
from hf_geossl.conversion.families.names import rows
from hf_geossl.modeling.configuration_vit import GeometricViTConfig

_LAYER = "encoder.layer.{n}"
_NAMING = Naming(
    "embeddings.patch_embeddings.weight",
    rows(
        *(
            (f"embeddings.{name}", f"embeddings.{name}")
            for name in ("cls_token", "mask_token", "register_tokens", "patch_embeddings.{leaf}")
        ),
        *(
            (f"{_LAYER}.{ours}", f"{layer}.{theirs}")
            for layer in ("layer.{n}", "model.layer.{n}")
            for ours, theirs in (
                ("attention.qkv.{leaf}", "attention.{q_proj+k_proj+v_proj}.{leaf}"),
                ("attention.query_bias", "attention.q_proj.bias"),
                ("attention.value_bias", "attention.v_proj.bias"),
                ("attention.projection.{leaf}", "attention.o_proj.{leaf}"),
                ("mlp.fc1.{leaf}", "mlp.up_proj.{leaf}"),
                ("mlp.fc2.{leaf}", "mlp.down_proj.{leaf}"),
                ("norm1.{leaf}", "norm1.{leaf}"),
                ("norm2.{leaf}", "norm2.{leaf}"),
                ("layer_scale1.weight", "layer_scale1.lambda1"),
                ("layer_scale2.weight", "layer_scale2.lambda1"),
            )
        ),
        ("layernorm.{leaf}", "norm.{leaf}"),
    ),
    rows(
        *(
            (f"{_LAYER}.mlp.fc1.{{leaf}}", f"{layer}.mlp.{{gate_proj+up_proj}}.{{leaf}}")
            for layer in ("layer.{n}", "model.layer.{n}")
        )
    ),
)


def _extras(config: GeometricViTConfig) -> dict[str, Any]:
    return {
        "layerscale_value": 1.0 if config.layerscale_value is None else float(config.layerscale_value),
        "num_register_tokens": config.num_register_tokens,
        "use_gated_mlp": config.gated_mlp,
        "rope_theta": float(config.rope_theta),
        "query_bias": config.qkv_bias,
        "key_bias": config.qkv_bias and config.key_bias,
        "value_bias": config.qkv_bias,
        "pos_embed_rescale": None,  # trunks of this library are trained with their positions as they are
    }


FAMILIES = (
    Family(
        "dinov3_vit",
        _NAMING,
        {"position_embedding_type": "rope", "layer_norm_eps": 1e-5},
        remark=(
            "DINOv3 shifts and rescales its rotary positions at random in training where its configuration says so; trunks of "
            "this library do not"
        ),
        signs=("attention.q_proj",),
        model_class="DINOv3ViTModel",
        extras=_extras,
        registers=(0, 10_000),
        has_layer_scale=True,
        has_mask_token=True,
        can_gate=True,
        needs_key_bias=False,
        heads={4096: 32},
        dimensions={"embeddings.mask_token": 3},
    ),
)
