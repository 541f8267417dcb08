"""`finetune`: a trunk and labelled images become a model in a folder, with the number that it reaches."""

import logging
import os
import platform
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, set_seed

from hf_geossl.data.sources.opening import SCENES
from hf_geossl.evaluation.loading import find_device
from hf_geossl.hub.push import Publication, publish
from hf_geossl.hub.repository import check_write_access
from hf_geossl.hub.run_record import installed_versions, is_hub_id, measured_losses, shared_arguments
from hf_geossl.modeling.image_format import ImageFormat
from hf_geossl.tasks.finetuning.arguments import FineTuningArguments
from hf_geossl.tasks.finetuning.examples import Collator
from hf_geossl.tasks.finetuning.folder import describe_folder, save_folder
from hf_geossl.tasks.finetuning.kinds import FineTuningTask, find_task, task_of
from hf_geossl.tasks.finetuning.measuring import Measured, as_result, measure
from hf_geossl.tasks.finetuning.models import Start, open_model
from hf_geossl.tasks.finetuning.settings import HeadSettings
from hf_geossl.tasks.finetuning.splits import LabelledDataset, Split
from hf_geossl.tasks.finetuning.trainer import FineTuningTrainer
from hf_geossl.training.outputs.attempts import attempt

logger = logging.getLogger(__name__)

LARGER = 1.5  # sides of the images that crops are cut out of, in sides of the crops
RANDOM = "random_weights"  # in the folder of the run, while the floor is trained


@dataclass
class FineTuning:
    """A fine-tuning that is ready to run. Make it with `prepare_finetuning`."""

    task: FineTuningTask
    start: Start
    head: HeadSettings
    data: LabelledDataset
    splits: tuple[Split, Split]
    names: tuple[str, ...]
    args: FineTuningArguments
    command: str | None = None
    measured_by: str | None = None
    trainer: FineTuningTrainer = field(init=False)
    publication: Publication | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.trainer = self._trainer(self._build(random=False), self.args)

    def _build(self, *, random: bool) -> PreTrainedModel:
        set_seed(self.args.seed)
        model = self.start.build(self.task, self.names, self.head)
        model = type(model)(model.config) if random else model
        self.task.prepare_head(model, self.splits[0])
        return model

    def _trainer(self, model: PreTrainedModel, args: FineTuningArguments) -> FineTuningTrainer:
        return FineTuningTrainer(model, args, self.task, *self.splits)

    @property
    def folder(self) -> Path:
        """Where the model goes."""
        return Path(str(self.args.output_dir))

    def run(self, resume_from_checkpoint: str | bool | None = None) -> dict[str, Any] | None:
        """Trains, saves the model, and measures what was saved, read anew from its folder.

        Returns:
            `dict` or `None`: What `results.json` holds; None where a signal has stopped the run, or on processes that do
            not save.

        Raises:
            PublishError: Before anything is trained, if the model is to be pushed where the token may not write.
        """
        if self.args.push_to_hub and self.trainer.args.should_save:  # not after hours that the push fails
            check_write_access(self._repository, self.args.hub_token)
        started = time.monotonic()
        self.trainer.train(resume_from_checkpoint)
        seconds = time.monotonic() - started
        if self.trainer.preemption.signal is not None:
            return None
        self.trainer.save_model(str(self.folder / ".trained"))
        if self.trainer.args.should_save:
            trained = open_model(self.folder / ".trained")
            save_folder(trained, self.task, self.folder)
            shutil.rmtree(self.folder / ".trained")
        random = self._train_random() if self.args.random_floor else {}  # by all processes together
        if not self.trainer.args.should_save:
            return None
        measured = self._measure(self.folder, progress=True)
        floors = self.task.floors(measured.metric, *self.splits, measured.rows)
        for name, value in random.items():
            floors.setdefault(name, {})["random_weights"] = value
        content = describe_folder(
            self.folder,
            self.task,
            measured,
            self.splits[1],
            floors,
            self.trainer.state.log_history,
            self._record(seconds),
            shared_arguments(self.trainer.args),
            self.data,
            self.args.per_device_eval_batch_size,
        )
        if self.args.push_to_hub:
            attempt("the push to the Hub", self._push, f"`geossl publish {self.folder} {self._repository}` sends it")
        return content

    @property
    def _repository(self) -> str:
        return self.args.hub_model_id or self.folder.absolute().name

    def _push(self) -> None:
        private, token = bool(self.args.hub_private_repo), self.args.hub_token
        self.publication = publish(self.folder, self._repository, private=private, token=token)

    def _measure(self, folder: Path, *, progress: bool = False) -> Measured:
        model = open_model(folder, self.trainer.args.device)
        size = self.args.per_device_eval_batch_size
        return measure(model, self.task, self.splits[1], self.trainer.collate, size, progress=progress)

    def _train_random(self) -> dict[str, float]:
        """What the same training reaches from random weights; nothing where a signal has stopped it."""
        folder = self.folder / RANDOM
        args = replace(
            self.args,
            output_dir=str(folder),
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            metric_for_best_model=None,
            report_to="none",
            train_layers="all",
            lora_rank=0,
        )
        trainer = self._trainer(self._build(random=True), args)
        trainer.train()
        if trainer.preemption.signal is not None:
            logger.warning("the training of random weights was stopped: the model is not compared with them")
            return {}
        trainer.save_model(str(folder))
        if not args.should_save:
            return {}
        numbers = self._measure(folder).numbers
        shutil.rmtree(folder, ignore_errors=True)
        return numbers

    def _record(self, seconds: float) -> dict[str, Any]:
        args, trainer = self.trainer.args, self.trainer
        device = args.device
        name = self.start.trunk.name
        return {
            "task": self.task.name,
            "data": self.splits[0].name,
            "dataset_id": self.data.dataset if is_hub_id(self.data.dataset) else None,
            "base_model": name if is_hub_id(name) else None,
            "init_from": name,
            "trained_of_trunk": trainer.trained,
            "steps": trainer.state.global_step,
            "images": trainer.state.global_step * args.global_batch_size,
            "seconds": round(seconds, 1),
            "hardware": torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else f"{device.type.upper()}, {os.cpu_count()} cores ({platform.machine()})",
            "global_batch": args.global_batch_size,
            "learning_rate": f"{args.learning_rate:.3g}, times {args.layer_decay:g} a layer down",
            "weight_decay": f"{args.weight_decay:g}",
            "precision": str(trainer.accelerator.mixed_precision).replace("no", "fp32"),
            "seed": args.seed,
            "command": self.command,
            "measured_by": self.measured_by,
            "losses": measured_losses(trainer.state.log_history, ()),
            "versions": installed_versions(),
            "labels": list(self.names),
            "device": str(device),
        }


