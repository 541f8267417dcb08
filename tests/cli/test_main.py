"""The command `geossl`: its commands, its errors, how soon it answers, and when its output arrives."""

import io
import subprocess
import sys
import time

import pytest

import hf_geossl
from hf_geossl.cli.main import COMMANDS, main
from tests.helpers.small_recipes import error_line

HEAVY = ("torch", "transformers", "datasets", "huggingface_hub", "numpy", "PIL", "gradio")
RUN = f"""
import sys
from hf_geossl.cli.main import main
try:
    status = main(sys.argv[1:])
except SystemExit as stop:
    status = stop.code
heavy = [name for name in {HEAVY} if name in sys.modules]
print("HEAVY", heavy, file=sys.stderr)
sys.exit(status)
"""


def _run(*argv: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", RUN, *argv], capture_output=True, text=True, check=False)


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)
    assert main([]) == 2
    capsys.readouterr()
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"geossl {hf_geossl.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (["--help"], 0, "commands:"),
        (["--version"], 0, "geossl "),
        *(([name, "--help"], 0, f"usage: geossl {name}") for name in COMMANDS),
        (["pretrain", "loca_quickstart", "--help_all"], 0, "--focal_size N"),
        (["pretran"], 2, "there is no command 'pretran'; did you mean 'pretrain'?"),
        (["pretrain", "quikstart"], 2, "did you mean 'quickstart'?"),
        (["pretrain", "quickstart", "--max_stesp", "3"], 2, "did you mean '--max_steps'?"),
        (["pretrain", "quickstart", "--dataset", "./nowhere"], 2, "there is no file or folder ./nowhere"),
        (["evaluate", "user/model", "--taks", "knn"], 2, "did you mean '--tasks'?"),
        (["evaluate", "user/model", "--tasks", "knm"], 2, "there is no task 'knm'; did you mean 'knn'?"),
        (["evaluate", "./nowhere"], 2, "there is no file or folder ./nowhere"),
        (["publish", "nowhere", "user/name"], 2, "there is no folder nowhere"),
        (["publish", "nowhere", "user/name", "--dry-rnu"], 2, "did you mean '--dry_run'?"),
        (["card", "nowhere"], 2, "there is no folder nowhere"),
        (["demo", "nowhere"], 2, "there is no folder nowhere"),
        (["convert", "timm", "nowhere.pth", "out"], 2, "there is no file nowhere.pth"),
        (["convert", "./nowhere", "out"], 2, "nowhere"),
    ],
)
def test_help_and_errors_of_usage_import_nothing_heavy(argv: list[str], status: int, words: str) -> None:
    start = time.monotonic()
    process = _run(*argv)
    seconds = time.monotonic() - start
    assert process.returncode == status, process.stderr
    assert words in process.stdout + process.stderr
    assert process.stderr.splitlines()[-1] == "HEAVY []"
    assert len(process.stderr.splitlines()) == (2 if status else 1)
    assert (
        seconds < 10
    )  # under 1 s on a quiet machine; importing torch and transformers takes longer than this on a busy one


def test_errors_that_a_user_can_mend_are_one_line_and_others_keep_their_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub.errors import StrictDataclassError

    import hf_geossl.cli.card as home

    def fail_with(error: Exception) -> None:
        def card(argv: object) -> int:
            raise error

        monkeypatch.setattr(home, "card", card)

    fail_with(ValueError("of\n  several lines"))
    assert error_line(capsys, "card") == "geossl: of several lines"
    cause = StrictDataclassError("outside")
    cause.__cause__ = ValueError("patch_size must be at least 1")
    fail_with(cause)
    assert error_line(capsys, "card") == "geossl: patch_size must be at least 1"
    fail_with(FloatingPointError("not finite"))
    assert error_line(capsys, "card") == "geossl: not finite"
    fail_with(KeyError("a fault of this library"))
    with pytest.raises(KeyError):
        main(["card"])


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import hf_geossl.cli.card as home

    def card(argv: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(home, "card", card)
    assert main(["card"]) == 130
    assert capsys.readouterr().err == "geossl: interrupted\n"


def test_names_that_the_output_cannot_hold_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe on Windows holds cp1252: a folder called in Greek must not end a run at the first line."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    assert main(["--version"]) == 0
    print("größe \u03b1")
    sys.stdout.flush()
    assert written.getvalue().decode("cp1252").splitlines()[1] == "größe \\u03b1"


def test_redirected_output_arrives_line_by_line() -> None:
    """A line is there while the command still runs: the child prints one, and waits for an answer to it."""
    code = """
import sys
import hf_geossl.cli.card as home
from hf_geossl.cli.main import main

def card(argv):
    print("a line")
    return len(sys.stdin.readline())

home.card = card
sys.exit(main(["card"]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "a line\n"  # blocks for ever where the line waits in a buffer
    process.stdin.write("ab\n")
    process.stdin.close()
    assert process.wait(timeout=30) == 3


@pytest.mark.parametrize("words", ["pretrain quickstart --help_all", "--help"])
def test_a_reader_that_has_read_enough_is_no_error(words: str) -> None:
    command = f"{sys.executable} -m hf_geossl.cli {words} | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].startswith("usage: geossl ")
    assert done.stdout.splitlines()[1] in ("0", "141")
    assert done.stderr == ""
