"""The command `geossl`."""

import argparse
import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import set_seed

from hf_geossl.cli.evaluate import evaluate
from hf_geossl.cli.recipes import UsageError, make_config, nearest, parse_pretrain
from hf_geossl.conversion import (
    convert_dino_checkpoint,
    convert_gtsa_checkpoint,
    convert_loca_checkpoint,
    convert_timm_checkpoint,
)
from hf_geossl.data.broken import BrokenStreamError
from hf_geossl.data.evaluation_batches import FirstImages
from hf_geossl.data.streams import load_stream
from hf_geossl.demo import launch_demo
from hf_geossl.hub.export import export_model, make_image_processor
from hf_geossl.hub.push import Publication, PublishError, publish
from hf_geossl.methods import METHODS
from hf_geossl.modeling.configuration_gtsa import GTSAConfig
from hf_geossl.training.checkpoints.files import CheckpointError, newest_whole_checkpoint
from hf_geossl.training.monitors.non_finite import NonFiniteLossError

# what a run leaves that was killed before its first checkpoint was whole
_TRACES = r"\.staging.*|\.features|\.export-.*|\.push-.*|checkpoint-\d+|nonfinite_step_.*\.json|runs"


def _resume_from(args: Any) -> str | bool | None:
    """What to resume from; refuses to start in a folder that holds something."""
    folder, asked = Path(args.output_dir), args.resume_from_checkpoint
    if asked is not None and asked.lower() in ("true", "false"):
        asked = asked.lower() == "true"
    if asked is True and newest_whole_checkpoint(folder) is None:
        others = [path.name for path in folder.glob("*") if not re.fullmatch(_TRACES, path.name)]
        if others:
            raise UsageError(
                f"the output folder {args.output_dir} holds no whole checkpoint to go on from, and other things "
                f"({', '.join(sorted(others)[:3])}): choose another --output_dir"
            )
        print(f"{folder.name} holds no whole checkpoint yet: the run starts from the beginning", file=sys.stderr)
        return None
    if not asked and folder.is_dir() and any(folder.iterdir()):
        raise UsageError(
            f"the output folder {args.output_dir} is not empty: choose another --output_dir, or go on with the run in it "
            "by --resume_from_checkpoint true"
        )
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output_dir {args.output_dir} is a file, not a folder")
    return asked or None


def pretrain(argv: Sequence[str]) -> int:
    """`geossl pretrain`: trains as a recipe says and leaves a folder that `AutoModel` opens."""
    method, _, (data, model_arguments, view_arguments, args) = parse_pretrain(argv)
    resume = _resume_from(args)
    if args.device.type == "cpu":  # workers and threads that contend for a core slow each other down many times over
        torch.set_num_threads(max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) - args.dataloader_num_workers)))
    set_seed(args.seed)
    stream = load_stream(
        data.dataset,
        data.split,
        config_name=data.dataset_config,
        image_column=data.image_column,
        shuffle_block=data.shuffle_block,
        seed=args.seed if args.data_seed is None else args.data_seed,
        skip_broken=data.skip_broken,
        revision=data.revision,
        max_broken_share=data.max_broken_share,
        max_pixels=data.max_pixels,
    )
    held_out = _held_out(data)
    config = make_config(method, model_arguments)
    if data.model_name_or_path is None:
        model = method.model(config)
    else:
        model = method.model.from_pretrained(data.model_name_or_path)
    trainer = method.trainer(
        model=model,
        args=args,
        train_dataset=stream,
        eval_dataset=held_out,
        views=method.views(
            **{key: _as_tuple(value) for key, value in dataclasses.asdict(view_arguments).items()},
            **{key: getattr(model.config, key) for key in method.shared},
        ),
    )
    trainer.command = f"geossl pretrain {shlex.join(argv)}"
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    speaks = trainer.is_world_process_zero()
    if speaks:
        print(
            f"{args.output_dir}: {parameters / 1e6:.1f} M trained parameters, {trainer.args.max_steps} steps of "
            f"{trainer.args.global_batch_size} images from {data.dataset}"
        )
    trainer.train(resume_from_checkpoint=resume)
    stopped = trainer.parts.preemption.signal
    measured = None
    if stopped is None:
        trainer.save_model()
        if held_out is not None:
            measured = trainer.describe_evaluation(trainer.evaluate())
            trainer.write_card()
    if speaks and stopped is not None:
        print(f"stopped at step {trainer.state.global_step}. Go on with:")
        print(f"  geossl pretrain {shlex.join(argv)} --resume_from_checkpoint true")
    elif speaks:
        print(f"\nThe model lies in {args.output_dir} (trained {trainer.state.global_step} steps). Load it anywhere:\n")
        print("  from transformers import AutoModel")
        print(f'  model = AutoModel.from_pretrained("{args.output_dir}", trust_remote_code=True)\n')
        for what, picture in [(entry.caption, entry.file) for entry in METHODS[config.model_type].pictures]:
            if (Path(args.output_dir) / picture).is_file():
                print(f"{what}: {Path(args.output_dir) / picture}")
        if measured is not None:
            print(measured)
        if trainer.publisher.publication is not None:
            print(f"Published: {trainer.publisher.publication.url}")
    trainer.end_processes()
    return 0 if stopped is None else 128 + stopped


