"""`geossl pretrain`: trains as a recipe says and leaves a folder that `AutoModel` opens."""

import re
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hf_geossl.cli.arguments import DataArguments
from hf_geossl.cli.pretrain_arguments import Pretraining, parse_pretrain
from hf_geossl.cli.usage import GO_ON, UsageError, hide_loading_bars, next_steps, require_if_local
from hf_geossl.evaluation.registry import TASKS
from hf_geossl.methods import run_pictures

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from hf_geossl.data.evaluation_batches import FirstImages
    from hf_geossl.data.streams import ImageStream
    from hf_geossl.evaluation.online import OnlineDataset
    from hf_geossl.modeling.image_format import ImageFormat
    from hf_geossl.training.arguments import TeacherStudentTrainingArguments
    from hf_geossl.training.trainer import TeacherStudentTrainer

# what a run leaves that was killed before its first checkpoint was whole
_TRACES = r"\.staging.*|\.features|\.export-.*|\.push-.*|\.trained|checkpoint-\d+|nonfinite_step_.*\.json|learning_curve\.png|runs"


def pretrain(argv: Sequence[str]) -> int:
    """Trains as a recipe says.

    Args:
        argv (`Sequence[str]`): What follows `geossl pretrain`.

    Returns:
        `int`: 0 once the model is saved, whatever fails after that; 128 + the number of the signal that stopped the run.
    """
    given = parse_pretrain(argv)
    check_eval_images(given.data)
    probes = None if given.data.probe_dataset == "off" else given.data.probe_dataset
    for path in (given.data.dataset, given.data.eval_dataset, probes, given.model_name_or_path, given.init_from):
        require_if_local(path or "scenes")
    for sentence in given.left_out:
        print(sentence, file=sys.stderr)
    command = f"geossl pretrain {shlex.join(argv)}"
    trainer, resume = make_trainer(given, command)
    if trainer.is_world_process_zero():
        print(describe_start(trainer, given.data))
    trainer.train(resume_from_checkpoint=resume)
    stopped = trainer.parts.preemption.signal
    if stopped is None:
        finish(trainer)
    elif trainer.is_world_process_zero():
        print(f"stopped at step {trainer.state.global_step}. Go on with:")
        print(f"  {command.replace(GO_ON, '')}{GO_ON}")
    trainer.end_processes()
    return 0 if stopped is None else 128 + stopped


def make_trainer(given: Pretraining, command: str) -> "tuple[TeacherStudentTrainer, str | bool | None]":
    """Makes everything that a run needs.

    Args:
        given (`Pretraining`): What the run was given.
        command (`str`): The command, for the model card.

    Returns:
        `(TeacherStudentTrainer, str | bool | None)`: the trainer, and what to resume from.

    Raises:
        UsageError, ValueError: If a value is out of its range, or values contradict each other.
    """
    from transformers import set_seed

    from hf_geossl.cli.pretrain_model import describe_sizes, make_model, make_views
    from hf_geossl.training.checkpoints.files import newest_whole_checkpoint

    hide_loading_bars()
    args = make_training_arguments(given)
    resume = resume_from(args)
    set_seed(args.seed)
    seed = args.seed if args.data_seed is None else args.data_seed
    stream, held_out = open_stream(given.data, seed), open_held_out(given.data)
    checkpoint = (
        newest_whole_checkpoint(Path(str(args.output_dir))) if resume is True else Path(resume) if resume else None
    )
    model, image_format, lines = make_model(given, stream, checkpoint)
    lines += describe_sizes(given, model)
    for line in lines if args.process_index == 0 else ():
        print(line, file=sys.stderr)
    probes = open_probes(given.data, model.config.image_height_width[0], image_format)
    trainer = given.method.load("trainer")(
        model=model,
        args=args,
        train_dataset=stream,
        eval_dataset=held_out,
        views=make_views(given, model, image_format),
        command=command,
        probe_dataset=probes if args.probe_every_steps or args.metric_for_best_model else None,
    )
    return trainer, resume


