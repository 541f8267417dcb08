"""The command `geossl`: which commands there are, and what becomes of their errors.

A command is a module of this folder, imported when it is asked for; torch, transformers and datasets are imported by it after
its arguments have been read, so that help and errors of usage are there at once.
"""

import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from hf_geossl.cli.usage import UsageError, nearest, sentence_of
from hf_geossl.version import __version__

COMMANDS = {
    "pretrain": "trains as a recipe says and leaves a folder that `AutoModel` opens.",
    "inspect": "looks at every image of a dataset: what it holds, what is broken, and how to pretrain on it.",
    "evaluate": "measures what a model's features are worth: numbers with intervals, pictures, a comparison of models.",
    "embed": "writes features of all images of a dataset as a table.",
    "finetune": "trains a head, or all of a model, on labelled images, and measures it.",
    "predict": "predicts images with a fine-tuned model: masks, depths, boxes or classes, as files and pictures.",
    "publish": "sends a trained folder to a repository of the Hub, in one commit.",
    "card": "makes the model card of a trained folder again.",
    "demo": "shows a trained folder in the browser, to click.",
    "convert": "turns foreign checkpoints into folders that `AutoModel` opens.",
}
# what a user can mend; anything else is a fault of this library, and keeps its traceback
EXPECTED = (UsageError, ValueError, TypeError, OSError, RuntimeError, ImportError, FloatingPointError)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; errors that a user can mend are one line on stderr.

    Args:
        argv (`Sequence[str]`, *optional*): The words after `geossl`; those that the process was started with by default.

    Returns:
        `int`: the exit status: 0, 2 for an error, 130 after Ctrl-C, 141 where nobody reads on, or what the command says.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a log file or a pipe gets each line when it is printed; what its encoding lacks (cp1252 on Windows) is escaped
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        if sys.flags.optimize > 1:
            raise UsageError("python -OO leaves out docstrings, which transformers reads: use -O, or neither")
        if arguments and arguments[0] not in ("-h", "--help", "--version"):
            return _command(arguments[0])(arguments[1:])
        print(f"geossl {__version__}" if arguments[:1] == ["--version"] else _usage())
        return 0 if arguments else 2
    except BrokenPipeError:  # whoever reads, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except EXPECTED as error:
        return _fail(error)
    except KeyboardInterrupt:
        print("geossl: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        from huggingface_hub.errors import StrictDataclassError  # of a configuration, which has been imported then

        if isinstance(error, StrictDataclassError):
            return _fail(error.__cause__ or error)
        raise


def _usage() -> str:
    lines = "\n".join(f"  {name:10} {summary}" for name, summary in COMMANDS.items())
    return (
        f"usage: geossl COMMAND ...\n\ncommands:\n{lines}\n\n"
        "geossl COMMAND --help shows its arguments, geossl --version the version."
    )


def _command(name: str) -> Callable[[Sequence[str]], int]:
    if name not in COMMANDS:
        raise UsageError(f"there is no command {name!r}{nearest(name, list(COMMANDS))}")
    command: Callable[[Sequence[str]], int] = getattr(import_module(f"hf_geossl.cli.{name}"), name)
    return command


def _fail(error: BaseException) -> int:
    print(f"geossl: {sentence_of(error)}", file=sys.stderr)
    return 2