def _held_out(data: Any) -> FirstImages | None:
    """The images to measure on; how to read them is as said for the training images, as far as it can be the same."""
    if data.eval_dataset is None:
        return None
    if data.eval_images < 1:
        raise UsageError(f"--eval_images must be at least 1, got {data.eval_images}")
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
    except ValueError:
        if same or data.eval_split is not None:
            raise
        stream = read(split="train")  # a plain folder of other images
    return FirstImages(stream, data.eval_images)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"


def _describe(publication: Publication) -> None:
    """Lists a publication on the screen."""
    for file in publication.files:
        print(f"  {file.state:9}  {_megabytes(file.size):>9}  {file.path}")
    sent = publication.sent
    done = "would be sent" if publication.commit is None else "sent"
    total = f"{len(sent)} of {len(publication.files)} files {done}, {_megabytes(sum(file.size for file in sent))}"
    at = f", revision {publication.commit[:10]}" if publication.commit else ""
    print(f"{publication.kind} {publication.repo_id}: {total}{at}\n  {publication.url}")


def publish_folder(argv: Sequence[str]) -> int:
    """`geossl publish`: a trained folder to a repository of the Hub, in one commit."""
    parser = argparse.ArgumentParser(prog="geossl publish", description=publish_folder.__doc__)
    parser.add_argument("folder", help="What geossl pretrain, geossl convert or save_pretrained wrote.")
    parser.add_argument("repo", help="user/name on the Hub; made where it is missing.")
    parser.add_argument("--space", action="store_true", help="Publish a Gradio Space of the same name too.")
    parser.add_argument("--private", action="store_true", help="Make new repositories private.")
    parser.add_argument("--revision", help="Branch to publish to, made where it is missing; main by default.")
    parser.add_argument("--results", help="JSON file of measured numbers; results.json in the folder by default.")
    parser.add_argument("--license", help="Licence of the weights, as the Hub calls it, such as apache-2.0.")
    parser.add_argument(
        "--dry_run", "--dry-run", action="store_true", help="List what would be sent, and send nothing."
    )
    options = parser.parse_args(argv)
    publication = publish(
        options.folder,
        options.repo,
        results=options.results,
        space=options.space,
        private=options.private,
        revision=options.revision,
        license=options.license,
        dry_run=options.dry_run,
    )
    _describe(publication)
    if publication.space is not None:
        _describe(publication.space)
    return 0


def demo(argv: Sequence[str]) -> int:
    """`geossl demo`: a trained folder in the browser, to click."""
    parser = argparse.ArgumentParser(prog="geossl demo", description=demo.__doc__)
    parser.add_argument("folder", help="What geossl pretrain or geossl convert wrote, or a checkpoint in it.")
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen at; 0.0.0.0 lets other machines in.")
    parser.add_argument("--port", type=int, help="Port to listen at; a free one from 7860 on by default.")
    options = parser.parse_args(argv)
    launch_demo(options.folder, host=options.host, port=options.port)
    return 0


