"""What the heads of a pretraining model say of a picture: its quarter turn, where a box lies, the images on a way."""

import math
from dataclasses import dataclass

import torch
from PIL import Image

from hf_geossl.demo.loading import DemoModel
from hf_geossl.modeling.geometry import query_positions
from hf_geossl.views.transformation_path import TransformationParameters, TransformationPath

_FOCAL, _REFERENCE, _FOCAL_LIMIT = 96, 224, 0.32  # LOCA's sizes, and up to which share of the image queries are focal
_MIDDLE = 0.8  # of each side: the other crop of a picture
_TURNED = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}


def turned(picture: Image.Image, quarter_turns: int) -> Image.Image:
    """A picture turned counter-clockwise."""
    return picture.transpose(_TURNED[quarter_turns % 4]) if quarter_turns % 4 else picture


@torch.no_grad()
def turn_probabilities(model: DemoModel, picture: Image.Image, quarter_turns: int) -> list[float]:
    """What GTSA's rotation head says of a turned picture. It sees the mean of the student's patch tokens.

    Args:
        model (`DemoModel`): With the whole pretraining model.
        picture (`PIL.Image.Image`): The picture, upright.
        quarter_turns (`int`): How often it is turned counter-clockwise before the model sees it.

    Returns:
        `list[float]`: Probabilities of 0, 1, 2 and 3 quarter turns.
    """
    outputs = model.whole.gtsa(model.pixels([turned(picture, quarter_turns)]))
    return model.whole.rotation_head(outputs.pooler_output)[0].softmax(dim=-1).tolist()


@dataclass
class Placement:
    """Where LOCA puts the patches of a box.

    Args:
        box (`tuple[int, int, int, int]`): x1, y1, x2, y2 in pixels of the picture, as it was cut out.
        side (`int`): Patches along a side of the query.
        true, predicted (`list[int]`): For each patch of the query the raster index of a patch of the picture.
        grid (`int`): Patches along a side of the picture.
    """

    box: tuple[int, int, int, int]
    side: int
    true: list[int]
    predicted: list[int]
    grid: int

    @property
    def exact(self) -> float:
        """Share of patches that are put exactly where they are."""
        return sum(map(int.__eq__, self.true, self.predicted)) / len(self.true)

    @property
    def distance(self) -> float:
        """Mean distance between true and predicted places, in patches."""
        return self._distance(list(zip(self.true, self.predicted, strict=True)))

    @property
    def guessed_distance(self) -> float:
        """That of places chosen evenly at random."""
        return self._distance([(a, b) for a in self.true for b in range(self.grid**2)])

    def _distance(self, pairs: list[tuple[int, int]]) -> float:
        return sum(math.dist(divmod(a, self.grid), divmod(b, self.grid)) for a, b in pairs) / len(pairs)

    @property
    def predicted_box(self) -> tuple[float, float, float, float]:
        """Median place of the left, top, right and bottom patches of the query, x1, y1, x2, y2 in patches."""
        places = torch.tensor([divmod(index, self.grid) for index in self.predicted]).view(self.side, self.side, 2)
        rows, columns = places.float().unbind(-1)
        edges = columns[:, 0], rows[0], columns[:, -1] + 1, rows[-1] + 1
        left, top, right, bottom = (edge.quantile(0.5).item() for edge in edges)
        return min(left, right - 1), min(top, bottom - 1), max(left + 1, right), max(top + 1, bottom)


