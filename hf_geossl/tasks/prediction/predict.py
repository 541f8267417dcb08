"""Predicts the images of a folder with a model that has a head, and writes files and pictures of what it predicts."""

import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers.utils import ModelOutput

from hf_geossl.data.images import BrokenImageError
from hf_geossl.data.notes import collect_notes, describe_counts
from hf_geossl.data.wording import counted
from hf_geossl.tasks.output_lock import output_lock
from hf_geossl.tasks.prediction.image_results import predict_image
from hf_geossl.tasks.prediction.opened_images import OpenedImage, for_people_who_predict, open_image
from hf_geossl.tasks.prediction.predictors import outputs_of_each, whole_input
from hf_geossl.tasks.prediction.records import Records, find_images, state_of
from hf_geossl.tasks.prediction.settings import PredictionSettings
from hf_geossl.tasks.prediction.summaries import write_summaries
from hf_geossl.tasks.prediction.task_models import Inputs, TaskModel, open_task_model
from hf_geossl.tasks.prediction.tiling import Tiling

_STRONGLY = 4  # times that an image is scaled down, from which a line says so
LOCK = ".predict.lock"
_MOST_PIXELS = 2**22  # of an image that waits for others: larger ones would fill the memory, and are predicted alone
_LOGGED = 10  # broken images that are named one by one