def make_training_arguments(given: Pretraining) -> "TeacherStudentTrainingArguments":
    """Makes the training arguments; trackers know the run by its folder's name unless the user gave another.

    Raises:
        UsageError: If bfloat16 is asked for, as recipes for GPUs do, where no GPU computes in it.
    """
    values = dict(given.training)
    values.setdefault("run_name", Path(str(values.get("output_dir", ""))).name)
    try:
        args: TeacherStudentTrainingArguments = given.method.load("arguments")(**values)
    except ValueError as error:
        if "bf16/gpu" not in str(error):
            raise
        raise UsageError(
            "bf16 is set, and no GPU here computes in it: --bf16 false trains in float32 on what there is; on a CPU that takes "
            "long, and the quickstarts are sized for one"
        ) from error
    return args


def open_stream(data: DataArguments, seed: int) -> "ImageStream":
    """Opens the images to train on."""
    from hf_geossl.data.streams import load_stream

    return load_stream(
        data.dataset,
        data.split,
        config_name=data.dataset_config,
        image_column=data.image_column,
        shuffle_block=data.shuffle_block,
        seed=seed,
        skip_broken=data.skip_broken,
        revision=data.revision,
        max_broken_share=data.max_broken_share,
        max_pixels=data.max_pixels,
    )


def check_eval_images(data: DataArguments) -> None:
    """Refuses to measure on no image."""
    if data.eval_dataset is not None and data.eval_images < 1:
        raise UsageError(f"--eval_images must be at least 1, got {data.eval_images}")


def open_held_out(data: DataArguments) -> "FirstImages | None":
    """Opens the images to measure on; what describes the training images is taken for them too, as far as it can be."""
    from hf_geossl.data.evaluation_batches import FirstImages
    from hf_geossl.data.streams import load_stream

    if data.eval_dataset is None:
        return None
    same = data.eval_dataset == data.dataset
    read = partial(
        load_stream,
        data.eval_dataset,
        config_name=data.dataset_config if same else None,
        image_column=data.image_column,
        shuffle_block=data.shuffle_block,
        skip_broken=data.skip_broken,
        revision=data.revision if same else None,
        max_broken_share=data.max_broken_share,
        max_pixels=data.max_pixels,
    )
    try:
        stream = read(split=data.eval_split or "validation")
    except ValueError as error:
        if data.eval_split is not None:
            raise
        if same:
            raise UsageError(f"{error}; --eval_split names another part of it, --eval_dataset other images") from error
        stream = read(split="train")  # a plain folder of other images
    return FirstImages(stream, data.eval_images)


def open_probes(data: DataArguments, size: int, image_format: "ImageFormat") -> "OnlineDataset | None":
    """Opens the labelled images that features are measured on while training; None without any."""
    from hf_geossl.evaluation.online import OnlineDataset
    from hf_geossl.evaluation.samples import SCENES, Columns

    scenes = data.dataset == SCENES and image_format.is_rgb8
    name = data.probe_dataset or (SCENES if scenes else None)
    if name in (None, "off"):
        return None
    same = name == data.dataset
    mode = (data.dataset_config or "").partition("-")[0]  # the scenes' sizes are those of training
    config_name = (mode or None) if name == SCENES else data.dataset_config
    probes = OnlineDataset(
        name,
        columns=Columns(image=data.image_column, label=data.probe_label_column)
        if same
        else Columns(label=data.probe_label_column),
        config_name=config_name if same else None,
        revision=data.revision if same else None,
        image_format=image_format,
    )
    probes.check(size)
    return probes


