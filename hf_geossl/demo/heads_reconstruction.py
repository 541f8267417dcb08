"""What decoders reconstruct (EquiCoherent's task): a picture, transformed by a share of a path that a person chooses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hf_geossl.demo.channel_picture import Picture
from hf_geossl.demo.loading import DemoModel
from hf_geossl.modeling.image_format import ImageFormat
from hf_geossl.views.transformation_path import TransformationParameters, TransformationPath

_MIDDLE = 0.8  # of each side: the other crop of a picture


def why_not_shown(model: DemoModel) -> str | None:
    """Why a model with heads reconstructs nothing; None where it has decoders."""
    if model.whole.reconstruction is not None:
        return None
    return (
        "This model was pretrained without decoders (its host's loss alone), so there is no tab with reconstructions."
    )


# field of TransformationParameters, index in it, name with unit, limits (the path's), factor from the control to the field
Control = tuple[str, int | None, str, float, float, float]


def path_of(model: DemoModel) -> TransformationPath:
    """The path that the model's decoders reconstruct, with the ranges of the paper; they are not in the configuration."""
    config = model.config
    name = getattr(config, "transformation", None) or config.reconstruction
    return TransformationPath(name, config.num_intermediate)


def path_controls(path: TransformationPath, image_format: ImageFormat | None = None) -> list[Control]:
    """What a person can choose about the end of a path; of channels that are no colours, of all of them alike."""

    def percent(field: str, index: int | None, name: str, largest: float) -> Control:
        return field, index, name, -100 * largest, 100 * largest, 0.01

    turn: list[Control] = [
        ("angles", None, "Turn, degrees clockwise", -path.max_rotation, path.max_rotation, math.pi / 180)
    ]
    shift = [
        percent("translations", 0, "Shift to the right, % of the side", path.max_translation),
        percent("translations", 1, "Shift down, % of the side", path.max_translation),
    ]
    color = [
        percent("brightness", None, "Brightness, % more or less", path.path_brightness),
        percent("contrast", None, "Contrast, % more or less", path.path_contrast),
        percent("saturation", None, "Saturation, % more or less", path.path_saturation),
        percent("hue", None, "Hue, % of the colour circle", path.path_hue),
    ]
    if image_format is not None and not image_format.is_rgb:
        low, high = -path.path_brightness, path.path_brightness
        color = [
            ("brightness", None, "Brightness of every channel, deviations more or less", low, high, 1.0),
            percent("contrast", None, "Contrast of every channel, % more or less", path.path_contrast),
        ]
    blur: list[Control] = [
        ("blur_sigma", None, "Blur, sigma in pixels of the model's input", *path.path_blur_sigma, 1.0)
    ]
    controls = {None: [], "se2": turn + shift, "rotation": turn, "translation": shift, "color": color, "blur": blur}
    return controls[path.transformation]


def path_parameters(
    path: TransformationPath, values: Sequence[float], image_format: ImageFormat | None = None
) -> TransformationParameters:
    """The end of one image's path by a value for each of `path_controls`, brought into its range where it lies outside."""
    zero = {name: torch.zeros(1) for name in ("angles", "brightness", "contrast", "saturation", "hue", "blur_sigma")}
    zero |= {"translations": torch.zeros(1, 2), "transformed": torch.ones(1, dtype=torch.bool)}
    if image_format is not None and not image_format.is_rgb:  # of each channel, brightness in units
        deviations = torch.tensor([image_format.std])
        zero |= {"brightness": torch.zeros_like(deviations), "contrast": torch.zeros_like(deviations)}
    parameters = TransformationParameters(**zero)
    for (name, index, _, low, high, factor), value in zip(path_controls(path, image_format), values, strict=True):
        number = min(max(float(value), low), high) * factor
        getattr(parameters, name)[0 if index is None else (0, index)] = number
    if parameters.brightness.dim() == 2:
        parameters.brightness.mul_(deviations)
    return parameters


@dataclass
class PathPoint:
    """A point of the path of a transformation.

    Images are `(channels, height, width)` in units, 0 to 1; errors are mean squares of normalised pixels, as in the loss.
    """

    first: torch.Tensor  # v1, another crop of the picture
    source: torch.Tensor  # u, where the path begins
    final: torch.Tensor  # v2, where it ends
    true: torch.Tensor  # the image at this point
    reconstructed: torch.Tensor | None = None  # what the decoder makes of v1 and v2, where there is one
    error: float | None = None  # of the reconstruction
    # of the mean of the sample pictures at this point; without samples of a plain image of the channels' means
    mean_image_error: float | None = None


@torch.no_grad()
def path_point(
    model: DemoModel, picture: Picture, samples: Sequence[Picture], values: Sequence[float], point: int
) -> PathPoint:
    """Renders a point of the path of a picture and reconstructs it from the two views.

    The middle of the picture is the first view, the mean of the samples the baseline; `values` are the end of the path,
    see `path_parameters`, and the point goes from 0 (u) to K + 1 (v2).
    """
    path, whole, image_format = path_of(model), model.whole, model.image_format
    clip = image_format is None or image_format.is_uint8
    parameters = path_parameters(path, values, image_format)
    share = point / (path.num_intermediate + 1)

    def at(images: torch.Tensor, share: float) -> torch.Tensor:
        repeated = {name: value.expand(len(images), *value.shape[1:]) for name, value in vars(parameters).items()}
        return path.apply(images, TransformationParameters(**repeated), share, clip)

    left, top = (round(side * (1 - _MIDDLE) / 2) for side in picture.size)
    middle = picture.crop((left, top, picture.width - left, picture.height - top))
    first, source = model.unit_images([middle]), model.unit_images([picture])
    true, final = at(source, share), at(source, 1.0)
    decoder = point - 1  # of point k; the last one, where there is one, reconstructs v2
    if not 0 <= decoder < len(whole.reconstruction.decoders):
        return PathPoint(first[0], source[0], final[0], true[0])
    trunk = whole.base_model
    patches = trunk.patch_tokens(trunk(model.normalize(torch.cat([first, final]))))  # (2, N, D)
    features = whole.equivariant(patches) if hasattr(whole, "equivariant") else patches
    shape = (1, len(whole.reconstruction.decoders), *source.shape[1:])
    found = whole.reconstruction(features[:1], features[1:], source.new_zeros(shape), model.grid())[1][0, decoder]
    target = model.normalize(true)[0]
    mean_image = torch.zeros_like(target)
    if samples:
        mean_image = model.normalize(at(model.unit_images(samples), share)).mean(dim=0)
    std, mean = (found.new_tensor(numbers)[:, None, None] for numbers in (model.std, model.mean))
    error, mean_image_error = ((image - target).square().mean().item() for image in (found, mean_image))
    reconstructed = found * std + mean
    if clip:
        reconstructed = reconstructed.clamp(0, 1)
    return PathPoint(first[0], source[0], final[0], true[0], reconstructed, error, mean_image_error)
