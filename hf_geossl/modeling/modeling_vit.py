"""The vision transformer trunk that all methods share: embeddings, attention, layer, encoder."""

from collections.abc import Callable
from os import PathLike
from typing import Any, ClassVar, Unpack, cast

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils.generic import TransformersKwargs, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_vit import GeometricViTConfig


def resample_positions(
    positions: torch.Tensor, height: int, width: int, offset: float = 0.0, mode: str = "bicubic"
) -> torch.Tensor:
    """Resamples a table of position embeddings to another grid, in float32; the dtype stays.

    Args:
        positions (`torch.Tensor` of shape `(rows, columns, hidden_size)`): The table.
        height, width (`int`): The new grid, in patches.
        offset (`float`, defaults to 0.0): Added to `height` and `width` where the sampling step is computed, as DINO
            and GTSA do with 0.1; 0 resamples to the exact size.
        mode (`str`, defaults to `"bicubic"`): `"bicubic"` without antialiasing as DINO and GTSA, or `"bilinear"` with
            antialiasing where the grid shrinks as LOCA (`jax.image.resize`).
    """
    grid_height, grid_width, _ = positions.shape
    if not (isinstance(height, int) and isinstance(width, int)):  # sizes that an export or a trace keeps open
        rows, columns = _resampling_matrices((grid_height, grid_width), (height, width), offset, mode, positions.device)
        return torch.einsum("hr,wc,rcd->hwd", rows, columns, positions.float()).to(positions.dtype)
    if (height, width) == (grid_height, grid_width):
        return positions
    target: dict[str, Any] = {"size": (height, width)}
    if offset:
        target = {"scale_factor": ((height + offset) / grid_height, (width + offset) / grid_width)}
    table = positions.float().permute(2, 0, 1)[None]  # (1, D, grid_height, grid_width)
    table = nn.functional.interpolate(table, mode=mode, align_corners=False, antialias=mode == "bilinear", **target)
    return table[0].permute(1, 2, 0).to(positions.dtype)


def _resampling_matrices(
    grid: tuple[int, int], sizes: tuple[int, int], offset: float, mode: str, device: torch.device
) -> list[torch.Tensor]:
    """Makes the matrices `(new, old)` of rows and columns of what `interpolate` does, in tensors alone, for any size."""
    steps = [torch.arange(size, device=device) for size in sizes]
    counts = [step[-1] + 1 for step in steps]
    extra = offset * ((counts[0] != grid[0]) | (counts[1] != grid[1]))  # none where the grid stays
    matrices = []
    for old, step, count in zip(grid, steps, counts, strict=True):
        stride = old / (count + extra)
        places = torch.arange(-2, old + 2, device=device)  # a cubic kernel reaches two beyond the edge
        away = ((step[:, None] + 0.5) * stride - 0.5 - places).abs()
        if mode == "bilinear":
            weights = (1 - away[:, 2:-2] / stride.clamp(min=1)).clamp(min=0)
            matrices.append(weights / weights.sum(1, keepdim=True))
            continue
        near, far = (1.25 * away - 2.25) * away**2 + 1, -0.75 * (((away - 5) * away + 8) * away - 4)
        weights = torch.where(away < 1, near, torch.where(away < 2, far, 0.0))
        inside = [weights[:, :3].sum(1, keepdim=True), weights[:, 3:-3], weights[:, -3:].sum(1, keepdim=True)]
        matrices.append(torch.cat(inside, 1) if old > 1 else weights.sum(1, keepdim=True))
    return matrices


