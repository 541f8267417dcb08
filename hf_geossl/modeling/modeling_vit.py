"""The vision transformer trunk that all methods share: attention, layer, encoder, and the base of all models."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, ClassVar, Unpack, cast

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils.generic import TransformersKwargs

from .configuration_vit import GeometricViTConfig
from .dense_heads import layers_of_maps
from .positions import Rotation, ViTEmbeddings, rotate


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
        # view, not unflatten, of which the TorchScript exporter of ONNX takes the sizes of the example for fixed
        batch_size, num_tokens, _ = projected.shape
        split = projected.view(batch_size, num_tokens, parts, self.num_attention_heads, self.head_dim)
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
        width, without_key = config.hidden_size, config.qkv_bias and not config.key_bias
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias and config.key_bias)
        self.query_bias = nn.Parameter(torch.zeros(width)) if without_key else None
        self.value_bias = nn.Parameter(torch.zeros(width)) if without_key else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        rotation: Rotation | None = None,
        attentions: list[torch.Tensor] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Maps `(batch, tokens, hidden_size)` to the same shape; also returns `(batch, heads, tokens, tokens)` or None.

        Where a list of `attentions` is given, it gets these weights too.
        """
        projected = self.qkv(hidden_states)
        if self.query_bias is not None and self.value_bias is not None:
            bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
            projected = projected + bias.to(projected.dtype)
        query, key, value = self.split_heads(projected, 3)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        output, weights = self.attend(query, key, value, **kwargs)
        if attentions is not None and weights is not None:
            attentions.append(weights)
        return output, weights


class ViTMLP(nn.Module):
    """Two linear layers with the activation between them, or a gate: `fc1` gives the gate, then what it scales (SwiGLU)."""

    def __init__(self, config: GeometricViTConfig) -> None:
        super().__init__()
        intermediate_size = cast(int, config.intermediate_size)  # the configuration has filled it in
        self.gated = config.gated_mlp
        self.fc1 = nn.Linear(config.hidden_size, intermediate_size * (2 if self.gated else 1))
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, tokens, hidden_size)` to the same shape."""
        hidden = self.fc1(hidden_states)
        if self.gated:
            gate, hidden = hidden.chunk(2, dim=-1)
            return self.fc2(self.activation(gate) * hidden)
        return self.fc2(self.activation(hidden))


class ViTDropPath(nn.Module):
    """Stochastic depth, per sample, scaled by the inverse of the share that stays (arXiv 1603.09382)."""

    def __init__(self, rate: float, others_drop: bool = False) -> None:
        super().__init__()
        self.rate, self.others_drop = rate, others_drop

    def draw(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Draws, in training, what a residual branch is multiplied by, `(batch, 1, 1)`; None where nothing is dropped.

        A layer that drops nothing beside others that do gets ones: so all layers are computed, and compiled, alike.
        """
        if not self.training or not (self.rate or self.others_drop):
            return None
        keep = torch.ones(hidden_states.shape[0], 1, 1, dtype=hidden_states.dtype, device=hidden_states.device)
        return keep.bernoulli_(1 - self.rate).div_(1 - self.rate) if self.rate else keep

    def disable(self) -> None:
        """Drops nothing from now on, in training neither."""
        self.rate, self.others_drop = 0.0, False

    def extra_repr(self) -> str:
        """Shows the rate where the module is printed."""
        return f"rate={self.rate:.3f}"


def drop_samples(branch: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """Multiplies a residual branch `(batch, tokens, hidden_size)` by what `ViTDropPath.draw` gives, in that's dtype.

    Which is the one of what the branch is added to: compiled layers round nothing in between, and eager ones need not.
    """
    return branch if keep is None else branch * keep


class ViTLayerScale(nn.Module):
    """Scales each channel of a residual branch by a learned factor (arXiv 2103.17239)."""

    def __init__(self, config: GeometricViTConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, tokens, hidden_size)` to the same shape."""
        return hidden_states * self.weight


def compute_layer(
    layer: "ViTLayer",
    hidden_states: torch.Tensor,
    keep_attended: torch.Tensor | None,
    keep_mapped: torch.Tensor | None,
    **kwargs: Unpack[TransformersKwargs],
) -> torch.Tensor:
    """Computes a layer, but for what is random in it: `(batch, tokens, hidden_size)` to the same shape.

    A function of the layer, so that one compilation serves all layers, of student and teacher.
    """
    attended = layer.layer_scale1(layer.attention(layer.norm1(hidden_states), **kwargs)[0])
    hidden_states = hidden_states + drop_samples(attended, keep_attended)
    mapped = layer.layer_scale2(layer.mlp(layer.norm2(hidden_states)))
    return hidden_states + drop_samples(mapped, keep_mapped)


class ViTLayer(GradientCheckpointingLayer):
    """A pre-norm transformer layer; `compute_with` puts a compiled `compute_layer` in the place of the plain one."""

    compute: Callable[..., torch.Tensor] = staticmethod(compute_layer)

    def __init__(self, config: GeometricViTConfig, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ViTAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ViTMLP(config)
        scaled = config.layerscale_value is not None
        self.layer_scale1, self.layer_scale2 = (ViTLayerScale(config) if scaled else nn.Identity() for _ in range(2))
        self.drop_path = ViTDropPath(drop_path_rate, others_drop=config.drop_path_rate > 0)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """Maps `(batch, tokens, hidden_size)` to the same shape."""
        keeps = [self.drop_path.draw(hidden_states) for _ in range(2)]  # outside of what is compiled: the same draws
        return self.compute(self, hidden_states, *keeps, **kwargs)

    def compute_with(self, function: Callable[..., torch.Tensor]) -> None:
        """Computes the layer with `function`, of the arguments of `compute_layer`, from now on."""
        self.compute = function


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
        """Truncated normal for linear layers, class token and positions; PyTorch's own for convolutions and batch norms."""
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            init_like_torch(module)
        elif isinstance(module, nn.BatchNorm2d):
            for ones, zeros in ((module.weight, module.bias), (module.running_var, module.running_mean)):
                init.ones_(cast(torch.Tensor, ones))
                init.zeros_(cast(torch.Tensor, zeros))
            init.zeros_(cast(torch.Tensor, module.num_batches_tracked))
        elif isinstance(module, ViTLayerScale):
            init.constant_(module.weight, self.config.layerscale_value)
        elif isinstance(module, ViTEmbeddings):
            init_extra_tokens(module)
            if module.cls_token is not None:
                init.trunc_normal_(module.cls_token, std=self.config.initializer_range)
            if module.position_embeddings is not None:
                init.trunc_normal_(module.position_embeddings, std=self.config.initializer_range)
        elif isinstance(module, ViTAttention):
            for bias in (module.query_bias, module.value_bias):
                if bias is not None:
                    init.zeros_(bias)
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


