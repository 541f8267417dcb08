"""ViT, DeiT, MAE, I-JEPA, MSN and DINOv2 with and without registers, as transformers names them."""

from typing import Any, cast

from hf_geossl.conversion.families.family import Family, Naming
from hf_geossl.conversion.families.names import rows
from hf_geossl.modeling.configuration_vit import GeometricViTConfig

_LAYER = "encoder.layer.{n}"
NAMING = Naming(
    "embeddings.patch_embeddings.projection.weight",
    rows(
        ("embeddings.cls_token", "embeddings.cls_token"),
        ("embeddings.position_embeddings", "embeddings.position_embeddings"),
        ("embeddings.mask_token", "embeddings.mask_token"),
        ("embeddings.patch_embeddings.{leaf}", "embeddings.patch_embeddings.projection.{leaf}"),
        (f"{_LAYER}.attention.qkv.{{leaf}}", f"{_LAYER}.attention.attention.{{query+key+value}}.{{leaf}}"),
        (f"{_LAYER}.attention.qkv.{{leaf}}", f"{_LAYER}.attention.{{q_proj+k_proj+v_proj}}.{{leaf}}"),
        (f"{_LAYER}.attention.qkv.{{leaf}}", "layers.{n}.attention.{q_proj+k_proj+v_proj}.{leaf}"),
        (f"{_LAYER}.attention.projection.{{leaf}}", f"{_LAYER}.attention.output.dense.{{leaf}}"),
        (f"{_LAYER}.attention.projection.{{leaf}}", f"{_LAYER}.attention.o_proj.{{leaf}}"),
        (f"{_LAYER}.attention.projection.{{leaf}}", "layers.{n}.attention.o_proj.{leaf}"),
        ("layernorm.{leaf}", "layernorm.{leaf}"),
    ),
)
_PLAIN = Naming(
    NAMING.patches,
    NAMING.table
    + rows(
        ("embeddings.register_tokens", "embeddings.distillation_token"),
        *(
            (f"{_LAYER}.{ours}.{{leaf}}", f"{layer}.{theirs}.{{leaf}}")
            for layer, names in (
                (_LAYER, ("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense")),
                ("layers.{n}", ("layernorm_before", "layernorm_after", "mlp.fc1", "mlp.fc2")),
            )
            for ours, theirs in zip(("norm1", "norm2", "mlp.fc1", "mlp.fc2"), names, strict=True)
        ),
    ),
)
_DINOV2 = Naming(
    NAMING.patches,
    NAMING.table
    + rows(
        ("embeddings.register_tokens", "embeddings.register_tokens"),
        *(
            (f"{_LAYER}.{part}.{{leaf}}", f"{_LAYER}.{part}.{{leaf}}")
            for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
        ),
        *((f"{_LAYER}.layer_scale{side}.weight", f"{_LAYER}.layer_scale{side}.lambda1") for side in (1, 2)),
    ),
    rows(
        (f"{_LAYER}.mlp.fc1.{{leaf}}", f"{_LAYER}.mlp.weights_in.{{leaf}}"),
        (f"{_LAYER}.mlp.fc1.{{leaf}}", f"{_LAYER}.mlp.{{gate_proj+up_proj}}.{{leaf}}"),
        (f"{_LAYER}.mlp.fc2.{{leaf}}", f"{_LAYER}.mlp.weights_out.{{leaf}}"),
        (f"{_LAYER}.mlp.fc2.{{leaf}}", f"{_LAYER}.mlp.down_proj.{{leaf}}"),
    ),
)
# with the epsilons of their configurations in transformers, for files without one
_EXACT = {"position_interpolation": "bicubic", "position_interpolation_offset": 0.0, "layer_norm_eps": 1e-12}
_DINOV2_FIELDS = _EXACT | {"layer_norm_eps": 1e-6}


def _dinov2_mlp(config: GeometricViTConfig) -> dict[str, Any]:
    """The whole number that Dinov2Config makes the width of the MLP of."""
    hidden_size, width = config.hidden_size, cast(int, config.intermediate_size)
    for ratio in range(1, 17):
        inner = hidden_size * ratio
        # its gated MLPs have two thirds of the width, rounded up to a multiple of 8
        if width == ((int(inner * 2 / 3) + 7) // 8 * 8 if config.gated_mlp else inner):
            # its gated MLPs do not read hidden_act
            gated = {"use_swiglu_ffn": True, "hidden_act": "gelu"} if config.gated_mlp else {}
            return {"mlp_ratio": ratio, **gated}
    raise ValueError(
        f"dinov2 has no place for MLPs of {width} in a trunk of {hidden_size}{' with gates' if config.gated_mlp else ''}, "
        "which is no whole ratio: take --to timm"
    )


def _dinov2_extras(config: GeometricViTConfig) -> dict[str, Any]:
    scale = 1.0 if config.layerscale_value is None else float(config.layerscale_value)
    return {"layerscale_value": scale, "use_mask_token": config.use_mask_token, **_dinov2_mlp(config)}


def _registers_extras(config: GeometricViTConfig) -> dict[str, Any]:
    extras = _dinov2_extras(config) | {"num_register_tokens": config.num_register_tokens}
    return {name: value for name, value in extras.items() if name != "use_mask_token"}  # they always have one


FAMILIES = (
    Family(
        "dinov2_with_registers",
        _DINOV2,
        _DINOV2_FIELDS | {"position_interpolation": "bicubic_antialias"},
        signs=("register_tokens",),
        model_class="Dinov2WithRegistersModel",
        extras=_registers_extras,
        registers=(1, 10_000),
        has_layer_scale=True,
        has_mask_token=True,
        can_gate=True,
    ),
    Family(
        "dinov2",
        _DINOV2,
        _DINOV2_FIELDS,
        signs=("layer_scale1",),
        model_class="Dinov2Model",
        extras=_dinov2_extras,
        has_layer_scale=True,
        has_mask_token=True,
        can_gate=True,
    ),
    Family(
        "deit",
        _PLAIN,
        _EXACT,
        signs=("distillation_token",),
        model_class="DeiTModel",
        registers=(1, 1),
        has_pooler=True,
    ),
    Family("vit_mae", _PLAIN, _EXACT, signs=("decoder.decoder_embed",)),
    Family("vit_msn", _PLAIN, _EXACT, signs=("vit_msn.",)),
    Family("ijepa", _PLAIN, _EXACT, model_class="IJepaModel", has_class_token=False, has_pooler=True),
    Family("vit", _PLAIN, _EXACT, model_class="ViTModel", has_pooler=True),
)
