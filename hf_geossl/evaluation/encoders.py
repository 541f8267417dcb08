"""One way to ask any vision transformer for its tokens: this library's, transformers' or timm's."""

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_geossl.evaluation.trunks import read_trunk
from hf_geossl.modeling.image_format import ImageFormat

Result = TypeVar("Result")


@dataclass(frozen=True)
class Tokens:
    """What an encoder makes of images, after its final norm.

    Args:
        patches (`torch.Tensor` of shape `(batch, rows, columns, width)`): Patch tokens.
        class_token (`torch.Tensor` of shape `(batch, width)`, *optional*): None in a trunk without one.
        pooled (`torch.Tensor` of shape `(batch, width)`): The feature that stands for an image: what the model itself
            defines (`pooler_output` of this library's, what timm's classifier would get), else the class token, else the mean of
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


def unit_images(images: torch.Tensor) -> torch.Tensor:
    """Images as float32 in units: uint8 divided by 255, others as they are (0 to 1 is the value range of their format)."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


class Encoder:
    """A vision transformer of this library, of transformers or of timm: one way to ask it for tokens.

    The protocols of evaluation, the probes of training and the demo use it. Make one with `load_encoder`.

    Args:
        module (`nn.Module`): The trunk, a transformers model or timm's `VisionTransformer`.
        name (`str`): Its name in reports.
        mean, std (three `float`): Normalisation of images in [0, 1], as the model's image processor states it.
        image_size (`int`): Side in pixels of the images that it was trained on; the height of images that are not square.
        pretraining_model (`PreTrainedModel`, *optional*): The `...ForPreTraining` model that the trunk is a part of, with its
            heads.

    Attributes:
        width (`int`): Channels of a token.
        patch_size (`int`): Side of a patch in pixels.
        num_layers (`int`): Transformer layers.
        blocks (`nn.ModuleList`): These layers.

    Raises:
        TypeError: If the module is no vision transformer that this class can read.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int,
        pretraining_model: PreTrainedModel | None = None,
    ) -> None:
        self.module, self.name, self.image_size = module, name, image_size
        self.mean, self.std = tuple(mean), tuple(std)
        self.pretraining_model = pretraining_model
        self._trunk = read_trunk(module)
        self.blocks, self.num_layers = self._trunk.blocks, len(self._trunk.blocks)
        self.width, self.patch_size = self._trunk.width, self._trunk.patch_size
        self._hashed: tuple[list[object], str] | None = None
        self._twins: dict[tuple[int, torch.device], Encoder] = {}

    # ---- the model ----

    @property
    def config(self) -> PreTrainedConfig | None:
        """The model's configuration; None of timm's models, which have none."""
        return self.module.config if isinstance(self.module, PreTrainedModel) else None

    @property
    def image_format(self) -> ImageFormat | None:
        """What the model's images are; None of RGB of 8 bits, which every model takes that does not say otherwise."""
        config = self.config
        described = config.get_image_format() if config is not None and hasattr(config, "get_image_format") else None
        return None if described is None or described.is_rgb8 else described

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    @property
    def has_class_token(self) -> bool:
        """Whether the first token before those of the patches, if there is one, is a class token."""
        return self._trunk.has_class_token

    @property
    def height_width(self) -> tuple[int, int]:
        """Height and width in pixels of the images that it was trained on."""
        size = getattr(self.config, "image_size", self.image_size)
        return (size[0], size[1]) if isinstance(size, (tuple, list)) else (self.image_size, self.image_size)

    @property
    def fingerprint(self) -> str:
        """A hash of weights, architecture and normalisation."""
        state = sorted(self.module.state_dict().items())
        # hashing is slow, so it is done again only where a weight has changed, which its sum shows
        sums = torch.stack([tensor.double().sum() for _, tensor in state]).tolist()
        versions: list[object] = [
            (name, tensor.data_ptr(), total) for (name, tensor), total in zip(state, sums, strict=True)
        ]
        if self._hashed is None or self._hashed[0] != versions:
            digest = hashlib.sha256(repr((self._trunk.architecture, self.mean, self.std)).encode())
            for name, tensor in state:
                digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
            self._hashed = versions, digest.hexdigest()
        return self._hashed[1]

    def describe_architecture(self) -> dict[str, Any]:
        """The configuration, with its `model_type`, that `AutoModel` makes the same architecture of; `TypeError` where none does."""
        return self._trunk.describe()

    def trainable_copy(self) -> "Encoder":
        """A copy with weights of its own, in training mode, all of them trainable, for end-to-end training."""
        return self._with(copy.deepcopy(self.module).requires_grad_(True).train(), self.name)

    def random_twin(self, seed: int = 0) -> "Encoder":
        """The same architecture with fresh weights: the floor that features have to beat. Not to be changed: train a copy."""
        twin = self._twins.get((seed, self.device))
        if twin is None:  # the same one for all tasks: drawing the weights of a large model takes seconds
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                module = self._trunk.fresh_module()
            twin = self._with(module.to(self.device).eval().requires_grad_(False), f"{self.name}, random weights")
            self._twins[seed, self.device] = twin
        return twin

    def _with(self, module: nn.Module, name: str) -> "Encoder":
        return Encoder(module, name, self.mean, self.std, self.image_size)

    # ---- images ----

    def resize(self, pictures: Sequence[Image.Image], size: tuple[int, int] | None = None) -> torch.Tensor:
        """Scales pictures to one size.

        Args:
            pictures (`Sequence[PIL.Image.Image]`): Of any size and mode.
            size (`(int, int)`, *optional*): Height and width in pixels; those that the model was trained at by default.

        Returns:
            `torch.Tensor` of shape `(pictures, 3, height, width)`, uint8: Bilinear.
        """
        height, width = size or self.height_width
        scaled = [picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR) for picture in pictures]
        return torch.from_numpy(np.stack([np.array(picture) for picture in scaled])).permute(0, 3, 1, 2)

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Normalises images `(..., channels, height, width)`, uint8 or float in units, on the model's device."""
        images = unit_images(images.to(self.device, non_blocking=True))
        mean, std = images.new_tensor(self.mean)[:, None, None], images.new_tensor(self.std)[:, None, None]
        return images.sub(mean).div_(std)

    # ---- tokens ----

    @torch.no_grad()
    def encode(self, pictures: Sequence[Image.Image], size: tuple[int, int] | None = None) -> Tokens:
        """The `Tokens` of pictures, scaled to one size, without gradients.

        Args:
            pictures, size: As of `resize`.
        """
        return self.tokens(self.normalize(self.resize(pictures, size)))

    @torch.no_grad()
    def num_prefix_tokens(self, pixel_values: torch.Tensor) -> int:
        """Tokens that come before those of the patches: class token, registers."""
        last, _ = self._checked(self._trunk.encode, pixel_values)
        patches, _ = self._split(last, pixel_values)
        return last.shape[1] - patches.shape[1] * patches.shape[2]

    def tokens(self, pixel_values: torch.Tensor) -> Tokens:
        """The `Tokens` of normalised images `(batch, 3, height, width)`, sides multiples of the patch size."""
        last, pooled = self._checked(self._trunk.encode, pixel_values)
        patches, class_token = self._split(last, pixel_values)
        if pooled is None:
            pooled = patches.mean(dim=(1, 2)) if class_token is None else class_token
        return Tokens(patches, class_token, pooled)

    @torch.no_grad()
    def last_attention(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The attention of the last layer, without gradients.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, 3, height, width)`): Normalised images.

        Returns:
            `torch.Tensor` of shape `(batch, heads, tokens, tokens)`: Shares with which tokens (rows) attend to tokens
            (columns); the last rows * columns of both are the patches in raster order, what comes before are class token
            and registers.

        Raises:
            TypeError: If the model has an attention of another kind, whose weights cannot be read.
        """
        return self._checked(self._trunk.attention, pixel_values)

    def hidden_states(self, pixel_values: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """What single layers return, before the final norm.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, 3, height, width)`): Normalised images.
            layers (`Sequence[int]`): Which, from 0; negative from the end.

        Returns:
            `list[torch.Tensor]`: `(batch, tokens, width)` each, prefix tokens first.
        """
        states: dict[int, torch.Tensor] = {}

        def store(index: int) -> Callable[[nn.Module, object, torch.Tensor | tuple[torch.Tensor, ...]], None]:
            def hook(module: nn.Module, inputs: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
                states[index] = output[0] if isinstance(output, tuple) else output

            return hook

        indices = [layer % self.num_layers for layer in layers]
        hooks = [self.blocks[index].register_forward_hook(store(index)) for index in set(indices)]
        try:
            self._checked(self._trunk.encode, pixel_values)
        finally:
            for handle in hooks:
                handle.remove()
        return [states[index] for index in indices]

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
            patches, class_token = self._split(self._trunk.norm(state), pixel_values)
            features.append(patches.mean(dim=(1, 2)) if class_token is None else class_token)
        return torch.cat(features, dim=1)

    def _checked(self, run: Callable[[torch.Tensor], Result], pixel_values: torch.Tensor) -> Result:
        """Runs a function of images, and names the size where that is what it fails on."""
        height, width = pixel_values.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            below, patch = max(min(height, width) // self.patch_size, 1) * self.patch_size, self.patch_size
            raise ValueError(
                f"images of {height} x {width} pixels do not divide into {self.name}'s patches of {patch}: "
                f"choose another size, such as {below} or {below + patch}"
            )
        try:
            return run(pixel_values)
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
        return patches, states[:, 0] if prefix and self._trunk.has_class_token else None


@contextmanager
def mixed_precision(device: torch.device) -> Iterator[None]:
    """bfloat16 autocast on a GPU, float32 elsewhere."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        yield
