"""Labelled images for the instruments of training, read as an evaluation reads them, so that their k-NN is the same number."""

import time
from dataclasses import replace
from itertools import islice

import torch

from hf_geossl.evaluation.options import EvaluationData
from hf_geossl.evaluation.samples import SCENES, Columns, Samples
from hf_geossl.modeling.image_format import ImageFormat
from hf_geossl.training.monitors.instruments import LabelledImages

BATCH = 64  # images read at a time


class OnlineDataset:
    """A few images with classes for `Probes`: what `geossl evaluate --limit` measures of the same splits.

    Args:
        dataset (`str`): As in `load_samples`.
        test_split (`str`, *optional*): Which images are classified; `"validation"`, or `"test"` where there is none.
        train_split (`str`): Which images vote.
        columns (`Columns`, *optional*): Names of the columns.
        config_name, revision (`str`, *optional*): Of a dataset on the Hub; the mode of the scenes.
        image_format (`ImageFormat`, *optional*): What the model's images are; RGB of 8 bits by default.
    """

    def __init__(
        self,
        dataset: str = SCENES,
        test_split: str | None = None,
        train_split: str = "train",
        *,
        columns: Columns | None = None,
        config_name: str | None = None,
        revision: str | None = None,
        image_format: ImageFormat | None = None,
    ) -> None:
        data = EvaluationData(
            dataset,
            train_split=train_split,
            test_split=test_split or "validation",
            columns=columns or Columns(),
            config_name=config_name,
            revision=revision,
            image_format=None if image_format is None or image_format.is_rgb8 else image_format,
        )
        self._data, self._chosen = data, test_split is not None

    def check(self, size: int) -> None:
        """Raises the `ValueError` of a dataset without these splits or labels before anything is trained."""
        for samples in self._splits(1, size):
            samples.require("label")

    def seconds(self, count: int, size: int) -> float:
        """About how long `load` takes, by the second image of a split: the first makes what all need."""
        samples = iter(self._splits(2, size)[1])
        next(samples)
        began = time.perf_counter()
        for _ in islice(samples, 1):
            pass
        return 2 * count * (time.perf_counter() - began)

    def load(self, count: int, size: int) -> LabelledImages:
        """The first `count` images of each split, `size` pixels square; of a folder those that an evaluation takes."""
        train, test = self._splits(count, size)
        (train_images, train_labels), (images, labels) = _read(train), _read(test)
        names = test.names.get("label")
        num_classes = len(names) if names else max(int(train_labels.max()), int(labels.max())) + 1
        return LabelledImages(test.name, train_images, train_labels, images, labels, max(num_classes, 2))

    def _splits(self, count: int, size: int) -> tuple[Samples, Samples]:
        data = replace(self._data, size=size, limit=count)
        try:
            return data.train, data.test
        except ValueError:
            if self._chosen:
                raise
            self._data, self._chosen = replace(self._data, test_split="test"), True
            return self._splits(count, size)


def _read(samples: Samples) -> tuple[torch.Tensor, torch.Tensor]:
    samples.require("label")
    batches = list(samples.batches(BATCH))
    return torch.cat([batch["image"] for batch in batches]), torch.cat([batch["label"] for batch in batches]).long()
