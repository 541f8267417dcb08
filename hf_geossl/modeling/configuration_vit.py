"""Configuration of the vision transformer trunk that all methods share."""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self, cast

from huggingface_hub.dataclasses import strict
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig

from .image_format import ImageFormat

TRANSFORMATIONS = ("se2", "rotation", "translation", "color", "blur")


@strict
class ViTHeadConfig(PreTrainedConfig):
    r"""What heads and image processors read of a trunk, whatever it is made of.

    Args:
        hidden_size (`int`, defaults to 384): Width of the tokens.
        num_hidden_layers (`int`, defaults to 12): Number of transformer layers.
        initializer_range (`float`, defaults to 0.02): Standard deviation of the truncated normal initialisation.
        layer_norm_eps (`float`, defaults to 1e-6): Epsilon of layer norms.
        image_size (`int` or `(height, width)`, defaults to 224): Size in pixels that the model was made for.
        patch_size (`int`, defaults to 16): Side of a patch in pixels.
        num_channels (`int`, defaults to 3): Channels of the images.
        image_format (`dict`, *optional*): What the images are, as `ImageFormat.to_dict` gives it: channels, names, stored
            type, value range, mean and deviation. RGB of 8 bits when not given.
        semantic_loss_ignore_index (`int`, defaults to 255): Label that the segmentation loss leaves out.
        decoder_type (`str`, *optional*): Decoder of a model with a dense head: `"linear"` or `"upernet"` for classes,
            `"dpt"` or `"linear"` for depths; the first of these when not given.
        decoder_channels (`int`, *optional*): Channels of its maps; 64 for classes and boxes, 32 for depths when not given.
        max_depth (`float`, defaults to 80.0): Metres, the largest depth that is predicted.
        init_from (`str`, *optional*): Name of the ViT whose trunk the training has started from, for cards.

    Raises:
        StrictDataclassError (of `huggingface_hub`): If a value is of another type or out of its range.
    """

    _auto_class: ClassVar[str | None] = "AutoConfig"  # saving takes this file along
    # called before a configuration is made: the installed package registers its models with the Auto classes then
    before_use: ClassVar[list[Callable[[], None]]] = []

    hidden_size: int = 384
    num_hidden_layers: int = 12
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int = 16
    num_channels: int = 3
    image_format: dict[str, Any] | None = None
    semantic_loss_ignore_index: int = 255
    decoder_type: str | None = None
    decoder_channels: int | None = None
    max_depth: float | int = 80.0
    init_from: str | None = None

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        """Makes a configuration without fields; Python calls it where one is unpickled too."""
        for action in cls.before_use:
            action()
        return super().__new__(cls)

    @property
    def image_height_width(self) -> tuple[int, int]:
        """Height and width in pixels that the position table is made for."""
        if isinstance(self.image_size, int):
            return self.image_size, self.image_size
        height, width = self.image_size
        return height, width

    def require(self, words: str, valid: Callable[[Any], bool], *names: str) -> None:
        """Raises a `ValueError`, "NAME must be WORDS, got VALUE", for the first of the fields that is not valid."""
        for name in names:
            if not valid(value := getattr(self, name)):
                raise ValueError(f"{name} must be {words}, got {value!r}")

    def require_one_of(self, name: str, choices: Sequence[str | None]) -> None:
        """Raises a `ValueError` that lists the choices if the field holds none of them."""
        self.require(f"one of {', '.join(map(str, choices))}", lambda value: value in choices, name)

    def decoder_for(self, model: str, *decoders: str) -> str:
        """The decoder of a model with a dense head: `decoder_type`, or the first of those that it has.

        Raises:
            ValueError: If the model has no such decoder.
        """
        chosen = self.decoder_type or decoders[0]
        if chosen not in decoders:
            raise ValueError(f"decoder_type of {model} must be one of {', '.join(decoders)}, got {chosen!r}")
        return chosen

    def get_image_format(self) -> ImageFormat | None:
        """What the images are: `image_format`, or RGB of 8 bits; None where there are not 3 channels and nothing says what they are."""
        if self.image_format is not None:
            return ImageFormat.from_dict(self.image_format)
        return ImageFormat() if self.num_channels == 3 else None

    def validate_head(self) -> None:
        """Part of `@strict` validation."""
        sizes = ("hidden_size", "num_hidden_layers", "patch_size", "num_channels")
        self.require("at least 1", lambda size: size >= 1, *sizes)
        if any(side < self.patch_size or side % self.patch_size for side in self.image_height_width):
            raise ValueError(
                f"image_size must be a positive multiple of patch_size, got {self.image_size} and {self.patch_size}"
            )
        self.require_one_of("decoder_type", (None, "linear", "upernet", "dpt", "rcnn"))
        words = "a multiple of 4, or None for its default"
        self.require(words, lambda size: size is None or (size >= 4 and size % 4 == 0), "decoder_channels")
        self.require("above 0", lambda depth: 0 < depth < math.inf, "max_depth")
        self.require("above 0", lambda value: 0 < value < math.inf, "layer_norm_eps", "initializer_range")
        if self.image_format is not None:
            described = ImageFormat.from_dict(self.image_format)
            if described.num_channels != self.num_channels:
                raise ValueError(
                    f"num_channels must be {described.num_channels}, as image_format says ({described.describe()}), "
                    f"got {self.num_channels}"
                )