def convert(argv: Sequence[str]) -> int:
    """`geossl convert`: foreign checkpoints to folders that `AutoModel` opens."""
    converters: dict[str, Callable[..., Any]] = {
        "gtsa": convert_gtsa_checkpoint,
        "timm": convert_timm_checkpoint,
        "dino": convert_dino_checkpoint,
        "loca": convert_loca_checkpoint,
    }
    parser = argparse.ArgumentParser(prog="geossl convert", description=convert.__doc__)
    parser.add_argument("source", choices=sorted(converters), help="Whose checkpoint it is.")
    parser.add_argument("file", help="The .pth, .safetensors or (LOCA) Flax file; nothing in it is executed.")
    parser.add_argument("output", help="Folder to write.")
    parser.add_argument(
        "--num_attention_heads",
        type=int,
        help="Heads; by default one for each 64 channels. Not for LOCA, whose files tell it.",
    )
    parser.add_argument(
        "--weights",
        help="Of a GTSA checkpoint: the whole pretraining model (full, the default; AutoModel opens its student), or one "
        "trunk (student, teacher); of a DINO checkpoint: which network (student or teacher; full is the teacher); of a "
        "LOCA checkpoint: what the student of the whole pretraining model gets (params, the default, or ema_params).",
    )
    options = parser.parse_args(argv)
    valid = ("params", "ema_params") if options.source == "loca" else ("full", "student", "teacher")
    if options.weights is None:
        options.weights = valid[0]
    if options.weights not in valid:
        raise UsageError(f"--weights must be one of {', '.join(valid)} for {options.source}, got {options.weights}")
    if options.source == "loca" and options.num_attention_heads is not None:
        raise UsageError("--num_attention_heads does not apply to loca: the file tells the number of heads")
    folder = Path(options.output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{options.output} exists and is not empty: choose another folder")
    keywords: dict[str, Any] = {}
    if options.num_attention_heads is not None:
        width = 64 * options.num_attention_heads
        keywords["config"] = GTSAConfig(
            hidden_size=width,
            num_attention_heads=options.num_attention_heads,
            position_interpolation_offset=0.0 if options.source == "timm" else 0.1,
        )
    if options.source == "dino":
        keywords["weights"] = "student" if options.weights == "student" else "teacher"
    if options.source == "loca":
        keywords["weights"] = options.weights
    model = converters[options.source](options.file, **keywords)
    processor = make_image_processor(model.config.image_height_width)
    if options.source == "gtsa" and options.weights != "full":
        export_model(model, folder, weights=options.weights, image_processor=processor)
    else:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    print(f'converted to {options.output}: AutoModel.from_pretrained("{options.output}", trust_remote_code=True)')
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; errors of the user's are one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {"pretrain": pretrain, "evaluate": evaluate, "publish": publish_folder, "demo": demo, "convert": convert}
    transformers.utils.logging.disable_progress_bar()
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: geossl COMMAND ...\n\ncommands:")
        for name, command in commands.items():
            print(f"  {name:10} {(command.__doc__ or '').split(': ', 1)[1]}")
        print("\ngeossl COMMAND --help shows every argument.")
        return 0 if arguments else 2
    try:
        if arguments[0] not in commands:
            raise UsageError(f"there is no command {arguments[0]!r}{nearest(arguments[0], list(commands))}")
        return commands[arguments[0]](arguments[1:])
    except (UsageError, CheckpointError, BrokenStreamError, NonFiniteLossError, PublishError) as error:
        print(f"geossl: {error}", file=sys.stderr)
        return 2
    except StrictDataclassError as error:
        print(f"geossl: {' '.join(str(error.__cause__ or error).split())}", file=sys.stderr)
        return 2
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        print(f"geossl: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("geossl: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
