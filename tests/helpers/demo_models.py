"""Small models and pictures for tests of the demo."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_geossl.demo.loading import DemoModel, open_model
from hf_geossl.modeling.image_format import ImageFormat
from hf_geossl.views.photometric import IMAGENET_MEAN, IMAGENET_STD
from tests.helpers.image_files import saved, tiff, values
from tests.helpers.methods import METHODS, randomise

MEAN, STD = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))

# five bands of floating point files, read from the last to the first, and 12 bits of grey in 16
BANDS = ImageFormat(
    channels=(5, 4, 3, 2, 1),
    names=("infrared", "edge", "blue", "green", "red"),
    dtype="float32",
    value_range=((-1.0, 3.0),),
    range_source="given",
    mean=(0.4, 0.5, 0.6, 0.5, 0.4),
    std=(0.3, 0.25, 0.2, 0.3, 0.25),
)
GRAY = ImageFormat("gray", ("gray",), "uint16", ((0.0, 4095.0),), "bits:12", (0.5,), (0.25,))
FORMATS = {"bands": BANDS, "gray": GRAY}


def stored(kind: str, seed: int = 0, side: int = 32) -> np.ndarray:
    """The values of an image of one of FORMATS, `(height, width, channels of the file)`."""
    if kind == "bands":
        return values(side, side, 5, dtype=np.float32, seed=seed) * 4 - 1
    return values(side, side, 1, dtype=np.uint16, seed=seed) // 16


def encoded(kind: str, seed: int = 0, side: int = 32) -> bytes:
    """Its file: a TIFF of 5 channels, or a PNG of 16 bits."""
    pixels = stored(kind, seed, side)
    if kind == "bands":
        return tiff(pixels, photometric="minisblack", planarconfig="contig")
    return saved(pixels[..., 0], "PNG")


def normalized(kind: str, seed: int = 0) -> torch.Tensor:
    """What the model gets of it, `(1, channels, 32, 32)`, computed beside the demo."""
    described, pixels = FORMATS[kind], stored(kind, seed).astype(np.float64)
    (low, high), *_ = described.value_range
    units = (pixels[..., ::-1] - low) / (high - low)
    made = (units - np.array(described.mean)) / np.array(described.std)
    return torch.from_numpy(np.ascontiguousarray(made.transpose(2, 0, 1))).float()[None]


def model_of(method: str, kind: str, folder: Path, **fields: Any) -> DemoModel:
    """A pretraining model of one of FORMATS, opened."""
    described = FORMATS[kind]
    fields |= {"num_channels": described.num_channels, "image_format": described.to_dict()}
    return open_model(save(whole_model(method, **fields), folder))


def noise(seed: int, side: int = 32) -> Image.Image:
    """A picture at the size of the tiny models, so that nothing is resampled."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def pixels(*shown: Image.Image) -> torch.Tensor:
    arrays = [torch.from_numpy(np.array(picture)).permute(2, 0, 1).double() / 255 for picture in shown]
    return ((torch.stack(arrays) - MEAN.double()) / STD.double()).float()


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def whole_model(method: str, seed: int = 0, **fields: Any) -> Any:
    """A pretraining model whose teacher is another than its student."""
    return randomise(METHODS[method].kind("ForPreTraining")(METHODS[method].config(**fields)), seed=seed)


def tokens_of(model: DemoModel, picture: Image.Image) -> torch.Tensor:
    """Patch tokens `(4, 4, 32)` of the published trunk, computed beside the demo."""
    trunk = getattr(model.whole.teacher, model.method)
    with torch.no_grad():
        return trunk(pixels(picture)).last_hidden_state[0, int(trunk.config.use_class_token) :].view(4, 4, -1)


def mark_whole(checkpoint: Path) -> None:
    """Writes the list of files that makes a folder a whole checkpoint."""
    sizes = {path.name: path.stat().st_size for path in checkpoint.iterdir()}
    (checkpoint / "COMPLETE.json").write_text(json.dumps({"world_size": 1, "files": sizes}))


def shown(page: Any, tab: str, *values: Any, place: tuple[float, float] = (0.3, 0.6)) -> str:
    """What a tab shows for the first two samples, as HTML."""
    from hf_geossl.demo.page import Picked

    by_name = {one.name: one for one in page.tabs}
    return "".join(page._show(by_name[tab], Picked(0), Picked(1), False, place, None, *values))


def first_picture(html: str, number: int) -> Image.Image:
    """The picture of a figure of the page."""
    url = re.findall(r'src="data:image/\w+;base64,([^"]+)"', html)[number]
    return Image.open(io.BytesIO(base64.b64decode(url)))