class ViTPatchEmbeddings(nn.Conv2d):
    """Cuts an image into patches and maps each to a token; keeps PyTorch's own initialisation."""

    def __init__(self, config: GeometricViTConfig) -> None:
        super().__init__(config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size)
        self.patch_size = config.patch_size

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Maps `pixel_values (batch, channels, height, width)` to tokens `(batch, rows, columns, hidden_size)`."""
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.in_channels:
            raise ValueError(
                f"pixel_values must have shape (batch, {self.in_channels}, height, width), "
                f"got {tuple(pixel_values.shape)}"
            )
        height, width = pixel_values.shape[-2:]
        if height % self.patch_size or width % self.patch_size or not height or not width:
            raise ValueError(
                f"height and width of pixel_values must be multiples of the patch size {self.patch_size}, "
                f"got {height} x {width}; resize or pad the images"
            )
        return super().forward(pixel_values.to(self.weight.dtype)).permute(0, 2, 3, 1)


class ViTEmbeddings(nn.Module):
    """Patch tokens with positions, class token and registers before them, for any image size divisible by the patch."""

    def __init__(self, config: GeometricViTConfig) -> None:
        super().__init__()
        height, width = config.image_height_width
        self.grid_size = (height // config.patch_size, width // config.patch_size)
        self.position_interpolation = config.position_interpolation
        self.position_interpolation_offset = getattr(config, "position_interpolation_offset", 0.0)
        self.patch_embeddings = ViTPatchEmbeddings(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if config.use_class_token else None
        registers = config.num_register_tokens
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, config.hidden_size)) if registers else None
        self.mask_token: nn.Parameter | None = None
        if config.use_mask_token:
            self.add_mask_token()
        self.num_class_tokens = int(config.use_class_token)
        self.num_prefix_tokens = self.num_class_tokens + registers  # what precedes the patch tokens
        num_positions = self.num_class_tokens + self.grid_size[0] * self.grid_size[1]
        self.position_embeddings = nn.Parameter(torch.zeros(1, num_positions, config.hidden_size))

    def forward(
        self,
        pixel_values: torch.Tensor,
        kept_tokens: torch.Tensor | None = None,
        use_positions: bool = True,
        bool_masked_pos: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Maps `(batch, channels, height, width)` to `(batch, tokens, hidden_size)`: class token, registers, patches.

        `kept_tokens (kept,)`, raster indices, leaves the other patch tokens out after positions are added;
        `use_positions=False` adds none; `bool_masked_pos (batch, patches)` puts the mask token in the place of patches.
        """
        tokens = self.patch_embeddings(pixel_values)  # (B, h, w, D)
        if bool_masked_pos is not None:
            tokens = self._mask(tokens, bool_masked_pos)
        if use_positions:
            table = self.position_embeddings[0, self.num_class_tokens :].unflatten(0, self.grid_size)
            tokens = tokens + resample_positions(
                table,
                tokens.shape[1],
                tokens.shape[2],
                self.position_interpolation_offset,
                self.position_interpolation,
            )
        tokens = tokens.flatten(1, 2)
        if kept_tokens is not None:
            tokens = tokens[:, kept_tokens]
        prefix = []
        if self.cls_token is not None:
            prefix.append(self.cls_token + self.position_embeddings[:, :1] if use_positions else self.cls_token)
        if self.register_tokens is not None:
            prefix.append(self.register_tokens)
        if not prefix:
            return tokens
        # shape[0], not len(), which would fix the batch size of an exported model
        return torch.cat([*(token.expand(tokens.shape[0], -1, -1) for token in prefix), tokens], dim=1)

    def add_mask_token(self) -> None:
        """Gives the embeddings a mask token, where they have none; for pretraining, so that no other class has one."""
        if self.mask_token is None:
            self.mask_token = nn.Parameter(torch.zeros(1, self.patch_embeddings.out_channels))

    def _mask(self, tokens: torch.Tensor, bool_masked_pos: torch.Tensor) -> torch.Tensor:
        """Puts the mask token in the place of some of `tokens (batch, rows, columns, hidden_size)`."""
        batch_size, rows, columns, _ = tokens.shape
        if self.mask_token is None:
            raise ValueError("bool_masked_pos needs a mask token: set use_mask_token=True in the configuration")
        if bool_masked_pos.shape != (batch_size, rows * columns) or bool_masked_pos.dtype != torch.bool:
            raise ValueError(
                f"bool_masked_pos must be bool of shape {(batch_size, rows * columns)}, got {bool_masked_pos.dtype} of "
                f"{tuple(bool_masked_pos.shape)}"
            )
        masked = bool_masked_pos.view(batch_size, rows, columns, 1)
        return torch.where(masked, self.mask_token.to(tokens.dtype), tokens)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, for `attn_implementation="eager"`, which alone returns the weights."""
    weights = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class ViTAttentionBase(nn.Module):
    """Heads and transformers' attention interface; what queries, keys and values come from is the subclasses'."""

    def __init__(self, config: GeometricViTConfig) -> None:
        super().__init__()
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {config.hidden_size} and "
                f"{config.num_attention_heads}; change num_attention_heads in the configuration"
            )
        self.config = config
        self.num_attention_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)

    def split_heads(self, projected: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
        """Maps `(batch, tokens, parts * hidden_size)` to `parts` tensors `(batch, heads, tokens, head_dim)`."""
        split = projected.unflatten(2, (parts, self.num_attention_heads, self.head_dim))
        return split.permute(2, 0, 3, 1, 4).unbind(0)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention of `(batch, heads, tokens, head_dim)`, projected to `(batch, tokens, hidden_size)`; and weights."""
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention(self, query, key, value, None, dropout=0.0, scaling=self.scaling, **kwargs)
        return self.projection(output.flatten(2)), weights