def prepare_finetuning(
    model: str | Path,
    data: LabelledDataset,
    task: str,
    args: FineTuningArguments,
    head: HeadSettings | None = None,
    *,
    command: str | None = None,
    measured_by: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> FineTuning:
    """Reads model and images, and checks that they fit.

    Args:
        model (`str` or `Path`): A folder, Hub id or `timm:NAME` of a ViT, as `conversion.read_source` or `load_encoder` reads it.
        data (`LabelledDataset`): The labelled images.
        task (`str`): One of `settings.TASKS`.
        args (`FineTuningArguments`): How to train; the model goes to `args.output_dir`.
        head (`HeadSettings`, *optional*): The head, and the size of the images.
        command, measured_by (`str`, *optional*): The command, and what measures the model again, for the card.
        revision (`str`, *optional*): Of a model on the Hub.
        trust_remote_code (`bool`): Whether code of the model's repository may run.

    Returns:
        `FineTuning`: Its `run` trains, saves and measures.

    Raises:
        ValueError: If model, data or settings cannot be used; in one sentence.

    Example:
        ```python
        from hf_geossl.tasks import FineTuningArguments, LabelledDataset, prepare_finetuning

        args = FineTuningArguments("out")
        tuning = prepare_finetuning("facebook/dinov2-small", LabelledDataset("photos"), "classification", args)
        print(tuning.run()["finetuned_classification"]["accuracy"])
        ```
    """
    kind, head = find_task(task), head or HeadSettings()
    start = Start.open(model, head.image_size, revision=revision, trust=trust_remote_code)
    for line in start.lines:
        logger.warning(line)
    size, images = start.image_size, start.image_format
    cuts = (kind.min_crop if args.min_crop is None else args.min_crop) < 1
    larger = round(size * LARGER) if cuts and data.dataset != SCENES else size
    if args.load_best_model_at_end:
        logger.warning(
            "the best checkpoint is chosen by the images that are measured at the end: the number is a little too good"
        )
    splits = data.open(kind.target, (larger, size), None if images.is_rgb8 else images)
    names = kind.class_names(*splits, head.class_names)
    kind.check(splits, head)
    return FineTuning(kind, start, head, data, splits, names, args, command, measured_by)


def measure_folder(
    folder: str | Path, data: LabelledDataset, *, batch_size: int = 32, device: str | torch.device | None = None
) -> tuple[FineTuningTask, Split, dict[str, Any]]:
    """Measures a fine-tuned model on labelled images: the same number as at the end of its training, to the last digit.

    Args:
        folder (`str` or `Path`): Of the model.
        data (`LabelledDataset`): The images, as in training.
        batch_size (`int`): Images at a time; `per_device_eval_batch_size` of the training, or the last digits may differ.
        device (`str`, *optional*): Where to; a GPU if there is one.

    Returns:
        `(FineTuningTask, Split, dict)`: the task, what was measured, and the result as `results.json` has it.

    Raises:
        ValueError: If there is no such model or dataset, or a class of the data is none of the model's.
    """
    model = open_model(folder, find_device(device))
    task, config = task_of((model.config.architectures or [""])[0]), model.config
    images: ImageFormat = config.get_image_format()
    split = data.open_test(task.target, config.image_height_width[0], None if images.is_rgb8 else images)
    names = [name for _, name in sorted((config.id2label or {}).items())]
    if task.target != "depth":
        split = split.numbered_as(task.target, names)
    collate = Collator(images.mean, images.std, task.labels)
    measured = measure(model, task, split, collate, batch_size, progress=True)
    return task, split, as_result(task, measured, split, names, {}, model.device)
