"""What is written of an image: features in the chosen precision, and a thumbnail."""

from dataclasses import dataclass

import datasets
import numpy as np
import torch

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.features import THUMBNAIL_SIDE
from hf_geossl.tasks.embedding.arguments import EmbeddingArguments

THUMBNAIL = "thumbnail"


@dataclass
class Encoded:
    """A batch of features on their way from the device.

    Args:
        tensors (`dict[str, torch.Tensor]`): By column, on the CPU as soon as `copied` has happened.
        copied (`torch.cuda.Event`, *optional*): None where they are there already.
    """

    tensors: dict[str, torch.Tensor]
    copied: torch.cuda.Event | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """The features as arrays; waits for the device."""
        if self.copied is not None:
            self.copied.synchronize()
        return {name: tensor.numpy() for name, tensor in self.tensors.items()}


def encode(encoder: Encoder, pixel_values: torch.Tensor, arguments: EmbeddingArguments) -> Encoded:
    """Encodes a batch.

    Args:
        encoder (`Encoder`): The model.
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Its input.
        arguments ([`EmbeddingArguments`]): Which features, in which precision.
    """
    pixel_values = pixel_values.to(encoder.device, non_blocking=True)
    tokens = encoder.tokens(pixel_values)
    tensors = {name: getattr(tokens, name) for name in arguments.features}
    if "patches" in tensors:
        tensors["patches"] = tensors["patches"].flatten(1, 2)  # (B, h, w, D) -> (B, h * w, D)
    dtype = getattr(torch, arguments.dtype)
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    if encoder.device.type != "cuda":
        return Encoded({name: tensor.cpu() for name, tensor in tensors.items()})
    copied = torch.cuda.Event()
    host = {name: tensor.to("cpu", non_blocking=True) for name, tensor in tensors.items()}
    copied.record()
    return Encoded(host, copied)


def columns_of(
    encoder: Encoder, input_shape: tuple[int, int, int], arguments: EmbeddingArguments
) -> dict[str, datasets.List | datasets.Value]:
    """The columns that the table has of its own, with their types.

    Args:
        encoder (`Encoder`): The model.
        input_shape (`(int, int, int)`): Channels, height and width of its input.
        arguments ([`EmbeddingArguments`]): Which features.

    Raises:
        ValueError: If the model has no class token and one is asked for, or does not take images of that size.
    """
    with torch.no_grad():
        encoded = encoder.tokens(torch.zeros(1, *input_shape, device=encoder.device))
    if "class_token" in arguments.features and encoded.class_token is None:
        raise ValueError(f"{encoder.name} has no class token: ask for pooled, which is the mean of its patch tokens")
    columns: dict[str, datasets.List | datasets.Value] = {
        "key": datasets.Value("string"),
        "height": datasets.Value("int32"),
        "width": datasets.Value("int32"),
    }
    if arguments.tile is not None:
        columns["box"] = datasets.List(datasets.Value("int32"), length=4)
    for name in arguments.features:
        tensor = getattr(encoded, name)
        kind = datasets.List(datasets.Value(arguments.dtype), length=tensor.shape[-1])
        if name == "patches":
            kind = datasets.List(kind, length=tensor.shape[1] * tensor.shape[2])
        columns[name] = kind
    columns[THUMBNAIL] = datasets.List(datasets.Value("uint8"), length=input_shape[0] * THUMBNAIL_SIDE**2)
    return columns


def row_bytes(columns: dict[str, datasets.List | datasets.Value]) -> int:
    """About how many bytes a row has."""
    return sum(_bytes_of(kind) for kind in columns.values())


def _bytes_of(kind: datasets.List | datasets.Value) -> int:
    if isinstance(kind, datasets.List):
        return kind.length * _bytes_of(kind.feature)
    return {"string": 64, "uint8": 1, "float16": 2}.get(kind.dtype, 4)
