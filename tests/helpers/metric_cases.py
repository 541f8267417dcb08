"""Inputs of every metric: scores, maps, objects, people and videos that are partly right."""

from typing import Any

import numpy as np

IMAGES = 12


def random_objects(
    generator: np.random.Generator, size: int, truth: list[Any] | None = None
) -> list[dict[str, np.ndarray]]:
    """Rectangles, also as masks; predictions are the truth pushed about, and some that are made up."""
    images = []
    for image in range(IMAGES):
        count = int(generator.integers(0, 5))
        corners = generator.integers(0, size - 12, size=(count, 2)).astype(float)
        boxes = np.concatenate([corners, corners + generator.integers(4, 12, size=(count, 2))], axis=1)
        labels = generator.integers(0, 4, size=count)
        if truth is not None:
            known = truth[image]["boxes"]
            boxes = np.concatenate([np.clip(known + generator.integers(-2, 3, size=known.shape), 0, size), boxes])
            boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
            labels = np.concatenate([truth[image]["labels"], labels])
        masks = np.zeros((len(boxes), size, size), dtype=bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
            mask[y1:y2, x1:x2] = True
            mask[y1, x1] = False
        fields = {"boxes": boxes, "labels": labels, "masks": masks}
        if truth is None:
            fields["iscrowd"] = (generator.random(count) < 0.2).astype(int)
        else:
            fields["scores"] = generator.random(len(boxes)).round(2)  # with ties
        images.append(fields)
    return images


def random_people(generator: np.random.Generator) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    found, truth = [], []
    for _ in range(IMAGES):
        count = int(generator.integers(0, 4))
        points = generator.uniform(0, 60, size=(count, 1, 2)) + generator.uniform(0, 60, size=(count, 5, 2))
        flags = generator.integers(0, 3, size=(count, 5, 1))
        flags[:, 0] = 2
        boxes = np.concatenate([points.min(axis=1), np.ptp(points, axis=1)], axis=1)
        truth.append(
            {
                "keypoints": np.concatenate([points, flags], axis=-1),
                "area": boxes[:, 2] * boxes[:, 3] * 0.5,
                "boxes": boxes,
                "iscrowd": (generator.random(count) < 0.15).astype(int),
            }
        )
        extra = int(generator.integers(0, 3))
        guess = np.concatenate(
            [points + generator.normal(0, 2.5, points.shape), generator.uniform(0, 99, (extra, 5, 2))]
        )
        found.append({"keypoints": guess, "scores": generator.random(count + extra).round(2)})
    return found, truth


def random_videos(generator: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
    found, truth = [], []
    for video in range(3):
        reference = np.zeros((5, 40 + 8 * video, 64), dtype=np.uint8)
        prediction = np.zeros_like(reference)
        for frame in range(5):
            for index in range(1, video + 2):
                x, y = generator.integers(2, 25, size=2)
                reference[frame, y : y + 10, x : x + 12] = index
                prediction[frame, y : y + 9, x + 2 : x + 15] = index
        reference[:, :3] = 255
        found.append(prediction)
        truth.append(reference)
    return found, truth


def _cases() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """For each metric: its arguments, and one call's inputs."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 7, size=(IMAGES, 9, 11))
    truth = np.where(generator.random(labels.shape) < 0.5, labels, generator.integers(0, 6, size=labels.shape))
    truth[generator.random(labels.shape) < 0.1] = 255
    depth = generator.uniform(-1, 14, size=(IMAGES, 6, 8))
    depth[0, 0, :3] = np.nan, np.inf, 0
    depth[3] = 0
    guess = np.abs(np.nan_to_num(depth, posinf=3)) * generator.uniform(0.6, 1.6, size=depth.shape)
    boxes = random_objects(generator, 40)
    keypoints, people = random_people(generator)
    videos, true_videos = random_videos(generator)
    joints = generator.uniform(0, 100, size=(IMAGES, 5, 2))
    targets = generator.normal(3, [1, 5], size=(IMAGES, 2))
    several = {"num_classes": 7}
    range_ = {"minimum": 0.1, "cap": 10.0}
    return {
        "accuracy": (
            several,
            {"predictions": generator.normal(size=(IMAGES, 7)), "references": generator.integers(0, 6, size=IMAGES)},
        ),
        "coco_average_precision": (
            {"kinds": ("box", "mask")},
            {"predictions": random_objects(generator, 40, boxes), "references": boxes},
        ),
        "corner_error": (
            {},
            {"predictions": generator.normal(size=(IMAGES, 4, 2)), "references": generator.normal(size=(IMAGES, 4, 2))},
        ),
        "depth_errors": (
            range_,
            {"predictions": guess, "references": depth, "valid": generator.random(depth.shape) < 0.8},
        ),
        "j_and_f": ({}, {"predictions": videos, "references": true_videos}),
        "keypoint_average_precision": (
            {"sigmas": (0.05, 0.1, 0.03, 0.08, 0.1)},
            {"predictions": keypoints, "references": people},
        ),
        "mean_iou": (several, {"predictions": labels, "references": truth}),
        "multilabel_average_precision": (
            {"num_classes": 4},
            {
                "predictions": generator.normal(size=(IMAGES, 4)),
                "references": generator.random((IMAGES, 4)) < [0.3, 0.6, 0.4, 0],
            },
        ),
        "pckh": (
            {},
            {
                "predictions": joints + generator.normal(0, 5, size=joints.shape),
                "references": joints,
                "head_sizes": generator.uniform(5, 20, size=IMAGES),
                "visible": generator.random(joints.shape[:2]) < [0.8, 0.8, 0.8, 0.8, 0],
            },
        ),
        "r2": ({}, {"predictions": targets + generator.normal(size=targets.shape), "references": targets}),
    }


CASES = _cases()
