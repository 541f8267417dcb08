"""
Is the same patch found again, in another crop and in other colours? Measures trunks on test scenes, and draws README's picture.

`python -m benchmarks.same_patch LOCA=FOLDER DINO=FOLDER --picture docs/images/geometry_kept.png` (folders that `AutoModel` opens).
Two crops of a scene share a part; the second has other brightness, contrast, saturation and hue. Each patch of the first whose
centre lies in the second is looked for there, by the cosine of patch features; it is found if the nearest patch lies within
1.1 patches of it.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
from torch.nn import functional as F
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from hf_geossl import load_scenes

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

RESULTS = Path(__file__).parent / "results" / "same_patch.json"
SCENE, CROP, GRID = 96, 48, 6  # pixels, pixels, patches a side
SMALLEST, LARGEST = 56, 80  # sides of crops in pixels of the scene
STRENGTH = 0.6  # of the change of colours
NEAR = 1.1  # patches
EXAMPLES = 6
LOST, GREY, GREEN, RED = 0.71, "#b8b8b8", "#00796b", "#c62828"
Features = Callable[[torch.Tensor], torch.Tensor]  # of crops in [0, 1]: (images, patches, channels)


def recolor(crop: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Other brightness, contrast, saturation and hue."""
    for change in (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation):
        crop = change(crop, 1 + rng.uniform(-STRENGTH, STRENGTH))
    return TF.adjust_hue(crop, rng.uniform(-STRENGTH / 2, STRENGTH / 2))


def centres(box: tuple[int, int, int]) -> torch.Tensor:
    """Centres of a crop's patches in pixels of the scene, `(patches, 2)`, x and y."""
    left, top, side = box
    steps = (torch.arange(GRID) + 0.5) / GRID * side
    y, x = torch.meshgrid(top + steps, left + steps, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=-1)


class Pairs:
    """Two crops of each scene, and how far apart their patches lie.

    Args:
        count (`int`): Of the first test scenes.
    """

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(0)
        first, second, distances, self.boxes, self.scenes = [], [], [], [], list(load_scenes("test", SCENE, count))
        for scene in self.scenes:
            pixels = torch.from_numpy(np.array(scene["image"])).permute(2, 0, 1).float() / 255
            sides = rng.integers(SMALLEST, LARGEST, 2)
            boxes = [(*(int(rng.integers(0, SCENE - side + 1)) for _ in "xy"), int(side)) for side in sides]
            crops = [TF.resized_crop(pixels, top, left, side, side, [CROP, CROP]) for left, top, side in boxes]
            first.append(crops[0])
            second.append(recolor(crops[1], rng))
            self.boxes.append(boxes)
            apart = torch.cdist(centres(boxes[0]), centres(boxes[1]))
            distances.append(apart / (boxes[1][2] / GRID))  # in patches of the second crop
        self.first, self.second, self.distances = torch.stack(first), torch.stack(second), torch.stack(distances)

    @property
    def shared(self) -> torch.Tensor:
        """Which patches of the first crop lie in the second, `(scenes, patches)`."""
        return self.distances.min(dim=-1).values < LOST

    def nearest(self, features: Features) -> torch.Tensor:
        """The patch of the second crop that is most like each of the first, `(scenes, patches)`."""
        first, second = (F.normalize(features(crops), dim=-1) for crops in (self.first, self.second))
        return (first @ second.transpose(1, 2)).argmax(dim=-1)

    def found(self, nearest: torch.Tensor) -> torch.Tensor:
        """Which of the patches are found, `(scenes, patches)`."""
        return (self.distances.gather(-1, nearest[..., None])[..., 0] < NEAR) & self.shared

    def share(self, found: torch.Tensor) -> list[float]:
        """The share of patches found with its 95 % interval; scenes are resampled."""
        rng, hits, all_ = np.random.default_rng(0), found.sum(dim=1).numpy(), self.shared.sum(dim=1).numpy()
        draws = rng.integers(0, len(hits), (1000, len(hits)))
        low, high = np.quantile(hits[draws].sum(1) / all_[draws].sum(1), (0.025, 0.975))
        return [float(hits.sum() / all_.sum()), float(low), float(high)]


def trunk_features(model: Any, mean: list[float], std: list[float]) -> Features:
    """Patch tokens of the last layer."""
    offset, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))

    @torch.no_grad()
    def features(crops: torch.Tensor) -> torch.Tensor:
        parts = ((crops - offset) / scale).split(64)
        return torch.cat([model(part).last_hidden_state[:, -(GRID**2) :] for part in parts])

    return features


def open_trunk(folder: str, *, random: bool = False) -> Features:
    """A folder's trunk, or random weights of its architecture."""
    torch.manual_seed(0)
    if random:
        model = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    else:
        model = AutoModel.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    return trunk_features(model.eval(), processor.image_mean, processor.image_std)


