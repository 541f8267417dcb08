"""What differs between the vision transformers of transformers (this library's among them) and of timm, behind one interface."""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, PreTrainedModel

from hf_geossl.modeling.modeling_vit_heads import ViTTrunkModel

# configuration entries that training or saving writes, without effect on features
_BOOKKEEPING = frozenset(
    ("_name_or_path", "transformers_version", "architectures", "auto_map", "dtype", "torch_dtype", "use_cache")
)
_NORMS = ("norm", "layernorm", "post_layernorm", "fc_norm")  # the norm after the last layer, as families call it


class Trunk(ABC):
    """A vision transformer: patches, layers of one width, a final norm.

    Args:
        module (`nn.Module`): The model.

    Attributes:
        blocks (`nn.ModuleList`): The transformer layers.
        width (`int`): Channels of a token.
        patch_size (`int`): Side of a patch in pixels.
        norm (`nn.Module`): The norm after the last layer; an identity where there is none.

    Raises:
        TypeError: If the module is no vision transformer that this class can read.
    """

    blocks: nn.ModuleList
    width: int
    patch_size: int

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        holders = (module, getattr(module, "vision_model", None))
        parts = (getattr(holder, name, None) for holder in holders for name in _NORMS)
        norms = (part for part in parts if isinstance(part, nn.Module) and not isinstance(part, nn.Identity))
        self.norm: nn.Module = next(norms, nn.Identity())

    @property
    @abstractmethod
    def has_class_token(self) -> bool:
        """Whether the first prefix token, if there is one, is a class token."""

    @property
    @abstractmethod
    def architecture(self) -> tuple[object, ...]:
        """What makes other features of the same weights, such as the number of heads."""

    @abstractmethod
    def encode(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encodes normalised images.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, 3, height, width)`): Sides are multiples of the patch size.

        Returns:
            `(torch.Tensor, torch.Tensor or None)`: Tokens `(batch, tokens, width)` after the final norm, prefix tokens first;
            and the feature `(batch, width)` that stands for an image, where the model defines one.
        """

    @abstractmethod
    def attention(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The last layer's attention weights `(batch, heads, tokens, tokens)` for normalised images."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The configuration, with its `model_type`, that `AutoModel` makes the same architecture of; `TypeError` where none does."""

    @abstractmethod
    def fresh_module(self) -> nn.Module:
        """The same architecture with fresh weights, drawn from torch's global generator."""

    def shared_weights(self) -> dict[int, torch.Tensor]:
        """For `copy.deepcopy` as its `memo`: the copy of the module, whose settings may be changed, has the very same weights."""
        return {id(tensor): tensor for tensor in (*self.module.parameters(), *self.module.buffers())}


class TransformersTrunk(Trunk):
    """A model of transformers, such as this library's."""

    module: PreTrainedModel

    def __init__(self, module: PreTrainedModel) -> None:
        super().__init__(module)
        config = module.config
        depth = getattr(config, "num_hidden_layers", None)
        lists = [part for part in module.modules() if isinstance(part, nn.ModuleList) and len(part) == depth]
        if not lists or not hasattr(config, "patch_size") or not hasattr(config, "hidden_size"):
            raise TypeError(
                f"the model must be a plain vision transformer (patches, layers of one width), got {type(module).__name__}"
            )
        self.blocks = lists[0]
        self.width, self.patch_size = int(config.hidden_size), _side(config.patch_size)
        parameters = inspect.signature(module.forward).parameters
        self.resamples_positions = "interpolate_pos_encoding" in parameters
        self.hides_patches = "noise" in parameters and hasattr(config, "mask_ratio")  # a masked autoencoder
        if self.hides_patches:
            config.update({"mask_ratio": 0.0})

    @property
    def has_class_token(self) -> bool:
        """See `Trunk`."""
        return getattr(self.module.config, "use_class_token", True)

    @property
    def architecture(self) -> tuple[object, ...]:
        """See `Trunk`."""
        config = self.module.config.to_dict()
        return type(self.module).__name__, sorted(
            (name, str(value)) for name, value in config.items() if name not in _BOOKKEEPING
        )

    def encode(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `Trunk`."""
        outputs = self._run(self.module, pixel_values)
        pooled = outputs.pooler_output if isinstance(self.module, ViTTrunkModel) else None
        return outputs.last_hidden_state, pooled

    def attention(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """See `Trunk`."""
        module: Any = copy.deepcopy(self.module, self.shared_weights())
        module.set_attn_implementation("eager")  # the only one that returns its weights
        weights: list[torch.Tensor] = []

        def keep(part: nn.Module, inputs: object, outputs: object) -> None:
            if isinstance(outputs, tuple) and len(outputs) > 1 and isinstance(outputs[1], torch.Tensor):
                weights.append(outputs[1])

        for part in TransformersTrunk(module).blocks[-1].modules():
            part.register_forward_hook(keep)
        self._run(module, pixel_values)
        if not weights:
            raise TypeError(f"{type(self.module).__name__} has an attention whose weights cannot be read")
        return weights[0]

    def describe(self) -> dict[str, Any]:
        """See `Trunk`."""
        config = self.module.config
        if type(config) not in MODEL_MAPPING or MODEL_MAPPING[type(config)] is not type(self.module):
            raise TypeError(f"AutoModel does not make {type(self.module).__name__} without code of its own")
        described = {name: value for name, value in config.to_diff_dict().items() if name not in _BOOKKEEPING}
        return {**described, "model_type": config.model_type}

    def fresh_module(self) -> nn.Module:
        """See `Trunk`."""
        return type(self.module)(copy.deepcopy(self.module.config))

    def _run(self, module: nn.Module, pixel_values: torch.Tensor) -> Any:
        given: dict[str, Any] = {"interpolate_pos_encoding": True} if self.resamples_positions else {}
        if self.hides_patches:  # the order of the tokens is that of the noise
            count = pixel_values.shape[-2] * pixel_values.shape[-1] // self.patch_size**2
            given["noise"] = torch.arange(count, device=pixel_values.device).expand(len(pixel_values), count)
        return module(pixel_values, **given)


class TimmTrunk(Trunk):
    """A model of timm that is built as its `VisionTransformer` is."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        blocks, embedding = getattr(module, "blocks", None), getattr(module, "patch_embed", None)
        if blocks is None or embedding is None or not hasattr(module, "embed_dim"):
            raise TypeError(
                f"the model must be a vision transformer of timm or transformers, got {type(module).__name__}"
            )
        self.blocks, self.width = blocks, int(module.embed_dim)  # type: ignore[arg-type]
        self.patch_size = _side(embedding.patch_size)
        # of models that average tokens the norm comes after the average
        self.norm_after_pooling = self.norm is getattr(module, "fc_norm", None)

    @property
    def has_class_token(self) -> bool:
        """See `Trunk`."""
        return getattr(self.module, "cls_token", None) is not None  # registers come without one, too

    @property
    def architecture(self) -> tuple[object, ...]:
        """See `Trunk`."""
        heads = [getattr(getattr(block, "attn", None), "num_heads", None) for block in self.blocks]
        return type(self.module).__name__, str(self.module), heads

    def encode(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `Trunk`."""
        last = _method(self.module, "forward_features")(pixel_values)
        pooled = None
        if hasattr(self.module, "forward_head"):
            pooled = _method(self.module, "forward_head")(last, pre_logits=True)
        return self.norm(last) if self.norm_after_pooling else last, pooled

    def attention(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """See `Trunk`."""
        module = copy.deepcopy(self.module, self.shared_weights())
        attention: Any = getattr(TimmTrunk(module).blocks[-1], "attn", None)
        if not hasattr(attention, "fused_attn") or not hasattr(attention, "attn_drop"):
            raise TypeError(f"{type(self.module).__name__} has an attention whose weights cannot be read")
        module.blocks[-1].attn.fused_attn = False  # type: ignore[index, union-attr]
        weights: list[torch.Tensor] = []
        attention.attn_drop.register_forward_pre_hook(lambda part, inputs: weights.append(inputs[0]))
        _method(module, "forward_features")(pixel_values)
        return weights[0]

    def describe(self) -> dict[str, Any]:
        """See `Trunk`; without `model_args`, which a model of timm does not say."""
        cfg: Any = getattr(self.module, "pretrained_cfg", None) or {}
        if not cfg.get("architecture"):
            raise TypeError(f"{type(self.module).__name__} does not say which of timm's architectures it is")
        sizes = {"dynamic_img_size": True} if getattr(self.module, "dynamic_img_size", None) else {}
        return {"model_type": "timm_wrapper", "architecture": cfg["architecture"], "model_args": sizes}

    def fresh_module(self) -> nn.Module:
        """See `Trunk`."""
        module = copy.deepcopy(self.module).cpu()
        for part in module.modules():
            if hasattr(part, "reset_parameters"):
                _method(part, "reset_parameters")()
        if hasattr(module, "init_weights"):
            _method(module, "init_weights")()
        elif hasattr(module, initializer := "_init_weights"):  # of families without the public one, for `apply`
            module.apply(getattr(module, initializer))
        return module


def read_trunk(module: nn.Module) -> Trunk:
    """The interface to a vision transformer; `TypeError` for what is none."""
    return TransformersTrunk(module) if isinstance(module, PreTrainedModel) else TimmTrunk(module)


def _method(module: nn.Module, name: str) -> Callable[..., Any]:
    """A method that not every module has, which the caller has checked."""
    return getattr(module, name)


def _side(size: int | Sequence[int]) -> int:
    return size if isinstance(size, int) else int(size[0])