def resume_from(args: "TrainingArguments") -> str | bool | None:
    """Decides what to resume from.

    Raises:
        UsageError: If the run would start in a folder that has something in it.
    """
    from hf_geossl.training.checkpoints.files import newest_whole_checkpoint

    folder, asked = (
        Path(str(args.output_dir)),
        {"true": True, "false": False}.get(str(args.resume_from_checkpoint).lower(), args.resume_from_checkpoint),
    )
    if isinstance(asked, str) and not (Path(asked) / "config.json").is_file():
        what = "is no checkpoint (it has no config.json)" if Path(asked).is_dir() else "is no folder"
        raise UsageError(
            f"--resume_from_checkpoint {asked} {what}: name a folder checkpoint-N of a run, or true for the newest in --output_dir"
        )
    if asked is True and newest_whole_checkpoint(folder) is None:
        others = [path.name for path in folder.glob("*") if not re.fullmatch(_TRACES, path.name)]
        if others:
            raise UsageError(
                f"the output folder {args.output_dir} has no whole checkpoint to go on from, and other files "
                f"({', '.join(sorted(others)[:3])}): choose another --output_dir"
            )
        print(f"{folder.name} has no whole checkpoint yet: the run starts from the beginning", file=sys.stderr)
        return None
    if not asked and folder.is_dir() and any(folder.iterdir()):
        raise UsageError(
            f"the output folder {args.output_dir} is not empty: choose another --output_dir, or go on with the run in it "
            "by --resume_from_checkpoint true"
        )
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output_dir {args.output_dir} is a file, not a folder")
    return asked or None


def describe_start(trainer: "TeacherStudentTrainer", data: DataArguments) -> str:
    """Says in a line what begins, and in another what of the trunk is trained, where that is not all."""
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    args, count = trainer.args, getattr(trainer.train_dataset, "num_images", None)
    source = data.dataset if count is None else f"the {count:,} of {data.dataset} ({data.split})"
    said = (
        f"{args.output_dir}: {parameters / 1e6:.1f} M trained parameters, {args.max_steps} steps of "
        f"{args.global_batch_size} images from {source}"
    )
    return f"{said}\n{trainer.parts.trained_of_trunk}" if trainer.parts.trained_of_trunk else said


def finish(trainer: "TeacherStudentTrainer") -> None:
    """Saves the model first; then measures it, writes its card again and says where everything is.

    Args:
        trainer (`TeacherStudentTrainer`): Whose training has ended.
    """
    from hf_geossl.training.outputs.attempts import attempt

    trainer.save_model()
    measured: list[str] = []
    if trainer.eval_dataset is not None:

        def measure() -> None:
            measured.append(trainer.describe_evaluation(trainer.evaluate()))

        place = shlex.quote(str(trainer.args.output_dir))
        if attempt("the evaluation", measure, f"the model is saved; `geossl evaluate {place}` measures its features"):
            trainer.write_card()
            if trainer.args.push_to_hub:
                attempt("the push to the Hub", trainer.push_to_hub, f"`geossl publish {place}` sends the folder")
    if not trainer.is_world_process_zero():
        return
    folder = Path(str(trainer.args.output_dir))
    print(f"\nThe model is in {folder} (trained {trainer.state.global_step} steps). Load it anywhere:\n")
    print("  from transformers import AutoModel")
    print(f'  model = AutoModel.from_pretrained("{folder}", trust_remote_code=True)\n')
    for picture in run_pictures().values():
        if (folder / picture.file).is_file():
            print(f"{picture.caption}: {folder / picture.file}")
    for line in measured:
        print(line)
    if trainer.publisher.publication is not None:
        print(f"Published: {trainer.publisher.publication.url}")
    print(f"\n{next_steps(*_what_next(trainer, folder))}")


def _what_next(trainer: "TeacherStudentTrainer", folder: Path) -> list[tuple[str, str]]:
    """Looking at the model, measuring it, and publishing it."""
    place = shlex.quote(str(folder))
    steps = [(f"geossl demo {place}", "look at it in your browser")] if find_spec("gradio") else []
    if trainer.model.config.get_image_format().is_rgb8:
        install = "pip install 'hf_geossl[eval]' && " if TASKS["linear"].missing_requirement else ""
        command = f"{install}geossl evaluate {place} --tasks knn,linear,rotation --limit 2000"
        steps.append((command, "numbers beside random weights, on scenes"))
    return [*steps, (f"geossl publish {place} user/name --dry_run", "what would be sent")]