def pixels(crops: torch.Tensor) -> torch.Tensor:
    """The pixels of each patch, halved."""
    small = F.avg_pool2d(crops, 2)
    side = small.shape[-1] // GRID
    return F.unfold(small, side, stride=side).transpose(1, 2)


def patch_of_a_thing(pairs: Pairs, index: int) -> int | None:
    """The patch of the first crop that holds most of the scene's largest thing; None if it does not lie in the second."""
    scene = pairs.scenes[index]
    thing = max(scene["objects"], key=lambda one: one["area"], default=None)
    if thing is None:
        return None
    left, top, side = pairs.boxes[index][0]
    mask = torch.from_numpy((np.array(scene["instance"]) == thing["id"]).astype(np.float32))[None]
    held = F.adaptive_avg_pool2d(TF.resized_crop(mask, top, left, side, side, [CROP, CROP]), GRID).flatten()
    patch = int(held.argmax())
    return patch if held[patch] > 0.5 and pairs.shared[index, patch] else None


def draw(pairs: Pairs, nearest: dict[str, torch.Tensor], shares: dict[str, list[float]], path: Path) -> None:
    """Draws the first scenes of whose largest thing both crops hold a patch, and what was measured of all scenes."""
    figure = plt.figure(figsize=(13.5, 4.6))
    crops, bars = figure.subfigures(1, 2, width_ratios=[3.1, 1])
    axes = crops.subplots(
        2, EXAMPLES, gridspec_kw={"left": 0.005, "right": 0.98, "top": 0.93, "bottom": 0.0, "wspace": 0.04}
    )
    places = [(index, patch_of_a_thing(pairs, index)) for index in range(len(pairs.scenes))]
    for column, (index, patch) in enumerate([one for one in places if one[1] is not None][:EXAMPLES]):
        for axis, seen in zip(axes[:, column], (pairs.first, pairs.second), strict=True):
            axis.imshow(seen[index].permute(1, 2, 0).clamp(0, 1), interpolation="bicubic")
            axis.set_axis_off()
        frame(axes[0, column], patch, "white", "-")
        for name, color, style in reversed(list(zip(nearest, (GREEN, RED), ("-", "--"), strict=False))):
            frame(axes[1, column], int(nearest[name][index, patch]), color, style, 0.0 if style == "-" else 1.5)
    first, second = list(nearest)[:2]
    crops.text(0.005, 0.94, "A patch of a thing", fontsize=13, weight="bold")
    crops.text(0.005, 0.465, "Found in another crop, in other colours", fontsize=13, weight="bold")
    crops.text(0.43, 0.465, f"by {first} (green) and {second} (red, dashed)", fontsize=13)
    axis = bars.subplots(gridspec_kw={"left": 0.36, "right": 0.95, "top": 0.9, "bottom": 0.1})
    values = [100 * share[0] for share in shares.values()]
    errors = [[100 * abs(share[0] - share[side]) for share in shares.values()] for side in (1, 2)]
    axis.barh(list(shares), values, xerr=errors, color=[GREEN, RED, *[GREY] * (len(shares) - 2)], height=0.6)
    for place, (value, error) in enumerate(zip(values, errors[1], strict=True)):
        axis.text(value + error, place, f" {value:.0f}", va="center", fontsize=12)
    axis.set_title("Patches found, %", loc="left", fontsize=13, weight="bold")
    axis.set_xlim(0, 1.2 * max(values))
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100, metadata={"Software": ""})


def frame(axis: Any, patch: int, color: str, style: str, outside: float = 0.0) -> None:
    """A frame around a patch, some pixels outside of it, on a dark line, so that it is seen on any ground."""
    row, column = divmod(patch, GRID)
    x, y, side = column * CROP / GRID - 0.5 - outside, row * CROP / GRID - 0.5 - outside, CROP / GRID + 2 * outside
    for line, width, dashes in (("black", 4.5, "-"), (color, 2.5, style)):
        axis.add_patch(Rectangle((x, y), side, side, fill=False, color=line, linewidth=width, linestyle=dashes))


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trunks", nargs="+", metavar="NAME=FOLDER", help="The first two are drawn.")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    folders = dict(word.split("=", 1) for word in args.trunks)
    trunks = {name: open_trunk(folder) for name, folder in folders.items()}
    trunks |= {"random weights": open_trunk(next(iter(folders.values())), random=True), "pixels": pixels}
    pairs = Pairs(args.scenes)
    nearest = {name: pairs.nearest(features) for name, features in trunks.items()}
    shares = {name: pairs.share(pairs.found(places)) for name, places in nearest.items()}
    guessed = (pairs.distances < NEAR).float().mean(dim=-1)[pairs.shared].mean().item()
    shares["guessing"] = [guessed] * 3
    RESULTS.write_text(json.dumps({"scenes": args.scenes, "found": shares}, indent=1) + "\n")
    print("\n".join(f"{name}: {100 * share[0]:.1f} %" for name, share in shares.items()))
    if args.picture:
        draw(pairs, nearest, shares, args.picture)


if __name__ == "__main__":
    main()
