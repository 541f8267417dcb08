"""What EquiCoherent's decoders make of two views, beside the images that they are to reconstruct, for people."""

import logging
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, ClassVar, cast

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from hf_geossl.data.evaluation_batches import FirstImages
from hf_geossl.data.streams import ImageStream
from hf_geossl.modeling.pretraining_equicoherent import EquiCoherentForPreTraining
from hf_geossl.modeling.teacher_student import TeacherStudentModel, intermediate_targets
from hf_geossl.training.pictures.base import Batch, CropsPicture
from hf_geossl.views.display import Limits, display_limits, to_display
from hf_geossl.views.equicoherent import EquiCoherentViews

logger = logging.getLogger(__name__)

ROWS, IMAGES = 4, 16  # how many images are drawn, and how many are measured
SPACE, LINE, LARGE, SMALL = 8, 22, 18, 16
LARGEST_FILE = 400_000
_SHOWN = 6  # points of the path at most, so that the sheet stays below 1600 pixels
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_TRANSFORMED = {
    "se2": "turned, shifted",
    "rotation": "turned",
    "translation": "shifted",
    "color": "recoloured",
    "blur": "blurred",
}


@dataclass
class ReconstructionRow:
    """One image of the picture.

    Args:
        first, source, final (`torch.Tensor` of shape `(3, side, side)`): uint8; the other view, the image where the path
            begins, and the view at its end.
        true, reconstructed (`torch.Tensor` of shape `(points, 3, side, side)`): uint8; the points of the path, and what
            the decoders make of the two views.
        errors, mean_image_errors (`list[float]`): For each point the mean squared error of the reconstruction, and of
            the mean of the batch's images at this point; of normalised pixels, as in the loss.
    """

    first: torch.Tensor
    source: torch.Tensor
    final: torch.Tensor
    true: torch.Tensor
    reconstructed: torch.Tensor
    errors: list[float]
    mean_image_errors: list[float]


@torch.no_grad()
def find_reconstructions(
    model: EquiCoherentForPreTraining, views: EquiCoherentViews, batch: dict[str, torch.Tensor], seed: int = 0
) -> list[ReconstructionRow]:
    """Renders the paths of a batch and lets the model reconstruct them from its views, without masked patches.

    The batch is what `views.collate` returned, of two images or more; model and centers are left as they are.

    Raises:
        ValueError: If the model reconstructs nothing, or there is one image alone.
    """
    if model.reconstruction is None:
        raise ValueError("the model must reconstruct something, got one without decoders")
    if len(batch["global_crops"]) < 2:
        raise ValueError("there must be two images or more, or their mean is no baseline; got 1")
    device = next(model.parameters()).device
    inputs: dict[str, Any] = views.render_path(
        {name: value.to(device) for name, value in batch.items()}, torch.Generator().manual_seed(seed)
    )
    pairs, source = inputs["global_pixel_values"], inputs["source_pixel_values"]  # (B, 2, C, S, S), (B, C, S, S)
    targets = intermediate_targets(inputs["intermediate_pixel_values"], pairs[:, 1], model.config)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        reconstructed = _reconstruct(model, pairs, targets).float()
    finally:
        for module, training in modes:
            module.train(training)  # parents come before their children
    errors = (reconstructed - targets).square().mean(dim=(2, 3, 4)).tolist()
    mean_image_errors = (targets.mean(dim=0) - targets).square().mean(dim=(2, 3, 4)).tolist()
    std, mean = (source.new_tensor(values)[:, None, None] for values in (views.std, views.mean))
    limits = display_limits(source * std + mean, views.image_format)  # one for all panels of an image

    def shown(images: torch.Tensor) -> torch.Tensor:
        units = images * std + mean
        if limits is None:
            return to_display((units.clamp(0, 1) * 255).round().to(torch.uint8), views.image_format).cpu()
        own = limits if images.ndim == 4 else tuple(limit[:, None] for limit in limits)  # of all points of a path
        return to_display(units, views.image_format, limits=cast(Limits, own)).cpu()

    images = map(shown, (pairs[:, 0], source, pairs[:, 1], targets, reconstructed))
    return [ReconstructionRow(*row) for row in zip(*images, errors, mean_image_errors, strict=True)]


