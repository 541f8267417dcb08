"""
Does a recipe learn? Pretrains as `geossl pretrain RECIPE ...` does, on scenes that were rendered once, and measures features.

`python -m benchmarks.learning quickstart --seed 0 [--max_steps 100 ...]` (any argument of `geossl pretrain`). Scenes lie in
`--work`. Probes are closed forms, so that they take seconds: 20 nearest neighbours, ridge regression to classes, to classes of
patches and to quarter turns, on validation scenes, measured on test scenes, beside random weights and pixels.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from hf_geossl import load_scenes
from hf_geossl.cli.pretrain import make_training_arguments, open_held_out, resume_from
from hf_geossl.cli.pretrain_arguments import Pretraining, parse_pretrain
from hf_geossl.cli.pretrain_model import make_config, make_views
from hf_geossl.data.scenes.arguments import parse_config_name
from hf_geossl.data.scenes.description import SEMANTIC_CLASSES
from hf_geossl.training.monitors.classifiers import vote

RESULTS = Path(__file__).parent / "results" / "learning"
SCENE_CLASSES, PATCH_CLASSES, TURNS = 8, len(SEMANTIC_CLASSES), 4
DENSE_IMAGES = 1200  # of each split, for patches
THUMBNAIL = 8  # pixels a side
Feature = Callable[
    [torch.Tensor], tuple[torch.Tensor, torch.Tensor]
]  # of images: (images, channels), (images, patches, channels)


class RenderedScenes:
    """Scenes of a split, rendered once into a file."""

    def __init__(self, work: Path, split: str, count: int, config_name: str | None) -> None:
        mode, size = parse_config_name(config_name)
        file = work / f"{mode}-{size}-{split}-{count}.npz"
        if not file.is_file():
            work.mkdir(parents=True, exist_ok=True)
            scenes = list(load_scenes(split, size, count, mode=mode))
            columns = {name: np.stack([np.asarray(scene[name]) for scene in scenes]) for name in ("image", "semantic")}
            part = file.with_suffix(".part.npz")
            np.savez(part, label=np.array([scene["label"] for scene in scenes]), **columns)
            part.replace(file)
        with np.load(file) as stored:
            self.images, self.labels, self.semantic = (stored[name] for name in ("image", "label", "semantic"))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": self.images[index]}

    def pixels(self, size: int) -> torch.Tensor:
        """All images in [0, 1], `(images, 3, size, size)`."""
        images = torch.from_numpy(self.images).permute(0, 3, 1, 2).float() / 255
        return images if images.shape[-1] == size else F.interpolate(images, size=(size, size), mode="area")

    def patch_labels(self, grid: int) -> torch.Tensor:
        """The class in the middle of each patch, `(images, grid * grid)`."""
        middles = ((np.arange(grid) + 0.5) * self.semantic.shape[1] / grid).astype(int)
        return torch.from_numpy(self.semantic[:, middles][:, :, middles].astype(np.int64)).flatten(1)


# ---- Probes ----


def nearest_neighbours(train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor) -> torch.Tensor:
    """The class that 20 neighbours vote for, as in `geossl evaluate`, of each row of `test`."""
    votes = vote(test.numpy(), train.numpy(), labels.numpy(), [20], SCENE_CLASSES, 0.07)[20]
    return torch.from_numpy(votes.argmax(axis=1))


def ridge(train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, classes: int) -> torch.Tensor:
    """The class of the highest score of ridge regression to one-hot labels; its penalty is chosen on the last quarter."""
    mean, deviation = train.mean(dim=0), train.std(dim=0) + 1e-6
    train, test = (F.pad((rows - mean) / deviation, (0, 1), value=1.0) for rows in (train, test))
    targets, known = F.one_hot(labels, classes).float(), len(train) * 3 // 4

    def fit(rows: torch.Tensor, wanted: torch.Tensor, penalty: float) -> torch.Tensor:
        return torch.linalg.solve(rows.T @ rows + penalty * len(rows) * torch.eye(rows.shape[1]), rows.T @ wanted)

    def held_out(penalty: float) -> float:
        scores = train[known:] @ fit(train[:known], targets[:known], penalty)
        return (scores.argmax(dim=1) == labels[known:]).float().mean().item()

    return (test @ fit(train, targets, max((1e-4, 1e-3, 1e-2, 1e-1), key=held_out))).argmax(dim=1)


def accuracy(right: torch.Tensor) -> list[float]:
    """Mean of `right (images, ...)` and the ends of its 95 % interval over images."""
    of_images = right.float().flatten(1).mean(dim=1) if right.ndim > 1 else right.float()
    mean, half = of_images.mean().item(), 1.96 * of_images.std().item() / len(of_images) ** 0.5
    return [mean, mean - half, mean + half]


def mean_iou(predicted: torch.Tensor, truth: torch.Tensor) -> list[float]:
    """Mean IoU over classes of `(images, patches)`, and the ends of its 95 % interval of 200 resamples of the images."""
    cells = truth * PATCH_CLASSES + predicted
    counts = torch.stack([torch.bincount(row, minlength=PATCH_CLASSES**2) for row in cells]).double()

    def of(counted: torch.Tensor) -> float:
        table = counted.view(PATCH_CLASSES, PATCH_CLASSES)
        union = table.sum(dim=0) + table.sum(dim=1) - table.diag()
        return (table.diag() / union)[table.sum(dim=1) > 0].mean().item()

    draws = torch.Generator().manual_seed(0)
    rows = [torch.randint(len(counts), (len(counts),), generator=draws) for _ in range(200)]
    resampled = np.quantile([of(counts[drawn].sum(dim=0)) for drawn in rows], [0.025, 0.975])
    return [of(counts.sum(dim=0)), *map(float, resampled)]


def measure(feature: Feature, train: RenderedScenes, test: RenderedScenes, size: int) -> dict[str, list[float]]:
    """All probes of a kind of features: each a value and the ends of its interval."""
    images, labels = (
        [split.pixels(size) for split in (train, test)],
        [torch.from_numpy(s.labels) for s in (train, test)],
    )
    (pooled, patches), (pooled_test, patches_test) = (feature(split) for split in images)
    grid = round(patches.shape[1] ** 0.5)
    classes, truth = (split.patch_labels(grid)[:DENSE_IMAGES] for split in (train, test))
    dense = [tokens[:DENSE_IMAGES].flatten(0, 1) for tokens in (patches, patches_test)]
    segmented = ridge(dense[0], classes.flatten(), dense[1], PATCH_CLASSES).view_as(truth)
    turned = [
        torch.stack([feature(torch.rot90(split, turns, (2, 3)))[0] for turns in range(TURNS)], dim=1)
        for split in images
    ]
    turns = torch.arange(TURNS).repeat(len(turned[0]))
    found = ridge(turned[0].flatten(0, 1), turns, turned[1].flatten(0, 1), TURNS)
    return {
        "k-NN": accuracy(nearest_neighbours(pooled, labels[0], pooled_test) == labels[1]),
        "linear": accuracy(ridge(pooled, labels[0], pooled_test, SCENE_CLASSES) == labels[1]),
        "segmentation": mean_iou(segmented, truth),
        "turns": accuracy(found.view(-1, TURNS) == torch.arange(TURNS)),
    }


def of_trunk(trunk: Any, mean: torch.Tensor, std: torch.Tensor) -> Feature:
    """Class token (where there is one) beside the mean patch token, and patch tokens, of a trunk."""

    @torch.no_grad()
    def feature(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled, patches = [], []
        for batch in images.split(250):
            outputs = trunk.eval()((batch - mean) / std)
            tokens = trunk.patch_tokens(outputs)
            whole = [tokens.mean(dim=1)]
            if outputs.last_hidden_state.shape[1] > tokens.shape[1]:
                whole.insert(0, outputs.last_hidden_state[:, 0])
            pooled.append(torch.cat(whole, dim=1))
            patches.append(tokens)
        return torch.cat(pooled), torch.cat(patches)

    return feature


def of_pixels(patch: int) -> Feature:
    """A thumbnail, and the pixels of patches."""

    def feature(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        small = F.interpolate(images, size=(THUMBNAIL, THUMBNAIL), mode="area").flatten(1)
        return small, F.unfold(images, patch, stride=patch).transpose(1, 2)

    return feature


# ---- A run ----


def run(given: Pretraining, work: Path, train_images: int, probe_images: int) -> dict[str, Any]:
    """Trains as a recipe says and measures the teacher (the student where there is none) and floors."""
    from transformers import set_seed

    args = make_training_arguments(given)
    resume = resume_from(args)
    set_seed(args.seed)
    images = RenderedScenes(work, "train", train_images, given.data.dataset_config)
    model = given.method.load("pretraining")(make_config(given))
    views = make_views(given, model)
    probes = [RenderedScenes(work, split, probe_images, given.data.dataset_config) for split in ("validation", "test")]
    size, patch = model.config.image_size, model.config.patch_size
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (views.image_format.mean, views.image_format.std))

    def of_model(trunk: Any) -> dict[str, list[float]]:
        return measure(of_trunk(trunk, mean, std), *probes, size)

    initial = {name: weight.clone() for name, weight in model.base_model.state_dict().items()}
    trainer = given.method.load("trainer")(
        model=model, args=args, train_dataset=images, eval_dataset=open_held_out(given.data), views=views
    )
    began, cpu = time.perf_counter(), time.process_time()
    trainer.train(resume_from_checkpoint=resume)
    if trainer.parts.preemption.signal is not None:  # a time limit: the same command goes on
        raise SystemExit(f"stopped at step {trainer.state.global_step}; go on with --resume_from_checkpoint true")
    seconds = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    trained = model.base_model if model.teacher is None else getattr(model.teacher, model.base_model_prefix)
    measured = {"trained": of_model(trained), "pixels": measure(of_pixels(patch), *probes, size)}
    evaluated = {} if trainer.eval_dataset is None else trainer.evaluate()
    logged = [line for line in trainer.state.log_history if "loss" in line]
    trainer.save_model()
    model.base_model.load_state_dict(initial)
    measured["random weights"] = of_model(model.base_model)
    return {
        "steps": trainer.state.global_step,
        "batch": args.global_batch_size,
        **seconds,
        "measured": measured,
        "evaluated": evaluated,
        "log": logged,
    }


def line(name: str, numbers: dict[str, list[float]]) -> str:
    """A row of a table in percent."""
    cells = (f"{100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f})" for value, low, high in numbers.values())
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", help="Of the JSON file in benchmarks/results/learning; none is written without it.")
    parser.add_argument("--work", type=Path, default=Path("runs/learning"), help="Folder of rendered scenes and runs.")
    parser.add_argument("--train_images", type=int, default=12_000)
    parser.add_argument("--probe_images", type=int, default=4000, help="Of each of validation and test.")
    ours, words = parser.parse_known_args()
    given = parse_pretrain([*words, "--output_dir", str(ours.work / (ours.name or "run"))])
    result = run(given, ours.work, ours.train_images, ours.probe_images)
    result = {"arguments": words, **result}
    for name, numbers in result["measured"].items():
        print(line(name, numbers))
    print(result["evaluated"])
    if ours.name:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{ours.name}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
