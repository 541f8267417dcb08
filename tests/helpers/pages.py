"""The blocks of code of README and docs/, and how each is tried: run at a tiny size, or read by the parsers of the commands.

A comment of the page right before a block says what is special about it, and is seen in the page's source alone:

- `<!-- not run: needs the Hub -->`: its commands are read by their parsers and its Python is compiled, no more;
- `<!-- in CI: max_steps=20_000 -> max_steps=2; GTSAConfig() -> GTSAConfig(hidden_size=48) -->`: texts that are replaced.

All blocks of a page run one after the other, in one folder and one namespace.
"""

import ast
import json
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_geossl.cli import usage
from hf_geossl.cli.describe import method_arguments
from hf_geossl.cli.main import main
from hf_geossl.cli.pretrain_arguments import parse_pretrain
from hf_geossl.cli.recipes import read_recipe
from tests.helpers.golden import ROOT
from tests.helpers.small_recipes import SMALL, SMALL_EQUICOHERENT, SMALL_LOCA

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
QUICK = {
    "use_cpu": True,
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "dataloader_num_workers": 0,
    "gradient_accumulation_steps": 1,
    "bf16": False,
    "fp16": False,
    "warmup_steps": 0,
    "probe_every_steps": 0,
    "picture": False,
}
SIZES = {
    "gtsa": SMALL,
    "loca": SMALL_LOCA,
    "equicoherent": SMALL_EQUICOHERENT | {"equivariant_features": 12},
}
# what ends by no command, or talks to a repository
ONLY_PARSED = ("demo",)
ADDED = {
    "evaluate": "--limit 8 --num_workers 0 --bootstrap 20 --no_cache --device cpu",
    "finetune": "--max_steps 2 --use_cpu true",
    "embed": "--num_workers 0 --device cpu",
}
_BLOCK = re.compile(
    r"(?:<!-- (?P<kind>not run|in CI): (?P<what>.*?) -->\n+)?^```(?P<language>\w*)(?P<title>[^\n]*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A block of code.

    Args:
        page (`Path`): Where it stands.
        line (`int`): The line of its first line.
        language (`str`): As the fence says.
        title (`str`): Name of the file that it shows, empty where it shows none.
        text (`str`): As it stands.
        not_run (`str`): Why it is not run, empty where it is.
        smaller (`tuple`): Pairs of texts: what is replaced, and by what.
    """

    page: Path
    line: int
    language: str
    title: str
    text: str
    not_run: str
    smaller: tuple[tuple[str, str], ...]

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def in_ci(self) -> str:
        """The text as it is run."""
        text = self.text
        for words, small in self.smaller:
            assert words in text, f"{self.place} has no {words!r} to replace"
            text = text.replace(words, small)
        return text


def blocks(page: Path) -> list[Block]:
    """All blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        kind, what = match["kind"], match["what"] or ""
        pairs = tuple(
            (left.strip(), right.strip())
            for left, _, right in (pair.partition(" -> ") for pair in what.split("; "))
            if kind == "in CI"
        )
        title = re.search(r'title="([^"]+)"', match["title"])
        line = text.count("\n", 0, match.start("text")) + 1
        not_run = what if kind == "not run" else ""
        found.append(Block(page, line, match["language"], title[1] if title else "", match["text"], not_run, pairs))
    assert 2 * len(found) == len(re.findall(r"^```", text, re.MULTILINE)), f"{page} has a fence that is not read"
    return found


def commands(text: str) -> list[list[str]]:
    """The commands of a block of bash, a list of words each; comments and output are left out."""
    lines = [line.removesuffix("&") for line in re.sub(r"\\\n\s*", " ", text).splitlines()]
    return [words for line in lines for part in line.split(" && ") if (words := shlex.split(part, comments=True))]


class _Parsed(BaseException):
    """Ends a command once its arguments have been read."""


def parse(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the parser of a command of `geossl` read what follows it, and no more."""
    if words[0] == "pretrain":
        if (ROOT / "hf_geossl/training/recipes" / f"{words[1]}.yaml").exists() or Path(words[1]).exists():
            parse_pretrain(words[1:])
        else:  # a file of the reader's
            parse_pretrain(["quickstart", *words[2:]])
        return
    read = usage.Parser.read

    def stop(parser: usage.Parser, argv: Sequence[str]) -> None:
        read(parser, argv)
        raise _Parsed

    with monkeypatch.context() as patch:
        patch.setattr(usage.Parser, "read", stop)
        with pytest.raises(_Parsed):
            main(words)


def small(words: Sequence[str]) -> list[str]:
    """A command of `geossl` that takes seconds."""
    if words[0] != "pretrain":
        given = "--evaluate_only" in words and words[0] == "finetune"
        return [*words, *("" if given else ADDED.get(words[0], "")).split()]
    given = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
    method = read_recipe(words[1]).method
    known = {argument.name for argument in method_arguments(method)}
    values = {**QUICK}
    if not given & {"init_from", "model_name_or_path"}:
        values = {name: value for name, value in SIZES[method].items() if name not in given} | QUICK
    for name, value in values.items():
        if name in known and name not in ("eval_strategy", "eval_steps", *given & {"probe_every_steps"}):
            texts = value if isinstance(value, list) else [value]
            words = [*words, f"--{name}", *(str(entry).lower() for entry in texts)]
    return list(words)


def output_of(words: Sequence[str]) -> str:
    """The folder that `geossl pretrain ...` writes."""
    return words[words.index("--output_dir") + 1] if "--output_dir" in words else f"geossl-{words[2]}"


def run_bash(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the commands of a block that are this library's, in this process; checks what the others name."""
    for words in commands(block.in_ci()):
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # an environment variable
            words = words[1:]
        name = words[0]
        if name == "geossl":
            if block.not_run or words[1] in ONLY_PARSED:
                parse(words[1:], monkeypatch)
            else:
                if words[1] == "pretrain" and "--resume_from_checkpoint" not in words:  # each line begins anew
                    shutil.rmtree(output_of(words), ignore_errors=True)
                assert main(small(words[1:])) == 0, f"{block.place}: {shlex.join(words)}"
        elif "hf_geossl.cli" in words:  # by accelerate or torchrun
            parse(words[words.index("hf_geossl.cli") + 1 :], monkeypatch)
            for word in words:
                file = re.fullmatch(r".*/(training/accelerate/\w+\.yaml)", word)
                assert not file or (ROOT / "hf_geossl" / file[1]).is_file(), word
        elif name == "pip":
            extras = {extra for group in re.findall(r"\[([\w,-]+)\]", " ".join(words)) for extra in group.split(",")}
            assert extras <= set(re.findall(r'^ {8}"([\w-]+)": ', (ROOT / "setup.py").read_text(), re.MULTILINE)), words
        elif name in ("python", "bash"):
            files = [word for word in words if re.fullmatch(r"[\w./]+\.(py|sh)", word)]
            assert all((ROOT / file).is_file() for file in files), words
        else:
            assert block.not_run or name in ("mkdocs", "pytest"), f"{block.place}: who runs {words}?"


def run_block(block: Block, namespace: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a block in the working folder, or checks as much of it as can be checked without what it needs."""
    if block.title and block.language in ("yaml", "python"):
        Path(block.title).write_text(block.in_ci())
    if block.language == "python":
        code = compile(block.in_ci(), block.place, "exec")
        if not block.not_run and not block.title:
            exec(code, namespace)
    elif block.language == "bash":
        run_bash(block, monkeypatch)
    elif block.language == "yaml":
        yaml.safe_load(block.text)
    elif block.language == "json":
        json.loads(block.text)
    else:
        assert block.language == "text", f"{block.place}: what is a block of {block.language!r}?"


def literals(folder: Path) -> list[str]:
    """The texts that stand in the code of a folder; what is computed within one is a NUL."""
    found: list[str] = []
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "\0" for p in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found
