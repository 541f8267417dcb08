"""Models with a head, as their folders hold them: what they predict, what their classes are called, and what they take."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from hf_geossl.data.rasters import BrokenImageError
from hf_geossl.evaluation.loading import find_device
from hf_geossl.methods import METHODS, WRAPPER
from hf_geossl.modeling.image_format import ImageFormat

# how the name of a class of transformers ends -> what its models predict
KINDS = {
    "ForImageClassification": "classification",
    "ForSemanticSegmentation": "segmentation",
    "ForDepthEstimation": "depth",
    "ForObjectDetection": "detection",
}
Inputs = dict[str, torch.Tensor]


@contextmanager
def without_load_report() -> Iterator[None]:
    """Leaves out transformers' table of weights that a folder has too many or too few: who opens it says it in a sentence."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


@dataclass
class TaskModel:
    """A model with a head, in eval mode.

    Args:
        module (`PreTrainedModel`): the model.
        kind (`str`): a value of `KINDS`.
        names (`tuple[str, ...]`): of its classes, by number; none of a model of depth.
        processor (`BaseImageProcessor`): the one of its folder.
        image_format ([`ImageFormat`], *optional*): of images that are not RGB of 8 bits.
        name (`str`): of the folder or repository.
    """

    module: PreTrainedModel
    kind: str
    names: tuple[str, ...]
    processor: BaseImageProcessor
    image_format: ImageFormat | None
    name: str

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.module.device

    @property
    def depth_unit(self) -> str:
        """What stands behind a depth: metres of models of this library, and of others that say so."""
        config = self.module.config
        ours = config.model_type in METHODS or config.model_type == WRAPPER
        return " m" if ours or getattr(config, "depth_estimation_type", None) == "metric" else ""

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width in pixels of an image at which the processor leaves its size as it is, or nearly."""
        size: Any = getattr(self.processor, "crop_size", None) if self.center_crops else None
        size = size or getattr(self.processor, "size", None) or {}
        known = {name: size.get(name) for name in ("height", "width", "shortest_edge")} if hasattr(size, "get") else {}
        if known.get("height") and known.get("width"):
            return int(known["height"]), int(known["width"])
        side = int(known.get("shortest_edge") or getattr(self.module.config, "image_size", None) or 512)
        return side, side

    @property
    def center_crops(self) -> bool:
        """Whether the processor cuts the middle out of an image, as it may to classify it."""
        return bool(getattr(self.processor, "do_center_crop", False)) and self.kind == "classification"

    def prepare(self, pixels: np.ndarray) -> Inputs:
        """Makes the input of an image.

        Args:
            pixels (`numpy.ndarray` of shape `(height, width, channels)`): as [`hf_geossl.data.images.decode_pixels`] gives
                it for `image_format`.

        Returns:
            `dict[str, torch.Tensor]`: of a batch of one, on the CPU.

        Raises:
            BrokenImageError: if the processor cannot use it.
        """
        if self.image_format is not None:
            return {"pixel_values": self._of_format(torch.from_numpy(pixels).permute(2, 0, 1), self.image_format)[None]}
        processor: Any = self.processor
        # a map must be that of the image, without what would be cut off or put around it
        unused = {} if self.kind in ("classification", "detection") else {"do_center_crop": False, "do_pad": False}
        given = {name: value for name, value in unused.items() if getattr(processor, name, None)}
        try:
            made = processor(Image.fromarray(pixels), return_tensors="pt", **given)
        except Exception as error:  # of an image 3000 pixels wide and 2 high, which would be 0 high
            size = f"{pixels.shape[1]} x {pixels.shape[0]}"
            raise BrokenImageError(f"the model's processor makes no input of {size} pixels ({_line(error)})") from error
        return {name: value for name, value in made.items() if isinstance(value, torch.Tensor)}

    def _of_format(self, pixels: torch.Tensor, image_format: ImageFormat) -> torch.Tensor:
        """What the processor makes of stored values, from values in units: `(channels, height, width)`."""
        processor: Any = self.processor
        units = pixels.float() / 255 if image_format.is_uint8 else pixels.float()
        units = torch.nan_to_num(units, nan=0.0, posinf=0.0, neginf=0.0)
        if processor.do_resize:
            units = F.interpolate(units[None], self.sides, mode="bilinear", antialias=True, align_corners=False)[0]
        if not processor.do_normalize:
            return units
        mean, std = (units.new_tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
        return (units - mean) / std

    @torch.inference_mode()
    def predict(self, inputs: Sequence[Inputs]) -> Any:
        """Runs the model on inputs of one shape.

        Args:
            inputs (`Sequence[dict]`): of `prepare`.

        Returns:
            `ModelOutput`: of the model for the batch, on its device.
        """
        batch = {name: torch.cat([one[name] for one in inputs]).to(self.device) for name in inputs[0]}
        batch = {
            name: value.to(self.module.dtype) if value.is_floating_point() else value for name, value in batch.items()
        }
        return self.module(**batch)

    def fingerprint(self) -> str:
        """A short hash of the weights, the configuration and the processor."""
        described = json.dumps([self.module.config.to_dict(), self.processor.to_dict()], sort_keys=True, default=str)
        digest = hashlib.sha256(described.encode())
        for name, value in sorted(self.module.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]


def task_of(folder: Path) -> str | None:
    """What the model of a folder predicts, by its config.json alone; None where there is none, or it has no head for a task."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architecture = str(config["architectures"][0])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return next((kind for ending, kind in KINDS.items() if architecture.endswith(ending)), None)


