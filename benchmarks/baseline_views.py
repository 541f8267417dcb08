"""The views of the three methods written plainly: one image and one view at a time, with Pillow and torchvision's v1 transforms.

This is what `benchmarks.views` measures against; nothing else uses it.
"""

import io
import random
from collections.abc import Sequence

import torch
from PIL import Image, ImageFilter
from torchvision import transforms

Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the source image, x2 and y2 exclusive
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ASPECT_RATIO = (3 / 4, 4 / 3)


def decode(content: bytes) -> Image.Image:
    """Decodes a file to RGB."""
    return Image.open(io.BytesIO(content)).convert("RGB")


def draw_crop(image: Image.Image, scale: tuple[float, float]) -> Box:
    """Draws a crop by torchvision's `RandomResizedCrop`, `scale` in shares of the image's area."""
    y, x, h, w = transforms.RandomResizedCrop.get_params(image, list(scale), list(ASPECT_RATIO))
    return x, y, x + w, y + h


def cut(image: Image.Image, box: Box, size: int) -> Image.Image:
    """Cuts a box out and resizes it to a square."""
    return transforms.functional.resized_crop(
        image, box[1], box[0], box[3] - box[1], box[2] - box[0], [size, size], transforms.InterpolationMode.BILINEAR
    )


class RandomBlur:
    """Pillow's blur with a probability, sigma uniform in 0.1 to 2 pixels."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() >= self.probability:
            return image
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


def color(jitter: tuple[float, float, float, float], blur: float, solarize: float = 0.0) -> transforms.Compose:
    """Colour jitter in 80 %, grey in 20 %, blur and solarisation as given, on Pillow images."""
    steps = [
        transforms.RandomApply([transforms.ColorJitter(*jitter)], p=0.8),
        transforms.RandomGrayscale(p=0.2),
        RandomBlur(blur),
    ]
    if solarize:
        steps.append(transforms.RandomSolarize(128, p=solarize))
    return transforms.Compose(steps)


NORMALIZE = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


class GTSABaseline:
    """GTSA's views: 2 x 224 and 8 x 96, overlapping by rejection, one colour recipe, turned by a random quarter."""

    def __init__(self) -> None:
        self.color = color((0.8, 0.8, 0.8, 0.2), blur=0.2)

    def draw_boxes(self, image: Image.Image) -> list[Box]:
        """Ten boxes, globals first; each local overlaps both globals, the globals each other."""
        hundredth = int(0.01 * image.width * image.height)

        def overlap(a: Box, b: Box) -> int:
            return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))

        boxes = [draw_crop(image, (0.3, 1.0))]
        while len(boxes) < 2:
            box = draw_crop(image, (0.3, 1.0))
            if overlap(box, boxes[0]) > 2 * hundredth:
                boxes.append(box)
        while len(boxes) < 10:
            box = draw_crop(image, (0.1, 0.3))
            if overlap(box, boxes[0]) > hundredth and overlap(box, boxes[1]) > hundredth:
                boxes.append(box)
        return boxes

    def cut_views(self, image: Image.Image, boxes: Sequence[Box]) -> list[Image.Image]:
        """The crops, 224 pixels wide for the first two, then 96."""
        return [cut(image, box, 224 if view < 2 else 96) for view, box in enumerate(boxes)]

    def __call__(self, content: bytes) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The views of one encoded image: `(2, 3, 224, 224)`, `(8, 3, 96, 96)`, boxes and quarter turns."""
        image = decode(content)
        boxes = self.draw_boxes(image)
        turns = [random.choice([0, 1, 2, 3]) for _ in boxes]
        views = []
        for crop, turn in zip(self.cut_views(image, boxes), turns, strict=True):
            views.append(NORMALIZE(self.color(crop).rotate(90 * turn)))
        return torch.stack(views[:2]), torch.stack(views[2:]), torch.tensor(boxes), torch.tensor(turns)


class LOCABaseline:
    """LOCA's views: reference and random query of 224 pixels, nine focal queries of 96, mirrored in half.

    The colours are torchvision's of the same strength instead of TensorFlow's, whose operations Pillow does not have, and
    the boxes torchvision's. Without antialiasing, as the original.
    """

    def __init__(self) -> None:
        jitter = (0.4, 0.4, 0.2, 0.1)
        self.color, self.query_color = color(jitter, blur=0.0), color(jitter, blur=0.0, solarize=0.2)

    def __call__(self, content: bytes) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The views of one encoded image: `(2, 3, 224, 224)`, `(9, 3, 96, 96)` and boxes."""
        image = decode(content)
        boxes = [draw_crop(image, (0.32, 1.0) if view < 2 else (0.05, 0.32)) for view in range(11)]
        views = []
        for view, box in enumerate(boxes):
            size = 224 if view < 2 else 96
            crop = image.transform((size, size), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)
            if view and random.random() < 0.5:
                crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            views.append(NORMALIZE((self.query_color if view == 1 else self.color)(crop)))
        return torch.stack(views[:2]), torch.stack(views[2:]), torch.tensor(boxes)


class EquiCoherentBaseline:
    """The views of EquiCoherent's default host (iBOT): 2 x 224 and 10 x 96, mirrored in half; no path, no masks."""

    def __init__(self) -> None:
        jitter = (0.4, 0.4, 0.2, 0.1)
        self.colors = [color(jitter, 1.0), color(jitter, 0.1, solarize=0.2)] + [color(jitter, 0.5)] * 10

    def __call__(self, content: bytes) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The views of one encoded image: `(2, 3, 224, 224)`, `(10, 3, 96, 96)` and boxes."""
        image = decode(content)
        boxes = [draw_crop(image, (0.25, 1.0) if view < 2 else (0.05, 0.25)) for view in range(12)]
        views = []
        for view, (box, change) in enumerate(zip(boxes, self.colors, strict=True)):
            crop = cut(image, box, 224 if view < 2 else 96)
            if random.random() < 0.5:
                crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            views.append(NORMALIZE(change(crop)))
        return torch.stack(views[:2]), torch.stack(views[2:]), torch.tensor(boxes)


BASELINES = {"gtsa": GTSABaseline, "loca": LOCABaseline, "equicoherent": EquiCoherentBaseline}