def predict_images(
    model: str | Path | TaskModel,
    images: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    settings: PredictionSettings | None = None,
    *,
    overlays: bool = True,
    overwrite: bool = False,
    device: str | None = None,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> dict[str, Any]:
    """Predicts images with a model that has a head, and writes what it predicts.

    By the kind of the model there are in the folder: `masks/` (class numbers, PNG with a palette, or TIFF of TIFF images),
    `depth/` (float32 TIFF), `boxes.json` (COCO) and `boxes.csv`, or `labels.csv` with probabilities; `overlays/` for people;
    `contact_sheet.png`; `predict.json` with classes and counts. All maps have the size of their images. Of TIFF files parts
    are read and written, so that their size is not bounded by memory, and where they lie on the Earth is copied.

    Args:
        model (`str`, `Path` or [`TaskModel`]): a folder or an id on the Hub of an image classifier, a semantic segmenter, a depth
            estimator or an object detector, with its image processor.
        images (`str`, `Path` or a sequence of such): files, folders or globs.
        output_dir (`str` or `Path`): where files are written; a second call goes on with what is missing.
        settings ([`PredictionSettings`], *optional*): how.
        overlays (`bool`, *optional*): whether pictures are made.
        overwrite (`bool`, *optional*): whether what is there is predicted again.
        device (`str`, *optional*): where to; a GPU if there is one.
        trust_remote_code (`bool`, *optional*): whether code of the model's repository may run.
        say (`Callable`): takes lines for people.

    Returns:
        `dict`: what `predict.json` holds: the model, its classes, how many images were predicted before and now, and which could
        not be used and why.

    Raises:
        ValueError: if there is no such model, the folder holds predictions made otherwise, or another process writes to it.
        FileNotFoundError: if there is no image.
    """
    settings = settings or PredictionSettings()
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a folder: choose another output_dir")
    given = [images] if isinstance(images, str | Path) else images
    found = find_images([str(path) for path in given], folder)
    opened = (
        model
        if isinstance(model, TaskModel)
        else open_task_model(model, device=device, trust_remote_code=trust_remote_code)
    )
    # the number of tiles at a time changes what is predicted by rounding errors, and so the run as a whole
    described = {
        "model": opened.name,
        "weights": opened.fingerprint(),
        **asdict(settings),
        "overlays": overlays,
        "images": [str(Path(path).expanduser().resolve()) for path in given],  # of others, names may be the same
    }
    with output_lock(folder, folder / LOCK):
        records = Records(folder, described, overwrite)
        before = [name for name, path in found.items() if records.is_done(name, path)]
        if before:
            say(f"{counted(len(before), 'image')} of {len(found)} predicted before, left as they are")
        run = _Run(opened, records, settings, overlays, say)
        with tqdm(total=len(found), initial=len(before), unit="img", disable=None) as bar:
            entries = list(found.items())
            # always the same images together, for those beside an image change its last digits: also when a run goes on
            for start in range(0, len(entries), settings.batch_size):
                run.predict(entries[start : start + settings.batch_size], set(before), bar.update)
        run.say_counts()
        summary = write_summaries(opened, records, list(found), described, run.broken)
    if not any(name in records.by_image for name in found):
        name, reason = next(iter(run.broken.items()))
        raise ValueError(f"none of {counted(len(found), 'image')} could be predicted, such as {name}: {reason}")
    return summary


@dataclass
class _Waiting:
    """An image that is opened and will be predicted with others; `inputs` is None of one that is predicted alone."""

    name: str
    state: list[int]
    image: OpenedImage
    tiling: Tiling | None
    inputs: Inputs | None
    notes: set[str]


class _Run:
    """Predicts images, and counts what happened to them."""

    def __init__(
        self,
        model: TaskModel,
        records: Records,
        settings: PredictionSettings,
        overlays: bool,
        say: Callable[[str], None],
    ) -> None:
        self.model, self.records, self.settings, self.overlays, self.say = model, records, settings, overlays, say
        self.broken: dict[str, str] = {}
        self.notes: Counter[str] = Counter()
        self.scaled: list[tuple[int, int]] = []
        self.tiled = self.predicted = 0

    def predict(
        self, entries: Sequence[tuple[str, Path]], before: Collection[str], on_done: Callable[[], object]
    ) -> None:
        """Predicts images, those of one input size together, and writes the files of each, its record last.

        Args:
            entries (`Sequence`): names and files, at most a batch of them; those that cannot be used are counted.
            before (`Collection[str]`): names of those whose files are there: they are only predicted beside others.
            on_done (`Callable`): called after each of the others.
        """
        if all(name in before for name, _ in entries):
            return
        with ExitStack() as opened:
            together: list[_Waiting] = []
            for name, path in entries:
                try:
                    waiting = self._open(name, path, opened)
                except BrokenImageError as error:
                    self._leave_out(name, error)
                    on_done()
                    continue
                together.append(waiting)
                if waiting.inputs is None:
                    self._predict_opened(together, before, on_done)
                    together = []
                    opened.close()  # a large image is not kept beside the next one
            self._predict_opened(together, before, on_done)

    def _open(self, name: str, path: Path, opened: ExitStack) -> _Waiting:
        state = state_of(path)
        with collect_notes() as notes, ExitStack() as own:
            image = own.enter_context(open_image(path, self.model.image_format, self.settings.max_pixels))
            tiling = self.settings.tiling(self.model, image)
            inputs = None
            if tiling is None and image.height * image.width <= _MOST_PIXELS:
                inputs = whole_input(self.model, image)
            opened.enter_context(own.pop_all())
        return _Waiting(name, state, image, tiling, inputs, {note.kind for note in notes})

    def _predict_opened(
        self, together: Sequence[_Waiting], before: Collection[str], on_done: Callable[[], object]
    ) -> None:
        outputs: dict[str, ModelOutput] = {}
        by_shape: dict[tuple[Any, ...], list[_Waiting]] = {}
        for one in together:
            if one.inputs is not None:
                by_shape.setdefault(tuple((key, value.shape) for key, value in one.inputs.items()), []).append(one)
        for alike in by_shape.values():
            made = outputs_of_each(self.model, [one.inputs for one in alike if one.inputs is not None])
            outputs |= {one.name: output for one, output in zip(alike, made, strict=True)}
        for one in together:
            if one.name not in before:
                self._write(one, outputs.get(one.name))
                on_done()

    def _write(self, one: _Waiting, outputs: ModelOutput | None) -> None:
        image, model = one.image, self.model
        try:
            with collect_notes() as notes, for_people_who_predict(model.image_format):
                record = predict_image(
                    model, image, one.tiling, self.settings, one.name, self.records, self.overlays, outputs
                )
        except BrokenImageError as error:
            self._leave_out(one.name, error)
            return
        self.records.add({"image": one.name, "state": one.state, "size": [image.height, image.width], **record})
        self.predicted += 1
        self.notes.update(one.notes | {note.kind for note in notes})
        if one.tiling is not None:
            self.tiled += 1
        elif min(image.height / model.sides[0], image.width / model.sides[1]) >= _STRONGLY:
            self.scaled.append((image.width, image.height))

    def _leave_out(self, name: str, error: BrokenImageError) -> None:
        self.broken[name] = error.reason
        if len(self.broken) <= _LOGGED:
            more = "; the next ones are in predict.json" if len(self.broken) == _LOGGED else ""
            self.say(f"left out {name}: {error.reason}{more}")

    def say_counts(self) -> None:
        """Says what was done to the images."""
        for line in describe_counts(self.notes, self.predicted):
            self.say(line)
        if self.tiled:
            self.say(f"{counted(self.tiled, 'image')} predicted in tiles")
        if self.scaled and self.model.kind != "classification":
            width, height = max(self.scaled, key=lambda size: size[0] * size[1])
            self.say(
                f"{counted(len(self.scaled), 'image')} of up to {width} x {height} pixels scaled to {self.model.sides[1]} x "
                f"{self.model.sides[0]}, as the model's processor does: --tile_size predicts in tiles at a scale of your choice"
            )
        if self.broken:
            total = self.predicted + len(self.broken)
            self.say(f"{len(self.broken)} of {counted(total, 'image')} could not be used")