def open_task_model(model: str | Path, *, device: str | None = None, trust_remote_code: bool = False) -> TaskModel:
    """Opens a model with a head.

    Args:
        model (`str` or `Path`): a folder or an id on the Hub.
        device (`str`, *optional*): where to; a GPU if there is one.
        trust_remote_code (`bool`, *optional*): whether code of the repository may run. This library's models need none.

    Raises:
        ValueError: if there is no such model, it has no head for these tasks, weights or its image processor are missing, or it
            takes images of which nothing says what they are.
    """
    path = str(model)
    name = Path(model).resolve().name if Path(model).exists() else path
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} is no model that transformers opens: {_line(error)}") from None
    architecture = (getattr(config, "architectures", None) or ["none"])[0]
    ending = next((ending for ending in KINDS if architecture.endswith(ending)), None)
    if ending is None:
        raise ValueError(
            f"{name} holds {architecture}, which predicts nothing of images that can be written: give a model that ends in "
            f"{', '.join(KINDS)}, such as geossl finetune makes of a trunk"
        )
    auto: Any = getattr(transformers, f"AutoModel{ending}")
    try:
        with without_load_report():
            module, info = auto.from_pretrained(
                path, output_loading_info=True, dtype=torch.float32, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # transformers, safetensors and huggingface_hub raise a dozen kinds
        raise ValueError(f"the model in {name} cannot be opened: {_line(error)}") from error
    wrong = sorted({*map(str, info["missing_keys"]), *map(str, info["mismatched_keys"])})
    if wrong:
        raise ValueError(
            f"{name} lacks {len(wrong)} weights of {architecture} ({', '.join(wrong[:3])}, ...): what random weights predict "
            "means nothing"
        )
    try:
        processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ValueError(
            f"{name} has no image processor that opens ({_line(error)}), so nothing says how its images are scaled and "
            "normalised: save one beside the weights"
        ) from None
    kind = KINDS[ending]
    image_format = _image_format(config, processor, name)
    labels = config.id2label if kind != "depth" else {}
    names = tuple(str(labels.get(index, index)) for index in range(max(labels, default=-1) + 1))
    return TaskModel(
        module.to(find_device(device)).eval().requires_grad_(False), kind, names, processor, image_format, name
    )


def _image_format(config: Any, processor: Any, name: str) -> ImageFormat | None:
    """What the images of a model are; None of RGB of 8 bits."""
    described = getattr(processor, "image_format", None)
    inner = getattr(config, "backbone_config", None) or config
    described = described or getattr(inner, "image_format", None)
    channels = getattr(inner, "num_channels", 3)
    if described:
        image_format = ImageFormat.from_dict(described)
        return None if image_format.is_rgb8 else image_format
    if channels != 3:
        raise ValueError(
            f"{name} takes {channels} channels, and nothing says what they are: give its preprocessor_config.json an image_format "
            "(names, type, value range, mean, deviation of each channel)"
        )
    return None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
