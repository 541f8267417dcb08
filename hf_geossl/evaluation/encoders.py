"""One way to ask any vision transformer for its tokens: this library's, transformers' or timm's."""

import copy
import hashlib
import inspect
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPreTraining, PreTrainedModel

from hf_geossl.modeling.modeling_vit_heads import ViTTrunkModel
from hf_geossl.views.photometric import IMAGENET_MEAN, IMAGENET_STD

logger = logging.getLogger(__name__)

TIMM = "timm:"  # what a name starts with that timm is asked for


@dataclass(frozen=True)
class Tokens:
    """What an encoder makes of images, after its final norm.

    Args:
        patches (`torch.Tensor` of shape `(batch, rows, columns, width)`): Patch tokens.
        class_token (`torch.Tensor` of shape `(batch, width)`, *optional*): None in a trunk without one.
        pooled (`torch.Tensor` of shape `(batch, width)`): The feature that stands for an image: what the model's method
            says (`pooler_output` of this library's, what timm's classifier would get), else the class token, else the mean of
            the patch tokens.
    """

    patches: torch.Tensor
    class_token: torch.Tensor | None
    pooled: torch.Tensor

    @property
    def mean(self) -> torch.Tensor:
        """The mean of the patch tokens, `(batch, width)`."""
        return self.patches.mean(dim=(1, 2))

    @property
    def both(self) -> torch.Tensor:
        """Class token and mean patch token, `(batch, 2 * width)`; the mean alone in a trunk without a class token."""
        return self.mean if self.class_token is None else torch.cat([self.class_token, self.mean], dim=1)