@strict
class GeometricViTConfig(BackboneConfigMixin, ViTHeadConfig):
    r"""Fields of the pre-norm ViT trunk, beside those of `ViTHeadConfig`; each method's configuration adds its own.

    Args:
        num_attention_heads (`int`, defaults to 6): Heads of each attention layer; must divide `hidden_size`.
        intermediate_size (`int`, *optional*): Width of the MLP; four times `hidden_size` when not given.
        hidden_act (`str`, defaults to `"gelu"`): Activation of the MLP; `"gelu"` is the exact (erf) one,
            `"gelu_pytorch_tanh"` its tanh approximation.
        patch_bias (`bool`, defaults to `True`): Whether the patch embedding has a bias (CLIP's has none).
        qkv_bias (`bool`, defaults to `True`): Whether queries, keys and values have a bias.
        key_bias (`bool`, defaults to `True`): Whether the keys have one too, where the others have (DINOv3's have none).
        gated_mlp (`bool`, defaults to `False`): Whether MLPs are gated: `fc2(act(gate) * up)`, with gate and up from `fc1`
            and `intermediate_size` channels each; with `hidden_act="silu"` that is SwiGLU (arXiv 2002.05202).
        embedding_norm (`bool`, defaults to `False`): Whether a layer norm precedes the layers (CLIP's).
        use_class_token (`bool`, defaults to `True`): Whether a class token precedes the patch tokens.
        num_register_tokens (`int`, defaults to 0): Register tokens after the class token; they have no position
            (arXiv 2309.16588).
        use_mask_token (`bool`, defaults to `False`): Whether there is an embedding that stands for masked patches.
        layerscale_value (`float`, *optional*): Start of the scale that each residual branch learns for each channel
            (arXiv 2103.17239); no scale when not given.
        position_embedding_type (`str`, defaults to `"learned"`): A `"learned"` table that is added to the patches, or
            `"rope"`: queries and keys are rotated by where their patches lie, as DINOv3's (arXiv 2508.10104).
        rope_theta (`float`, defaults to 100.0): Base of the periods of `"rope"`.
        position_interpolation (`str`, defaults to `"bicubic"`): How learned positions are resampled to other grids:
            `"bicubic"` as DINO, `"bicubic_antialias"` as timm and Pillow, `"bilinear"` with antialiasing as LOCA.
        position_interpolation_offset (`float`, defaults to 0.0): Added to the new grid's size there, as DINO does with 0.1;
            0 resamples to the exact size.
        drop_path_rate (`float`, defaults to 0.0): Stochastic depth of the last layer; grows linearly from 0.
        apply_layernorm (`bool`, defaults to `True`): Whether a backbone normalises its feature maps.
        reshape_hidden_states (`bool`, defaults to `True`): Whether a backbone returns maps `(batch, channels, height,
            width)`; otherwise tokens `(batch, 1 + patches, channels)`, as `DPTForDepthEstimation` wants them, without
            registers; where there is no class token, their mean stands in its place.
        out_features, out_indices (*optional*): Stages that a backbone returns, `"stem"`, `"stage1"`, ...

    Raises:
        StrictDataclassError (of `huggingface_hub`): If a value is of another type or out of its range.
    """

    num_attention_heads: int = 6
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    patch_bias: bool = True
    qkv_bias: bool = True
    key_bias: bool = True
    gated_mlp: bool = False
    embedding_norm: bool = False
    use_class_token: bool = True
    num_register_tokens: int = 0
    use_mask_token: bool = False
    layerscale_value: float | int | None = None
    position_embedding_type: str = "learned"
    rope_theta: float | int = 100.0
    position_interpolation: str = "bicubic"
    position_interpolation_offset: float | int = 0.0
    drop_path_rate: float | int = 0.0
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: object) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        kwargs.pop("stage_names", None)  # always follows num_hidden_layers, whatever a saved file says
        self.stage_names = ["stem"] + [f"stage{index}" for index in range(1, self.num_hidden_layers + 1)]
        self.set_output_features_output_indices(
            out_indices=cast(list[int] | None, kwargs.pop("out_indices", None)),
            out_features=cast(list[str] | None, kwargs.pop("out_features", None)),
        )
        super().__post_init__(**kwargs)

    def validate_trunk(self) -> None:
        """Part of `@strict` validation."""
        self.require("at least 1", lambda size: size >= 1, "num_attention_heads")
        self.require_one_of("position_embedding_type", ("learned", "rope"))
        self.require_one_of("position_interpolation", ("bicubic", "bicubic_antialias", "bilinear"))
        # from 1 on, the resampled grid would be larger than asked
        self.require("in [0, 1)", lambda offset: 0 <= offset < 1, "position_interpolation_offset")
        self.require("above 0", lambda theta: 0 < theta < math.inf, "rope_theta")
        if self.position_embedding_type == "rope" and self.hidden_size % (4 * self.num_attention_heads):
            raise ValueError(
                f"position_embedding_type 'rope' needs heads of a multiple of 4 channels, got hidden_size "
                f"{self.hidden_size} and num_attention_heads {self.num_attention_heads}"
            )
        self.require("0 or more", lambda count: count >= 0, "num_register_tokens")
        self.require(
            "a number, or None for no scale", lambda value: value is None or math.isfinite(value), "layerscale_value"
        )
        self.require("in [0, 1)", lambda rate: 0 <= rate < 1, "drop_path_rate")
        self.require("above 0", lambda size: size >= 1, "intermediate_size")  # None has become a number


