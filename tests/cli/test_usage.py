"""Errors of usage: one line, with the nearest valid word."""

import errno
from pathlib import Path

import pytest
from huggingface_hub import constants

from hf_geossl.cli.usage import (
    Parser,
    UsageError,
    nearest,
    next_steps,
    require_folder,
    require_if_local,
    require_reachable,
    sentence_of,
)


def _parser() -> Parser:
    parser = Parser("test", "A command.")
    parser.add_argument("kind", choices=["trunk", "head"])
    parser.add_argument("--batch_size", type=int, default=3)
    return parser


def test_hyphens_stand_for_underscores_and_values_stay() -> None:
    assert _parser().read(["trunk", "--batch-size", "7"]).batch_size == 7
    assert _parser().read(["trunk", "--batch-size=-7"]).batch_size == -7


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trunk", "--bach_size", "3"], "unknown argument --bach_size; did you mean '--batch_size'?"),
        (
            ["--bach-size=3"],
            "unknown argument --bach_size=3; did you mean '--batch_size'?",
        ),  # more than "kind is missing"
        (["trunk", "--batch", "3"], "unknown argument --batch; did you mean '--batch_size'?"),  # no abbreviations
        (["trunk", "left"], "unknown argument left; valid are --batch_size, --help"),
        (["trnk"], "kind: there is no 'trnk'; did you mean 'trunk'?"),
        ([], "the following arguments are required: kind"),
        (["trunk", "--batch_size", "many"], "--batch_size: invalid int value: 'many'"),
    ],
)
def test_errors_name_the_nearest_valid_word(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        _parser().read(argv)
    assert str(error.value) == message


def test_where_nothing_is_near_some_valid_words_are_named() -> None:
    assert nearest("zzz", ["beta", "alpha"]) == "; valid are alpha, beta"


def test_paths_must_be_there_and_ids_of_the_hub_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert require_folder(str(tmp_path)) == tmp_path
    with pytest.raises(UsageError, match="is a file, not a folder"):
        require_folder(str(tmp_path / "file"))
    with pytest.raises(UsageError, match="there is no folder nowhere"):
        require_folder("nowhere")
    for path in (
        "user/name",
        "scenes",
        "timm:vit_tiny",
        "hf://datasets/a/b/c.parquet",
        "a/b/*.tar",
        "timm:local-dir:/no",
        str(tmp_path),
    ):
        require_if_local(path)
    for path in ("./name", "no/where/at/all", "/no/where", "~/no/where"):
        with pytest.raises(UsageError, match="there is no file or folder"):
            require_if_local(path)


def test_without_a_network_what_is_nowhere_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fail(host: str, port: None) -> None:
        asked.append(host)
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", fail)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.test")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models--user--cached").mkdir()
    (tmp_path / "here/folder").mkdir(parents=True)
    require_reachable("user/cached", "here/folder", "scenes", "timm:vit", "a/*.jpg")
    assert asked == []
    with pytest.raises(UsageError, match=r"no file or folder user/name, and hub\.test cannot be asked for it: Name or"):
        require_reachable("user/cached", "user/name")
    assert asked == ["hub.test"] * 2
    monkeypatch.setattr("socket.getaddrinfo", lambda host, port: [])
    require_reachable("user/name")


def test_next_steps_are_commands_with_their_purposes_in_a_column() -> None:
    assert next_steps(("geossl card run", "a card"), ("geossl demo a", "look")) == (
        "Next:\n  geossl card run  # a card\n  geossl demo a    # look"
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "a.pt"),
            "the disk is full (a.pt): make room, and give the same command again",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/root"),
            "permission denied (/root): choose another place, or ask for the right to use it",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"), "No such file or directory (a/b)"),
        (OSError("a sentence\n of ours"), "a sentence of ours"),
        (ValueError("[Errno 2] quoted"), "[Errno 2] quoted"),
    ],
)
def test_errors_of_the_system_say_what_mends_them(error: Exception, message: str) -> None:
    assert sentence_of(error) == message


def test_a_current_folder_that_is_gone_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = FileNotFoundError(errno.ENOENT, "No such file or directory")
    assert sentence_of(gone) == "No such file or directory"

    def getcwd() -> str:
        raise gone

    monkeypatch.setattr("os.getcwd", getcwd)
    assert sentence_of(gone).startswith("the folder that this command was started in is no longer there")