class Encoder:
    """A vision transformer as the protocols see it. Make one with `load_encoder`.

    Args:
        module (`nn.Module`): The trunk, a transformers model or timm's `VisionTransformer`.
        name (`str`): What reports call it.
        mean, std (three `float`): Normalisation of images in [0, 1].
        image_size (`int`): Side in pixels of the images that it was trained on.

    Attributes:
        width (`int`): Channels of a token.
        patch_size (`int`): Side of a patch in pixels.
        num_layers (`int`): Transformer layers.
        whole (`PreTrainedModel` or `None`): The `...ForPreTraining` model that the trunk is a part of, with its heads.

    Raises:
        TypeError: If the module is no vision transformer that this class can read.
    """

    def __init__(
        self, module: nn.Module, name: str, mean: Sequence[float], std: Sequence[float], image_size: int
    ) -> None:
        self.module, self.name, self.image_size = module, name, image_size
        self.mean, self.std = tuple(mean), tuple(std)
        self.whole: Any = None
        self._hashed: tuple[list[Any], str] | None = None
        self._is_timm = not isinstance(module, PreTrainedModel)
        self.blocks = self._find_blocks()
        self.num_layers = len(self.blocks)
        config: Any = module if self._is_timm else module.config
        self.width = int(config.embed_dim if self._is_timm else config.hidden_size)
        patch_size = config.patch_embed.patch_size if self._is_timm else config.patch_size
        self.patch_size = int(patch_size if isinstance(patch_size, int) else patch_size[0])
        takes = () if self._is_timm else inspect.signature(module.forward).parameters
        self._resamples = "interpolate_pos_encoding" in takes
        self._shuffles = "noise" in takes and hasattr(config, "mask_ratio")  # masked autoencoders
        if self._shuffles:
            config.mask_ratio = 0.0
        self._norm: Any = self._find_norm()

    def _find_blocks(self) -> nn.ModuleList:
        """The list of transformer layers."""
        module: Any = self.module
        if self._is_timm:
            if not hasattr(module, "blocks") or not hasattr(module, "patch_embed"):
                raise TypeError(
                    f"the model must be a vision transformer of timm or transformers, got {type(module).__name__}"
                )
            return module.blocks
        depth = getattr(module.config, "num_hidden_layers", None)
        found = [part for part in module.modules() if isinstance(part, nn.ModuleList) and len(part) == depth]
        if not found or not hasattr(module.config, "patch_size"):
            raise TypeError(
                f"the model must be a plain vision transformer (patches, layers of one width), got {type(module).__name__}"
            )
        return found[0]

    def _find_norm(self) -> Any:
        """The norm after the last layer; timm's models that average tokens have it after the average."""
        for holder in (self.module, getattr(self.module, "vision_model", None)):
            for name in ("norm", "layernorm", "post_layernorm", "fc_norm"):
                part = getattr(holder, name, None)
                if isinstance(part, nn.Module) and not isinstance(part, nn.Identity):
                    return part
        return nn.Identity()

    # ---- what it makes of images ----

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Images `(batch, 3, height, width)`, uint8 or float in [0, 1], as the model wants them; on its device."""
        images = images.to(self.device, non_blocking=True)
        images = images.float().div_(255) if images.dtype == torch.uint8 else images.float()
        mean, std = images.new_tensor(self.mean)[:, None, None], images.new_tensor(self.std)[:, None, None]
        return images.sub(mean).div_(std)

    def tokens(self, pixel_values: torch.Tensor) -> Tokens:
        """The `Tokens` of normalised images `(batch, 3, height, width)`, sides multiples of the patch size."""
        outputs = self._forward(pixel_values)
        last = outputs if self._is_timm else outputs.last_hidden_state
        after_average = getattr(self.module, "fc_norm", None)
        if self._is_timm and after_average is not None and self._norm is after_average:
            last = after_average(last)
        patches, class_token = self._split(last, pixel_values)
        if isinstance(self.module, ViTTrunkModel):
            pooled = outputs.pooler_output
        elif self._is_timm and hasattr(self.module, "forward_head"):
            head: Any = self.module.forward_head
            pooled = head(outputs, pre_logits=True)
        else:
            pooled = patches.mean(dim=(1, 2)) if class_token is None else class_token
        return Tokens(patches, class_token, pooled)

    def hidden_states(self, pixel_values: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """What single layers return, before the final norm.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, 3, height, width)`): Normalised images.
            layers (`Sequence[int]`): Which, from 0; negative from the end.

        Returns:
            `list[torch.Tensor]`: `(batch, tokens, width)` each, prefix tokens first.
        """
        kept: dict[int, torch.Tensor] = {}

        def keep(index: int) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                kept[index] = output[0] if isinstance(output, tuple) else output

            return hook

        indices = [layer % self.num_layers for layer in layers]
        hooks = [self.blocks[index].register_forward_hook(keep(index)) for index in set(indices)]
        try:
            self._forward(pixel_values)
        finally:
            for handle in hooks:
                handle.remove()
        return [kept[index] for index in indices]

    def maps(self, pixel_values: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """The patch tokens of single layers, before the final norm, as maps `(batch, width, rows, columns)`."""
        states = self.hidden_states(pixel_values, layers)
        return [self._split(state, pixel_values)[0].permute(0, 3, 1, 2) for state in states]

    def class_tokens(self, pixel_values: torch.Tensor, last: int) -> torch.Tensor:
        """The class tokens of the last layers after the final norm, side by side: DINO's feature for linear probes.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, 3, height, width)`): Normalised images.
            last (`int`): How many layers.

        Returns:
            `torch.Tensor` of shape `(batch, last * width)`; mean patch tokens where there is no class token.
        """
        features = []
        for state in self.hidden_states(pixel_values, range(-last, 0)):
            patches, class_token = self._split(self._norm(state), pixel_values)
            features.append(patches.mean(dim=(1, 2)) if class_token is None else class_token)
        return torch.cat(features, dim=1)

    def _forward(self, pixel_values: torch.Tensor) -> Any:
        height, width = pixel_values.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            below, patch = max(min(height, width) // self.patch_size, 1) * self.patch_size, self.patch_size
            raise ValueError(
                f"images of {height} x {width} pixels do not divide into {self.name}'s patches of {patch}: "
                f"choose another size, such as {below} or {below + patch}"
            )
        given: dict[str, Any] = {"interpolate_pos_encoding": True} if self._resamples else {}
        if self._shuffles:  # the order of the tokens is that of the noise
            count = height * width // self.patch_size**2
            given["noise"] = torch.arange(count, device=pixel_values.device).expand(len(pixel_values), count)
        try:
            if self._is_timm:
                return self.module.forward_features(pixel_values)  # type: ignore[operator]
            return self.module(pixel_values, **given)
        except (RuntimeError, AssertionError, ValueError) as error:
            if {height, width} == {self.image_size} or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"{self.name} was made for images of {self.image_size} pixels and does not take {height} x {width} "
                f"({' '.join(str(error).split())[:120]}): choose image_size {self.image_size}"
            ) from error

    def _split(self, states: torch.Tensor, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Patch tokens `(B, h, w, D)` and class token `(B, D)` of `states (B, tokens, D)`."""
        rows, columns = (side // self.patch_size for side in pixel_values.shape[-2:])
        prefix = states.shape[1] - rows * columns
        if prefix < 0:
            raise ValueError(
                f"{self.name} returns {states.shape[1]} tokens for images with {rows} x {columns} patches: "
                "this library reads plain vision transformers only"
            )
        patches = states[:, prefix:].unflatten(1, (rows, columns))
        if self._is_timm:  # registers come without a class token, too
            has_class_token = getattr(self.module, "cls_token", None) is not None
        else:
            has_class_token = getattr(self.module.config, "use_class_token", True)
        return patches, states[:, 0] if prefix and has_class_token else None

    # ---- what it is ----

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    @property
    def fingerprint(self) -> str:
        """A hash of weights, architecture and normalisation."""
        state = sorted(self.module.state_dict().items())
        versions = [(name, tensor._version, tensor.data_ptr()) for name, tensor in state]
        if self._hashed is None or self._hashed[0] != versions:
            digest = hashlib.sha256(repr((self._architecture(), self.mean, self.std)).encode())
            for name, tensor in state:
                digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
            self._hashed = versions, digest.hexdigest()
        return self._hashed[1]

    def _architecture(self) -> tuple[Any, ...]:
        """What makes other features of the same weights, such as the number of heads."""
        kind = type(self.module).__name__
        if self._is_timm:
            heads = [getattr(getattr(block, "attn", None), "num_heads", None) for block in self.blocks]
            return kind, str(self.module), heads
        # what training or saving writes there, without effect on features
        told = {
            "_name_or_path",
            "transformers_version",
            "architectures",
            "auto_map",
            "dtype",
            "torch_dtype",
            "use_cache",
        }
        config = self.module.config.to_dict()  # type: ignore[union-attr, operator]
        return kind, sorted((name, str(value)) for name, value in config.items() if name not in told)

    def trainable_copy(self) -> "Encoder":
        """A copy of its own weights in training mode, all of them trainable, for end-to-end training."""
        other = self._with(copy.deepcopy(self.module).requires_grad_(True))
        other.module.train()
        return other

    def random_twin(self, seed: int = 0) -> "Encoder":
        """The same architecture with fresh weights: the floor that features have to beat."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self._is_timm:
                twin: Any = copy.deepcopy(self.module).cpu()
                for part in twin.modules():
                    if hasattr(part, "reset_parameters"):
                        part.reset_parameters()
                if hasattr(twin, "init_weights"):
                    twin.init_weights()
                elif hasattr(twin, "_init_weights"):
                    twin.apply(twin._init_weights)
            else:
                twin = type(self.module)(copy.deepcopy(self.module.config))
        other = self._with(twin.to(self.device).eval().requires_grad_(False))
        other.name = f"{self.name}, random weights"
        return other

    def _with(self, module: nn.Module) -> "Encoder":
        return Encoder(module, self.name, self.mean, self.std, self.image_size)


def load_encoder(
    model: Any,
    *,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> Encoder:
    """Opens a model for evaluation.

    Args:
        model (`str`, `Path`, `PreTrainedModel`, `nn.Module` or `Encoder`): A folder or Hub id that `AutoModel` opens,
            `"timm:NAME"` for timm's pretrained models, or a model. Of a `...ForPreTraining` model the teacher's trunk is
            taken, the student's where there is no teacher. A model given as an object is copied, and left as it is; one of
            transformers has no processor then, and gets ImageNet's normalisation.
        device (`str`, *optional*): Where to; a GPU if there is one.
        trust_remote_code (`bool`): Whether code of the repository may run. This library's models need none.
        revision (`str`, *optional*): Branch, tag or commit of a Hub repository.

    Returns:
        `Encoder`: In eval mode, without gradients.

    Raises:
        ValueError: If there is no such model, or weights are missing in it.
        TypeError: If it is no vision transformer that can be read.
    """
    device = _device(device)
    if isinstance(model, Encoder):
        model.module.to(device).eval().requires_grad_(False)
        return model
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    size = None
    if isinstance(model, nn.Module):
        name = type(model).__name__
        if isinstance(model, PreTrainedModel) and not type(model).__module__.startswith("hf_geossl"):
            logger.warning(
                f"{name} was given as an object: images are normalised with ImageNet's mean and deviation, whatever its "
                "processor says; for others give the folder or Hub id, or an Encoder(module, name, mean, std, image_size)"
            )
        model = copy.deepcopy(model)
    elif str(model).startswith(TIMM):
        name = str(model).removeprefix(TIMM)
        model = _open_timm(name)
    else:
        name = Path(model).resolve().name if Path(model).exists() else str(model)
        model, mean, std = _open_folder(str(model), name, trust_remote_code, revision)
    whole = None
    if hasattr(model, "update_teacher"):  # a model for pretraining
        whole = model.to(device).eval().requires_grad_(False)
        holder = model if model.teacher is None else model.teacher
        model = getattr(holder, model.base_model_prefix)
    cfg = getattr(model, "pretrained_cfg", None)
    if cfg:
        mean, std = cfg.get("mean") or mean, cfg.get("std") or std
        size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    elif isinstance(model, PreTrainedModel):
        size = getattr(model.config, "image_size", None)
    if isinstance(size, (tuple, list)):
        size = size[0]
    if getattr(model, "dynamic_img_size", None) is False and not isinstance(model, PreTrainedModel):
        _let_timm_resize(model)
    model.to(device).eval().requires_grad_(False)
    encoder = Encoder(model, name, mean, std, int(size or 224))
    encoder.whole = whole
    return encoder


def _device(name: str | torch.device | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0][:120]
        raise ValueError(f"the device {str(name)!r} cannot be used here ({why}): choose cpu, cuda or cuda:0") from None
    return device


def _open_timm(name: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"{TIMM}{name} needs timm: pip install 'hf_geossl[timm]'") from error
    if not timm.is_model(re.split(r"[.:/]", name)[0]) and not name.startswith("hf-hub:"):
        raise ValueError(f"timm knows no model {name!r}; timm.list_models('vit*') shows them")
    try:
        return timm.create_model(name, pretrained=True, num_classes=0, dynamic_img_size=True)
    except TypeError:  # has no such argument: images of one size, or no vision transformer at all
        return timm.create_model(name, pretrained=True, num_classes=0)


def _let_timm_resize(model: Any) -> None:
    """Turns what `dynamic_img_size=True` makes of a timm model on in one that was made without: images of any size."""
    from timm.layers.format import Format

    model.dynamic_img_size = True
    model.patch_embed.strict_img_size, model.patch_embed.flatten = False, False
    model.patch_embed.output_fmt = Format.NHWC


def _open_folder(
    path: str, name: str, trust: bool, revision: str | None
) -> tuple[Any, Sequence[float], Sequence[float]]:
    """A model of a folder or of the Hub, and its normalisation."""
    given: dict[str, Any] = {"trust_remote_code": trust, "revision": revision}
    try:
        config = AutoConfig.from_pretrained(path, **given)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} is no model that AutoModel opens: {' '.join(str(error).split())[:300]}") from None
    whole = any(architecture.endswith("ForPreTraining") for architecture in config.architectures or [])
    auto: Any = AutoModelForPreTraining if whole and type(config).__module__.startswith("hf_geossl") else AutoModel
    model, info = auto.from_pretrained(path, output_loading_info=True, dtype=torch.float32, **given)
    missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]
    if missing:
        raise ValueError(
            f"{name} lacks {len(missing)} weights of {type(model).__name__} ({', '.join(sorted(missing)[:3])}, ...): "
            "numbers of random weights would be worth nothing; convert the checkpoint first"
        )
    try:
        processor = AutoImageProcessor.from_pretrained(path, **given)
    except (OSError, ValueError):  # a folder without preprocessor_config.json: the method's own normalisation
        return model, IMAGENET_MEAN, IMAGENET_STD
    factor = getattr(processor, "rescale_factor", None) if getattr(processor, "do_rescale", True) else 1.0
    whole_range = 255 * (factor or 1 / 255)  # what white becomes, from which mean and deviation are taken
    normalizes = getattr(processor, "do_normalize", True) is not False
    mean, std = (processor.image_mean, processor.image_std) if normalizes else ((0.0,) * 3, (1.0,) * 3)
    mean, std = mean or IMAGENET_MEAN, std or IMAGENET_STD
    return model, [value / whole_range for value in mean], [value / whole_range for value in std]


@contextmanager
def mixed_precision(device: torch.device) -> Iterator[None]:
    """bfloat16 autocast on a GPU, float32 elsewhere."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        yield


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """float32 inside of `mixed_precision`: for coordinates and scores, which bfloat16 would round."""
    with torch.autocast(device.type, enabled=False):
        yield