@strict
class ReconstructingViTConfig(GeometricViTConfig):
    r"""The reconstruction task of EquiCoherent, for methods that have losses of their own and can carry it beside them.

    Args:
        reconstruction (`str`, *optional*): What one more view goes through, whose intermediate images are reconstructed:
            `"se2"`, `"rotation"`, `"translation"`, `"color"` or `"blur"`; nothing is reconstructed by default.
        num_intermediate (`int`, defaults to 2): Intermediate images (K) that are reconstructed, each by its own decoder.
        reconstruct_final (`bool`, defaults to `False`): Whether the transformed view is reconstructed too.
        reconstruction_weight (`float`, defaults to 1.0): Weight of the reconstruction loss; with 0 there is none.
        equivariant_features (`int`, *optional*): Channels of each view's tokens that go to decoders (d_equi); by default a
            quarter of `hidden_size`, at least 1.
        decoder_hidden_size (`int`, *optional*): Channels of the first stage of a decoder (C0); by default half of
            `hidden_size`, at least 8 and at most 256.

    Source: arXiv 2503.18753.
    """

    reconstruction: str | None = None
    num_intermediate: int = 2
    reconstruct_final: bool = False
    reconstruction_weight: float | int = 1.0
    equivariant_features: int | None = None
    decoder_hidden_size: int | None = None

    @property
    def num_decoders(self) -> int:
        """Decoders of the reconstruction; 0 where nothing is reconstructed."""
        if self.reconstruction is None or not self.reconstruction_weight:
            return 0
        return self.num_intermediate + int(self.reconstruct_final)

    @property
    def decoder_sizes(self) -> tuple[int, int]:
        """`equivariant_features` and `decoder_hidden_size`, or what they are by default."""
        return (
            self.equivariant_features or max(1, self.hidden_size // 4),
            self.decoder_hidden_size or min(256, max(self.hidden_size // 2, 8)),
        )

    def validate_reconstruction(self) -> None:
        """Part of `@strict` validation."""
        words = f"one of {', '.join(TRANSFORMATIONS)} or None"
        self.require(words, lambda value: value in (None, *TRANSFORMATIONS), "reconstruction")
        self.require("0 or more", lambda value: 0 <= value < math.inf, "num_intermediate", "reconstruction_weight")
        widths = ("equivariant_features", "decoder_hidden_size")
        self.require("at least 1, or None for its default", lambda width: width is None or width >= 1, *widths)


@strict
class ViTWrapperConfig(ViTHeadConfig):
    r"""A head over a vision transformer of transformers or timm that no trunk of this library stands for, such as BEiT or CaiT.

    Args:
        trunk_config (`dict`): The configuration of the trunk, with its `model_type`: transformers' own, or `timm_wrapper`'s.
        num_prefix_tokens (`int`, defaults to 1): Tokens before those of the patches.
        use_class_token (`bool`, defaults to `True`): Whether the first of them is a class token.

    The other fields are those of `ViTHeadConfig`.
    """

    model_type = "vit_wrapper"

    trunk_config: dict[str, Any] | None = None
    num_prefix_tokens: int = 1
    use_class_token: bool = True

    @property
    def is_of_timm(self) -> bool:
        """Whether the trunk is a model of timm."""
        return (self.trunk_config or {}).get("model_type") == "timm_wrapper"