def init_like_torch(module: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> None:
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

    def forward(  # type: ignore[misc]  # two of the keywords by name
        self,
        hidden_states: torch.Tensor,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        output_attentions: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Runs the layers over tokens.

        What is asked for is collected here: the hooks by which transformers does it are local functions, which no pickle
        holds, and which the first call makes, where torch.compile cannot.

        Args:
            hidden_states (`torch.Tensor` of shape `(batch, tokens, hidden_size)`): The embeddings.
            output_hidden_states (`bool` or numbers, *optional*): Whether the embeddings and what each layer makes of them are
                given too; or those of these numbers alone, with None in the place of others.
            output_attentions (`bool`, *optional*): Whether weights `(batch, heads, tokens, tokens)` of the layers are given
                too; "eager" attention alone has them. Both as the configuration says by default.
        """
        asked = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        with_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        attentions: list[torch.Tensor] = []
        recording = {"attentions": attentions, "output_attentions": True} if with_attentions else {}
        states = [hidden_states]
        for layer in self.layer:
            hidden_states = layer(hidden_states, **recording, **kwargs)
            if asked:
                states.append(hidden_states)
        return BaseModelOutput(
            last_hidden_state=hidden_states,
            hidden_states=select_states(states, asked),  # type: ignore[arg-type]  # None for what is not asked for
            attentions=tuple(attentions) if with_attentions else None,
        )


def select_states(
    states: Sequence[torch.Tensor], asked: bool | int | Sequence[int] | None
) -> tuple[torch.Tensor | None, ...] | None:
    """All hidden states, or those of the numbers asked for with None in the place of others, as transformers gives them."""
    if not asked or asked is True:
        return tuple(states) if asked else None
    count = len(states)
    chosen = {number % count for number in ([asked] if isinstance(asked, int) else asked) if -count <= number < count}
    return tuple(state if number in chosen else None for number, state in enumerate(states))


class PatchTokens:
    """The patch tokens of what a trunk's `forward` returns, as its heads read them; beside `PreTrainedModel`."""

    config: Any
    num_prefix_tokens: Any  # tokens before those of the patches

    def patch_tokens(self, outputs: BaseModelOutputWithPooling) -> torch.Tensor:
        """Picks the patch tokens `(batch, patches, hidden_size)` of what `forward` returned, in raster order."""
        return cast(torch.Tensor, outputs.last_hidden_state)[:, self.num_prefix_tokens :]

    def to_maps(self, tokens: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Patch tokens `(batch, patches, channels)` of images as maps `(batch, channels, rows, columns)`."""
        rows, columns = (side // self.config.patch_size for side in pixel_values.shape[-2:])
        batch_size, _, channels = tokens.shape
        return tokens.transpose(1, 2).view(batch_size, channels, rows, columns)

    def layer_maps(
        self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[Any, list[torch.Tensor]]:
        """What `forward` gives, and the patch tokens of four layers as maps, before the final norm; see `layers_of_maps`."""
        asked = kwargs.pop("output_hidden_states", None) or self.config.output_hidden_states
        outputs = cast(Any, self)(pixel_values, output_hidden_states=True, **kwargs)
        chosen = [outputs.hidden_states[layer + 1] for layer in layers_of_maps(self.config.num_hidden_layers)]
        maps = [self.to_maps(states[:, self.num_prefix_tokens :], pixel_values) for states in chosen]
        return replace(outputs, hidden_states=select_states(outputs.hidden_states, asked)), maps