def _reconstruct(model: EquiCoherentForPreTraining, pairs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The reconstructions alone: the hosts' losses wait for other processes, and only the first one draws."""
    images = pairs.flatten(0, 1)  # (B, 2, C, S, S) -> (2B, C, S, S)
    patches = model.equicoherent.patch_tokens(model.equicoherent(images))
    first, second = model.equivariant(patches).unflatten(0, (-1, 2)).unbind(1)
    grid = tuple(side // model.config.patch_size for side in images.shape[-2:])
    assert model.reconstruction is not None
    return model.reconstruction(first, second, targets, grid)[1]


def draw_reconstructions(
    rows: Sequence[ReconstructionRow], num_intermediate: int, transformation: str | None, title: str
) -> Image.Image:
    """Draws each image's way from `u` to the second view over the reconstructions; at most 1600 pixels wide.

    The first four rows are drawn, all are measured. `num_intermediate` points lie between the image and the end; where a
    row holds one more, it is the end.
    """
    large, small = ImageFont.load_default(LARGE), ImageFont.load_default(SMALL)
    points = len(rows[0].errors)
    between = min(num_intermediate, _SHOWN)
    chosen = [round(i * (num_intermediate - 1) / max(between - 1, 1)) for i in range(between)]
    names = [f"{point + 1}/{num_intermediate + 1} of the way" for point in chosen]
    titles = [("view v1", "another crop"), ("image u", "where it begins")]
    titles += [(name, "true") for name in names] + [("view v2", f"u {_TRANSFORMED[str(transformation)]}")]
    columns = chosen + ([num_intermediate] if points > num_intermediate else [])  # under the third panel and on
    side = 160 if len(titles) < 6 else 128
    width = len(titles) * (side + SPACE) + SPACE

    def lines_of(text: str, font: Font) -> list[str]:
        characters = len(text)
        while characters > 8 and max(map(font.getlength, textwrap.wrap(text, characters))) > width - 2 * SPACE:
            characters -= 1
        return textwrap.wrap(text, characters)

    errors = torch.tensor([row.errors for row in rows]).mean().item()
    mean_image_errors = torch.tensor([row.mean_image_errors for row in rows]).mean().item()
    head = [(line, large) for line in lines_of(title, large)]
    measured = f"All {len(rows)} images: error {errors:.2f}, mean image {mean_image_errors:.2f}."
    legend = (
        "The model sees v1 and v2 only, all patches of them; colours are changed as in training. Error: mean squared "
        "difference of normalised pixels, as in the loss. Mean image: the error of showing, instead of the "
        f"reconstruction, the mean of the {len(rows)} true images at this point of the way."
    )
    foot = [(line, large) for line in lines_of(measured, large)] + [(line, small) for line in lines_of(legend, small)]
    top = SPACE + LINE * (len(head) + 2) + SPACE
    step = 2 * (side + SPACE) + 2 * LINE + SPACE
    drawn = rows[:ROWS]
    sheet = Image.new("RGB", (width, top + step * len(drawn) + LINE * len(foot) + SPACE), "white")
    draw = ImageDraw.Draw(sheet)

    def write(lines: Iterable[tuple[str, Font]], x: int, y: int) -> None:
        for index, (line, font) in enumerate(lines):
            draw.text((x, y + index * LINE), line, fill="black", font=font)

    def left(column: int) -> int:
        return SPACE + column * (side + SPACE)

    write(head, SPACE, SPACE)
    for column, (name, what) in enumerate(titles):
        write([(name, large), (what, small)], left(column), SPACE + LINE * len(head) + SPACE // 2)
    for index, row in enumerate(drawn):
        y = top + index * step
        for column, image in enumerate([row.first, row.source, *(row.true[point] for point in chosen), row.final]):
            sheet.paste(_panel(image, side), (left(column), y))
        y += side + SPACE
        labels = ("reconstructed", "from v1 and v2:")
        for line, text in enumerate(labels):
            x = round(left(2) - 2 * SPACE - large.getlength(text))
            draw.text((x, y + side // 2 - LINE + line * LINE), text, fill="black", font=large)
        for column, point in enumerate(columns, start=2):
            sheet.paste(_panel(row.reconstructed[point], side), (left(column), y))
            texts = (f"error {row.errors[point]:.2f}", f"mean image {row.mean_image_errors[point]:.2f}")
            write([(text, small) for text in texts], left(column), y + side + 2)
    write(foot, SPACE, top + step * len(drawn))
    return sheet


def _panel(image: torch.Tensor, side: int) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.BILINEAR)


def within_file_size(picture: Image.Image) -> Image.Image:
    """Reduces an RGB picture to 256 colours, 64 or 16, dithered, where its PNG takes more than 400 kB."""
    reduced = picture
    for colors in (256, 64, 16):
        if _file_size(reduced) <= LARGEST_FILE:
            break
        palette = picture.quantize(colors, method=Image.Quantize.FASTOCTREE)
        reduced = picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    return reduced


def _file_size(picture: Image.Image) -> int:
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.tell()


def reconstruction_picture(
    model: EquiCoherentForPreTraining,
    views: EquiCoherentViews,
    images: Sequence[Image.Image | np.ndarray | torch.Tensor],
    seed: int = 0,
) -> Image.Image:
    """Shows what an EquiCoherent model reconstructs from two views, beside the true intermediate images.

    Args:
        model (`EquiCoherentForPreTraining`): The model, with decoders.
        views (`EquiCoherentViews`): Makes views and path.
        images (`Sequence`): Images as `EquiCoherentViews` takes them, at least two; the first four are drawn, all are
            measured.
        seed (`int`): Of crops, colours and transformations.

    Returns:
        `PIL.Image.Image`: For each image the other view, the image where the path begins, points of the path and its
        end; under the points their reconstructions, with their errors and those of the mean image.

    Raises:
        ValueError: If the model reconstructs nothing, or there is one image alone.
    """
    batch = views.collate([views(image, seed=seed + index) for index, image in enumerate(images)])
    rows = find_reconstructions(model, views, batch, seed)
    return draw_reconstructions(
        rows, views.num_intermediate, views.transformation, "Intermediate images between u and v2, and reconstructed"
    )


class ReconstructionPicture(CropsPicture):
    """What is reconstructed from two views; nothing where the model has no decoders."""

    file: ClassVar[str] = "reconstructions.png"
    name: ClassVar[str] = "reconstructions"
    images: ClassVar[int] = IMAGES

    def store(self, batch: Batch, model: TeacherStudentModel, held_out: ImageStream | FirstImages | None) -> None:
        """Stores crops of two images or more."""
        if not model.config.num_decoders:
            return
        if held_out is None and len(batch["global_crops"]) < 2:
            logger.warning(f"{self.file} is not drawn: it takes two images, and there is one in a batch")
            return
        super().store(batch, model, held_out)

    views: EquiCoherentViews

    def draw(self, model: TeacherStudentModel, step: int) -> Image.Image | None:
        """Draws the picture from the stored crops."""
        stored, config = self.read(), model.config
        if stored is None or not config.num_decoders:
            return None
        batch, images = stored
        if len(batch["global_crops"]) < 2:
            logger.warning(f"{self.file} is not drawn: it takes two images, and one is held out")
            return None
        rows = find_reconstructions(cast(EquiCoherentForPreTraining, model), self.views, batch)
        title = f"Intermediate images between u and v2, reconstructed after {step} steps ({images} images)"
        picture = draw_reconstructions(rows, config.num_intermediate, config.transformation, title)
        return within_file_size(picture)