def whole_box(box: tuple[float, float, float, float], side: int, smallest: int) -> tuple[int, int, int, int]:
    """A drawn box in whole pixels, inside of the picture and not too small.

    Args:
        box (`(x1, y1, x2, y2)`): Corners in any order, in shares of the picture's sides.
        side (`int`): Of the picture, in pixels.
        smallest (`int`): Side that the box has at least, in pixels.

    Returns:
        `tuple[int, int, int, int]`: x1, y1, x2, y2 in pixels.
    """

    def along(a: float, b: float) -> tuple[int, int]:
        low, high = (min(max(round(value * side), 0), side) for value in sorted((a, b)))
        if high - low < smallest:
            low = min(max((low + high - smallest) // 2, 0), side - smallest)
            high = low + smallest
        return low, high

    (x1, x2), (y1, y2) = along(box[0], box[2]), along(box[1], box[3])
    return x1, y1, x2, y2


@torch.no_grad()
def place_box(model: DemoModel, picture: Image.Image, box: tuple[float, float, float, float]) -> Placement:
    """Gives LOCA a box of a picture as query and the picture as reference, and asks where the query's patches lie.

    The query is scaled as in training: to a focal query's size up to 32% of the picture's area, to the picture's above.

    Args:
        model (`DemoModel`): With the whole pretraining model.
        picture (`PIL.Image.Image`): Square.
        box (`(x1, y1, x2, y2)`): Corners in any order, in shares of the picture's sides.

    Returns:
        `Placement`: True and predicted places.
    """
    grid, patch = model.grid()[0], model.config.patch_size
    pixels = whole_box(box, picture.width, math.ceil(picture.width / grid))
    area = (pixels[2] - pixels[0]) * (pixels[3] - pixels[1]) / picture.width**2
    side = math.ceil(grid * _FOCAL / _REFERENCE) if area <= _FOCAL_LIMIT else grid
    query = model.pixels([picture.crop(pixels)], (side * patch, side * patch))
    scores = model.whole.predict_positions(model.pixels([picture]), query)
    true = query_positions(
        (0, 0, picture.width, picture.height),
        pixels,
        query_size=side * patch,
        query_grid=side,
        reference_grid=grid,
    )
    return Placement(pixels, side, true.tolist(), scores[0].argmax(dim=-1).tolist(), grid)


# ---- The way of a transformation

# field of TransformationParameters, index, name, unit, factor from the control to the field; limits are the path's
Control = tuple[str, int | None, str, float, float, float]


def path_of(model: DemoModel) -> TransformationPath:
    """The way that the model's decoders reconstruct, with the ranges of the paper; they are not in the configuration."""
    config = model.config
    name = config.transformation if model.method == "equicoherent" else config.reconstruction
    return TransformationPath(name, config.num_intermediate)


def path_controls(path: TransformationPath) -> list[Control]:
    """What a person can choose about the end of a path.

    Args:
        path (`TransformationPath`): The path.

    Returns:
        `list[tuple]`: For each control the field of `TransformationParameters`, its index there (or None), its name with
        unit, smallest and largest value, and what a value is multiplied by to give the field.
    """
    turn: list[Control] = [
        ("angles", None, "Turn, degrees clockwise", -path.max_rotation, path.max_rotation, math.pi / 180)
    ]
    far = 100 * path.max_translation
    shift: list[Control] = [
        ("translations", 0, "Shift to the right, % of the side", -far, far, 0.01),
        ("translations", 1, "Shift down, % of the side", -far, far, 0.01),
    ]
    color: list[Control] = [
        (name, None, f"{name.capitalize()}, % more or less", -100 * strength, 100 * strength, 0.01)
        for name, strength in (
            ("brightness", path.path_brightness),
            ("contrast", path.path_contrast),
            ("saturation", path.path_saturation),
        )
    ]
    color.append(("hue", None, "Hue, % of the colour circle", -100 * path.path_hue, 100 * path.path_hue, 0.01))
    low, high = path.path_blur_sigma
    blur: list[Control] = [("blur_sigma", None, "Blur, sigma in pixels of the model's input", low, high, 1.0)]
    return {"se2": turn + shift, "rotation": turn, "translation": shift, "color": color, "blur": blur}[
        path.transformation
    ]


def path_parameters(path: TransformationPath, values: list[float]) -> TransformationParameters:
    """The end of a path as a person has chosen it.

    Args:
        path (`TransformationPath`): The path.
        values (`list[float]`): One for each of `path_controls`; what lies outside of its range is brought inside.

    Returns:
        `TransformationParameters`: Of one image.
    """
    zero = {name: torch.zeros(1) for name in ("angles", "brightness", "contrast", "saturation", "hue", "blur_sigma")}
    parameters = TransformationParameters(
        **zero, translations=torch.zeros(1, 2), transformed=torch.ones(1, dtype=torch.bool)
    )
    for (name, index, _, low, high, factor), value in zip(path_controls(path), values, strict=True):
        number = min(max(float(value), low), high) * factor
        getattr(parameters, name)[0 if index is None else (0, index)] = number
    return parameters


@dataclass
class PathPoint:
    """A point on the way of a transformation; images are `(3, height, width)` in [0, 1].

    Args:
        first (`torch.Tensor`): v1, another crop of the picture.
        source (`torch.Tensor`): u, where the way begins.
        final (`torch.Tensor`): v2, where it ends.
        true (`torch.Tensor`): The image at this point.
        reconstructed (`torch.Tensor`, *optional*): What the decoder makes of v1 and v2; None where there is no decoder.
        error, mean_image_error (`float`, *optional*): Mean squared error of the reconstruction, and of the mean of the
            sample pictures at this point; of normalised pixels, as in the loss.
    """

    first: torch.Tensor
    source: torch.Tensor
    final: torch.Tensor
    true: torch.Tensor
    reconstructed: torch.Tensor | None = None
    error: float | None = None
    mean_image_error: float | None = None


@torch.no_grad()
def path_point(
    model: DemoModel, picture: Image.Image, samples: list[Image.Image], values: list[float], point: int
) -> PathPoint:
    """Renders a point of the way of a picture and reconstructs it from the two views.

    Args:
        model (`DemoModel`): With the whole pretraining model and its decoders.
        picture (`PIL.Image.Image`): The picture; the middle of it is the first view.
        samples (`list[PIL.Image.Image]`): Whose mean is the baseline.
        values (`list[float]`): The end of the way, see `path_parameters`.
        point (`int`): 0 (u) to K + 1 (v2).

    Returns:
        `PathPoint`: Images and errors.
    """
    path, whole = path_of(model), model.whole
    parameters = path_parameters(path, values)
    share = point / (path.num_intermediate + 1)

    def at(images: torch.Tensor, share: float) -> torch.Tensor:
        repeated = {name: value.expand(len(images), *value.shape[1:]) for name, value in vars(parameters).items()}
        return path.apply(images, TransformationParameters(**repeated), share)

    left, top = (round(side * (1 - _MIDDLE) / 2) for side in picture.size)
    middle = picture.crop((left, top, picture.width - left, picture.height - top))
    first, source = model.unit_images([middle]), model.unit_images([picture])
    true, final = at(source, share), at(source, 1.0)
    decoder = point - 1  # of point k; the last one, where there is one, reconstructs v2
    if not 0 <= decoder < len(whole.reconstruction.decoders):
        return PathPoint(first[0], source[0], final[0], true[0])
    trunk = whole.base_model
    patches = trunk.patch_tokens(trunk(model.normalize(torch.cat([first, final]))))  # (2, N, D)
    features = whole.equivariant(patches) if model.method == "equicoherent" else patches
    shape = (1, len(whole.reconstruction.decoders), *source.shape[1:])
    found = whole.reconstruction(features[:1], features[1:], source.new_zeros(shape), model.grid())[1][0, decoder]
    target = model.normalize(true)[0]
    mean_image = model.normalize(at(model.unit_images(samples), share)).mean(dim=0)
    std, mean = (found.new_tensor(numbers)[:, None, None] for numbers in (model.std, model.mean))
    return PathPoint(
        first[0],
        source[0],
        final[0],
        true[0],
        (found * std + mean).clamp(0, 1),
        (found - target).square().mean().item(),
        (mean_image - target).square().mean().item(),
    )
