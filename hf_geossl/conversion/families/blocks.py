"""The names of timm, and of the programs of DINO, iBOT, DINOv2, DINOv3, MAE and DeiT: `blocks.0.attn.qkv.weight`."""

from hf_geossl.conversion.families.family import Family, Naming
from hf_geossl.conversion.families.names import rows

_LAYER = "encoder.layer.{n}"
NAMING = Naming(
    "patch_embed.proj.weight",
    rows(
        ("embeddings.cls_token", "cls_token"),
        ("embeddings.position_embeddings", "pos_embed"),
        *(
            ("embeddings.register_tokens", name)
            for name in ("reg_token", "register_tokens", "storage_tokens", "dist_token")
        ),
        ("embeddings.mask_token", "mask_token"),
        ("embeddings.mask_token", "masked_embed"),
        ("embeddings.patch_embeddings.{leaf}", "patch_embed.proj.{leaf}"),
        ("embeddings.norm.{leaf}", "norm_pre.{leaf}"),
        (f"{_LAYER}.attention.qkv.{{leaf}}", "blocks.{n}.attn.qkv.{leaf}"),
        (f"{_LAYER}.attention.query_bias", "blocks.{n}.attn.q_bias"),
        (f"{_LAYER}.attention.value_bias", "blocks.{n}.attn.v_bias"),
        (f"{_LAYER}.attention.projection.{{leaf}}", "blocks.{n}.attn.proj.{leaf}"),
        *((f"{_LAYER}.layer_scale{side}.weight", f"blocks.{{n}}.ls{side}.gamma") for side in (1, 2)),
        *((f"{_LAYER}.layer_scale{side}.weight", f"blocks.{{n}}.gamma_{side}") for side in (1, 2)),
        *((f"{_LAYER}.{part}.{{leaf}}", f"blocks.{{n}}.{part}.{{leaf}}") for part in ("norm1", "norm2", "mlp.fc1")),
        (f"{_LAYER}.mlp.fc2.{{leaf}}", "blocks.{n}.mlp.fc2.{leaf}"),
        ("layernorm.{leaf}", "norm.{leaf}"),
    ),
    rows(
        (f"{_LAYER}.mlp.fc1.{{leaf}}", "blocks.{n}.mlp.{fc1_g+fc1_x}.{leaf}"),
        (f"{_LAYER}.mlp.fc1.{{leaf}}", "blocks.{n}.mlp.w12.{leaf}"),
        (f"{_LAYER}.mlp.fc1.{{leaf}}", "blocks.{n}.mlp.{w1+w2}.{leaf}"),
        (f"{_LAYER}.mlp.fc2.{{leaf}}", "blocks.{n}.mlp.w3.{leaf}"),
    ),
)
_TIMM = {"position_interpolation": "bicubic_antialias", "position_interpolation_offset": 0.0}
TIMM = Family(
    "timm",
    NAMING,
    _TIMM,
    signs=("reg_token", "dist_token", "head.weight", "blocks.0.attn.q_bias"),
    has_class_token=None,
)
_TIMM_CLIP = Family(
    "timm_clip",
    NAMING,
    _TIMM | {"layer_norm_eps": 1e-5},
    remark=(
        "CLIP's files in timm's names do not say whether their MLPs have GELU or, as OpenAI's, quick GELU: GELU is taken; "
        "timm:NAME, or a config with hidden_act, says it"
    ),
    signs=("norm_pre.",),
)
_ROTARY = {"position_embedding_type": "rope", "layer_norm_eps": 1e-5}
# timm calls the scales of DINOv3's residual branches otherwise than those of its other ViTs
TIMM_FAMILIES = (
    Family("timm_dinov3", NAMING, _ROTARY, signs=("blocks.0.gamma_1",), heads={4096: 32}, has_class_token=None),
    _TIMM_CLIP,
    TIMM,
)
# DINO's, iBOT's and DINOv2's programs add 0.1 to the grid
DINO = Family(
    "dino", NAMING, {"position_interpolation": "bicubic", "position_interpolation_offset": 0.1}, has_class_token=None
)
# the programs of papers; the first whose signs a file has
PROGRAMS = (
    Family(
        "dinov3",
        NAMING,
        _ROTARY,
        signs=("storage_tokens", "rope_embed.periods"),
        heads={4096: 32},
    ),
    # since its registers DINOv2 resamples with antialiasing to the exact size
    Family("dinov2_reg", NAMING, _TIMM, signs=("register_tokens",)),
    Family(
        "mae",
        NAMING,
        {"position_interpolation": "bicubic", "position_interpolation_offset": 0.0},
        signs=("decoder_embed.",),
    ),
    DINO,
)
FAMILIES = (*PROGRAMS[:-1], *TIMM_FAMILIES, DINO)
