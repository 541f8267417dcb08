"""A small transformer trained with labels on scenes: what features that know something look like to the protocols."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hf_geossl import GTSAConfig, GTSAModel, LOCAForPreTraining
from hf_geossl.data import SCENE_CLASSES, SEMANTIC_CLASSES, THING_CLASSES
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import TaskResult, load_protocol
from hf_geossl.evaluation.protocols import homography
from hf_geossl.evaluation.protocols.transformations import SampledTransform, center_crop, larger_size, target_ranges
from hf_geossl.evaluation.samples import Samples, load_samples
from tests.helpers.loca_run import small_config, small_views

SIZE, PATCH = 64, 8


@dataclass(frozen=True)
class RenderedData(EvaluationData):
    """Scenes that are rendered once a session, whoever measures on them."""

    size: int = SIZE
    limit: int | None = 300

    def samples(self, split: str, *, size: int | None = None, mode: str = "scene") -> Samples:
        return rendered(split, size or self.size, self.limit or 300, mode)


@lru_cache(maxsize=8)
def rendered(split: str, size: int, limit: int, mode: str) -> Samples:
    scenes = load_samples("scenes", split, size=size, limit=limit, mode=mode)
    return Samples(list(scenes), scenes.description, scenes.names, lambda index, row: row, list(range(limit)))


@dataclass(frozen=True)
class TurnedData(RenderedData):
    """Scenes that are turned by 0 to 3 quarters, each by its place: its things stand at four angles."""

    def samples(self, split: str, *, size: int | None = None, mode: str = "scene") -> Samples:
        scenes, rows = super().samples(split, size=size, mode=mode), []
        for row in scenes:
            boxes = row["boxes"]
            turns = int(np.random.default_rng([row["index"], *split.encode()]).integers(4))
            for _ in range(turns):  # x, y -> y, size - x
                boxes = torch.stack([boxes[:, 1], scenes.size - boxes[:, 2], boxes[:, 3], scenes.size - boxes[:, 0]], 1)
            image = row["image"].rot90(turns, (-2, -1))
            rows.append({**row, "image": image, "boxes": boxes, "angles": row["angles"] + turns * math.pi / 2})
        return Samples(rows, {**scenes.description, "turned": True}, scenes.names, scenes.read, list(range(len(rows))))


@dataclass(frozen=True)
class SingleThings(RenderedData):
    """Images of one large thing."""

    def samples(self, split: str, *, size: int | None = None, mode: str = "object") -> Samples:
        return super().samples(split, size=size, mode="object")


def small_model(seed: int = 0, size: int = SIZE) -> GTSAModel:
    """An untrained trunk of 96 channels and 3 layers for images in patches of 8 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GTSAModel(
            GTSAConfig(
                hidden_size=96,
                num_hidden_layers=3,
                num_attention_heads=3,
                intermediate_size=192,
                image_size=size,
                patch_size=PATCH,
                drop_path_rate=0.0,
            )
        )


