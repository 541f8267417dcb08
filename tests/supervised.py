"""A small transformer trained with labels on scenes: what features that know something look like to the protocols."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F

from hf_geossl import GTSAConfig, GTSAModel
from hf_geossl.data import SCENE_CLASSES, SEMANTIC_CLASSES
from hf_geossl.evaluation.encoders import Encoder, load_encoder
from hf_geossl.evaluation.options import EvaluationData
from hf_geossl.evaluation.samples import Samples, load_samples

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
    return Samples(list(scenes), scenes._told, scenes.names, lambda index, row: row, list(range(limit)))


def small_model(seed: int = 0) -> GTSAModel:
    """An untrained trunk of 96 channels and 3 layers for images of 64 pixels in patches of 8."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GTSAModel(
            GTSAConfig(
                hidden_size=96,
                num_hidden_layers=3,
                num_attention_heads=3,
                intermediate_size=192,
                image_size=SIZE,
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