class ViTAttention(ViTAttentionBase):
    """Multi-head self-attention; queries, keys and values in one product."""

    def __init__(self, config: GeometricViTConfig) -> None:
        super().__init__(config)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)

    def forward(
        self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Maps `(batch, tokens, hidden_size)` to the same shape; also returns `(batch, heads, tokens, tokens)` or None."""
        query, key, value = self.split_heads(self.qkv(hidden_states), 3)
        return self.attend(query, key, value, **kwargs)


class ViTMLP(nn.Module):
    """Two linear layers with the activation between them."""

    def __init__(self, config: GeometricViTConfig) -> None:
        super().__init__()
        intermediate_size = cast(int, config.intermediate_size)  # the configuration has filled it in
        self.fc1 = nn.Linear(config.hidden_size, intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, tokens, hidden_size)` to the same shape."""
        return self.fc2(self.activation(self.fc1(hidden_states)))


class ViTDropPath(nn.Module):
    """Stochastic depth, per sample, scaled by the inverse of the share that stays (arXiv 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Zeroes whole samples of a residual branch `(batch, tokens, hidden_size)` in training."""
        if self.rate == 0.0 or not self.training:
            return hidden_states
        keep = torch.empty(hidden_states.shape[0], 1, 1, dtype=hidden_states.dtype, device=hidden_states.device)
        return hidden_states * keep.bernoulli_(1 - self.rate).div_(1 - self.rate)

    def disable(self) -> None:
        """Drops nothing from now on, in training neither."""
        self.rate = 0.0

    def extra_repr(self) -> str:
        """Shows the rate where the module is printed."""
        return f"rate={self.rate:.3f}"


class ViTLayerScale(nn.Module):
    """Scales each channel of a residual branch by a learned factor (arXiv 2103.17239)."""

    def __init__(self, config: GeometricViTConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, tokens, hidden_size)` to the same shape."""
        return hidden_states * self.weight


class ViTLayer(GradientCheckpointingLayer):
    """A pre-norm transformer layer."""

    def __init__(self, config: GeometricViTConfig, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ViTAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ViTMLP(config)
        scaled = config.layerscale_value is not None
        self.layer_scale1, self.layer_scale2 = (ViTLayerScale(config) if scaled else nn.Identity() for _ in range(2))
        self.drop_path = ViTDropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """Maps `(batch, tokens, hidden_size)` to the same shape."""
        attended = self.layer_scale1(self.attention(self.norm1(hidden_states), **kwargs)[0])
        hidden_states = hidden_states + self.drop_path(attended)
        return hidden_states + self.drop_path(self.layer_scale2(self.mlp(self.norm2(hidden_states))))


class GeometricViTPreTrainedModel(PreTrainedModel):
    """Base of all models of this library: initialisation of the trunk, and folders that open with the Auto classes."""

    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["ViTEmbeddings", "ViTLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": ViTLayer, "attentions": ViTAttention}
    _input_embed_layer = "patch_embeddings"
    auto_map: ClassVar[dict[str, str]] = {}
    pools_class_token: ClassVar[bool] = False  # whether `pooler_output` is the class token, not the mean patch token

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        for auto_class, place in cls.auto_map.items():
            if place.endswith(f".{cls.__name__}"):
                cls.register_for_auto_class(auto_class)  # saving takes the code along

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Truncated normal for linear layers, class token and positions; PyTorch's own for convolutions."""
        if isinstance(module, nn.Conv2d):
            init_like_torch(module)
        elif isinstance(module, ViTLayerScale):
            init.constant_(module.weight, self.config.layerscale_value)
        elif isinstance(module, ViTEmbeddings):
            init_extra_tokens(module)
            if module.cls_token is not None:
                init.trunc_normal_(module.cls_token, std=self.config.initializer_range)
            init.trunc_normal_(module.position_embeddings, std=self.config.initializer_range)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            init.ones_(module.weight)
            init.zeros_(module.bias)

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As transformers', but the folder names every Auto class that the files beside this class's own can serve.

        transformers copies the file of the class and what that imports, and names this one class. From any class of the
        trunk a folder opens with all of those; only a `...ForPreTraining` model's carries the code of pretraining.
        """
        if self.is_remote_code():
            self.config.update({"auto_map": dict(self.auto_map)})
        super().save_pretrained(save_directory, *args, **kwargs)


def is_part_of(model: nn.Module, module: nn.Module, kind: type[nn.Module]) -> bool:
    """Tells whether a layer lies inside of a module of the given class, for initialisations that depend on its place."""
    return any(part is module for owner in model.modules() if isinstance(owner, kind) for part in owner.modules())


def init_like_torch(module: nn.Linear | nn.Conv2d) -> None:
    """Gives a layer PyTorch's default initialisation, through transformers' functions that respect loaded weights."""
    bound = module.weight[0].numel() ** -0.5  # kaiming uniform with a = sqrt(5)
    init.uniform_(module.weight, -bound, bound)
    if module.bias is not None:
        init.uniform_(module.bias, -bound, bound)


def init_extra_tokens(module: ViTEmbeddings) -> None:
    """Registers almost 0, as DINOv2's, the mask token 0, as iBOT's and DINOv2's."""
    if module.register_tokens is not None:
        init.normal_(module.register_tokens, std=1e-6)
    if module.mask_token is not None:
        init.zeros_(module.mask_token)


class ViTEncoder(GeometricViTPreTrainedModel):
    """The stack of layers, without the final norm."""

    def __init__(self, config: GeometricViTConfig) -> None:
        super().__init__(config)
        last = max(config.num_hidden_layers - 1, 1)
        rates = [config.drop_path_rate * index / last for index in range(config.num_hidden_layers)]
        self.layer = nn.ModuleList([ViTLayer(config, rate) for rate in rates])
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutput:
        """Runs the layers over `hidden_states (batch, tokens, hidden_size)`."""
        for layer in self.layer:
            hidden_states = layer(hidden_states, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)