def supervised_encoder(
    seed: int = 0, *, images: int = 2048, steps: int = 400, batch_size: int = 32, learning_rate: float = 2e-3
) -> Encoder:
    """
    Trains `small_model(seed)` on scene labels, and on classes and depth of patches; the same numbers every time.

    Args:
        seed (`int`): Of weights and batches.
        images, steps, batch_size, learning_rate: The recipe; images are mirrored at random.

    Returns:
        `Encoder`: In eval mode.
    """
    model = small_model(seed).train()
    batch = next(load_samples("scenes", "train", size=SIZE, limit=images).batches(images))
    encoder = load_encoder(model)
    pixels, labels = encoder.normalize(batch["image"]), batch["label"]
    classes = F.one_hot(batch["semantic"].long(), len(SEMANTIC_CLASSES)).permute(0, 3, 1, 2).float()
    classes = F.avg_pool2d(classes, PATCH)  # (N, classes, 8, 8): each patch's shares
    depths = F.avg_pool2d(batch["depth"].log()[:, None], PATCH)  # (N, 1, 8, 8)
    depths = (depths - depths.mean()) / depths.std()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        image_head, patch_head = nn.Linear(2 * 96, len(SCENE_CLASSES)), nn.Linear(96, len(SEMANTIC_CLASSES) + 1)
        parameters = [*model.parameters(), *image_head.parameters(), *patch_head.parameters()]
        optimizer = torch.optim.AdamW(parameters, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
        for _ in range(steps):
            chosen = torch.randint(images, (batch_size,))
            x, y, z = pixels[chosen], classes[chosen], depths[chosen]
            if torch.rand(()) < 0.5:
                x, y, z = x.flip(-1), y.flip(-1), z.flip(-1)
            tokens = model(x).last_hidden_state
            both = torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)
            patches = patch_head(tokens[:, 1:]).transpose(1, 2).unflatten(2, (SIZE // PATCH, SIZE // PATCH))
            loss = F.cross_entropy(image_head(both), labels[chosen])
            loss = loss + F.cross_entropy(patches[:, :-1], y) + F.mse_loss(patches[:, -1:], z)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
    return load_encoder(model)


def train_with_labels(
    model: nn.Module, heads: nn.Module, compute_loss: Callable[[], torch.Tensor], steps: int, learning_rate: float
) -> None:
    """AdamW at one cycle of the learning rate."""
    parameters = [*(p for p in model.parameters() if p.requires_grad), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        loss = compute_loss()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()


def both_tokens(tokens: torch.Tensor) -> torch.Tensor:
    """The class token and the mean patch token side by side."""
    return torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)


def turned_encoder(seed: int = 0, *, size: int = 32, images: int = 1024, steps: int = 600) -> Encoder:
    """Trains `small_model(seed, size)` to tell quarter turns of scenes, from the image's tokens and from each patch's."""
    model = small_model(seed, size).train()
    encoder = load_encoder(model)
    upright = encoder.normalize(next(RenderedData(size=size, limit=images).train.batches(images))["image"])
    turned = torch.stack([upright.rot90(turns, (-2, -1)) for turns in range(4)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = nn.ModuleList([nn.Linear(2 * 96, 4), nn.Linear(96, 4)])

        def compute_loss() -> torch.Tensor:
            turns = torch.randint(4, (32,))
            pixels = turned[turns, torch.randint(images, (32,))]
            if torch.rand(()) < 0.5:
                pixels, turns = pixels.flip(-1), -turns % 4
            tokens = model(pixels).last_hidden_state
            of_patches = heads[1](tokens[:, 1:]).transpose(1, 2)
            expected = turns[:, None].expand(-1, of_patches.shape[2])
            return F.cross_entropy(heads[0](both_tokens(tokens)), turns) + F.cross_entropy(of_patches, expected)

        train_with_labels(model, heads, compute_loss, steps, 2e-3)
    return load_encoder(model)


def naming_encoder(seed: int = 0, *, size: int = 32, images: int = 1024, steps: int = 400) -> Encoder:
    """Trains `small_model(seed, size)` to name the one thing in an image, and what each patch shows."""
    model, num_classes = small_model(seed, size).train(), len(SEMANTIC_CLASSES)
    encoder = load_encoder(model)
    batch = next(SingleThings(size=size, limit=images).train.batches(images))
    pixels = encoder.normalize(batch["image"])
    shares = F.avg_pool2d(F.one_hot(batch["semantic"].long(), num_classes).permute(0, 3, 1, 2).float(), PATCH)
    stuff = num_classes - len(THING_CLASSES)
    names = shares[:, stuff:].mean(dim=(2, 3)).argmax(dim=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = nn.ModuleList([nn.Linear(2 * 96, len(THING_CLASSES)), nn.Linear(96, num_classes)])

        def compute_loss() -> torch.Tensor:
            chosen = torch.randint(images, (32,))
            x, y = pixels[chosen], shares[chosen]
            if torch.rand(()) < 0.5:
                x, y = x.flip(-1), y.flip(-1)
            tokens = model(x).last_hidden_state
            of_patches = heads[1](tokens[:, 1:]).transpose(1, 2).unflatten(2, y.shape[2:])
            return F.cross_entropy(heads[0](both_tokens(tokens)), names[chosen]) + F.cross_entropy(of_patches, y)

        train_with_labels(model, heads, compute_loss, steps, 2e-3)
    return load_encoder(model)


def comparing_encoder(seed: int = 0, *, size: int = 32, images: int = 256, steps: int = 300) -> Encoder:
    """Trains `small_model(seed, size)` so that a linear map of an image's and the changed image's tokens tells the change of
    colours or the blur."""
    model = small_model(seed, size).train()
    encoder = load_encoder(model)
    whole = next(RenderedData(size=larger_size(size), limit=images).samples("train", mode="topdown").batches(images))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = nn.ModuleDict({"color": nn.Linear(4 * 96, 4), "blur": nn.Linear(4 * 96, 1)})
        repeats = iter(range(1000, 1000 + steps))  # other draws than the protocol's

        def compute_loss() -> torch.Tensor:
            index, repeat = torch.randint(images, (16,)), next(repeats)
            batch = {"image": whole["image"][index], "index": index}
            views, targets = [center_crop(batch["image"], size).float() / 255], []
            for name in heads:
                done = SampledTransform(name, size, "zeros", seed, "train", repeat).transform(encoder.device)
                changed, further = done.apply(batch)
                low, high = torch.tensor(list(target_ranges(name, size).values())).T
                views.append(changed)
                targets.append((2 * further["target"] - low - high) / (high - low))
            before, *after = both_tokens(model(encoder.normalize(torch.cat(views))).last_hidden_state).chunk(3)
            told = [head(torch.cat([before, one], 1)) for head, one in zip(heads.values(), after, strict=True)]
            return sum((F.mse_loss(*pair) for pair in zip(told, targets, strict=True)), torch.zeros(()))

        train_with_labels(model, heads, compute_loss, steps, 2e-3)
    return load_encoder(model)


def matching_encoder(start: Encoder, seed: int = 0, *, images: int = 300, steps: int = 300) -> Encoder:
    """Trains a copy of a trunk, with a head that is thrown away, on the homography protocol's own pairs."""
    pixels = next(RenderedData(limit=images).train.batches(images))["image"].numpy()
    settings = homography.HomographySettings(steps=steps, batch_size=32, learning_rate=1e-3, tuned=True)
    options = EvaluationOptions(seed=1000 + seed, cache_dir=None, progress=False)
    batches = homography.drawn_rows(pixels, settings.batch_size, options.seed)
    trunk, _ = homography.train_homography(start, batches, homography.patch_side(SIZE, PATCH), options, settings)
    return load_encoder(trunk.module)


def locating_model(seed: int = 0) -> LOCAForPreTraining:
    """An untrained LOCA model for references of 32 pixels in patches of 8."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LOCAForPreTraining(small_config(hidden_size=64, num_attention_heads=4, drop_path_rate=0.0)).eval()


def locating_encoder(seed: int = 0, *, images: int = 128, steps: int = 400) -> Encoder:
    """Trains `locating_model(seed)` on LOCA's location loss alone, with its views of scenes."""
    model, views = locating_model(seed).train(), small_views(num_focal=0)
    scenes = next(RenderedData(size=40, limit=images).train.batches(images))["image"].permute(0, 2, 3, 1).numpy()
    generator, draw = torch.Generator().manual_seed(seed), np.random.default_rng(seed)

    def compute_loss() -> torch.Tensor:
        chosen, seeds = draw.integers(images, size=16), draw.integers(2**31, size=16)
        crops = [views.views(scenes[row], seed=int(number)) for row, number in zip(chosen, seeds, strict=True)]
        batch = views.augment(views.collate(crops), generator)
        logits = model.predict_positions.__wrapped__(  # with gradients
            model, batch["reference_pixel_values"], batch["random_query_pixel_values"]
        )
        return F.cross_entropy(logits.transpose(1, 2), batch["random_query_positions"], ignore_index=-1)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        train_with_labels(model, nn.ModuleList(), compute_loss, steps, 3e-3)
    return load_encoder(model)


def measure_quietly(name: str, encoder: Encoder, data: EvaluationData, **settings: Any) -> TaskResult:
    """The result of a task without intervals and cache, printed for whoever reads a failure."""
    protocol = load_protocol(name)
    options = EvaluationOptions(bootstrap=0, cache_dir=None, progress=False)
    result = protocol.measure(encoder, data, options, protocol.settings(**settings))
    print(name, result.metrics, result.details.get("floors"))
    return result
