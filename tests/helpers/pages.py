"""The blocks of code of README and docs/, and how each is run at a tiny size.

Comments of the page right before a block say what is special about it, and are seen in the page's source alone:

- `<!-- in CI: max_steps=20_000 -> max_steps=2; GTSAConfig() -> GTSAConfig(hidden_size=48) -->`: texts that are replaced;
- `<!-- needs: torchao -->`: packages, by the names that are imported, of the extra `pages`: where one is not installed, the
  block's commands are read by their parsers and its Python is compiled, no more, and the page's test says that it was skipped.

All blocks of a page run one after the other, in one folder and one namespace. Commands of `geossl` run in this process, each
made small by `small`; scripts of Python do too. A block of other commands (torchrun, a job of SLURM) is run by bash as it is.
"""

import ast
import contextlib
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml

from hf_geossl.cli import usage
from hf_geossl.cli.describe import method_arguments
from hf_geossl.cli.main import main
from hf_geossl.cli.pretrain_arguments import parse_pretrain
from hf_geossl.cli.recipes import read_recipe
from tests.helpers.forked import free_port
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
TRUNK = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size")
ADDED = {
    "evaluate": "--limit 8 --num_workers 0 --bootstrap 20 --no_cache --device cpu",
    "finetune": "--max_steps 2 --use_cpu true",
    "embed": "--num_workers 0 --device cpu",
}
_BLOCK = re.compile(
    r"(?P<marks>(?:<!-- (?:needs|in CI): [^\n]*? -->\n+)*)^```(?P<language>\w*)(?P<title>[^\n]*)\n(?P<text>.*?)^```$",
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
        needs (`tuple`): The packages that it needs, and this library does not.
        smaller (`tuple`): Pairs of texts: what is replaced, and by what.
    """

    page: Path
    line: int
    language: str
    title: str
    text: str
    needs: tuple[str, ...]
    smaller: tuple[tuple[str, str], ...]

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def lacks(self) -> list[str]:
        """The packages that it needs and that are not installed."""
        return [name for name in self.needs if find_spec(name) is None]

    @property
    def starts_processes(self) -> bool:
        """Whether it is for bash: no command of `geossl`, of Python or of pip, with or without a variable before it."""
        names = (
            {name for words in commands(self.in_ci()) for name in words[:2]} if self.language == "bash" else {"python"}
        )
        return not names & {"geossl", "python", "pip"}

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
        marks = dict(re.findall(r"<!-- (needs|in CI): (.*?) -->", match["marks"]))
        pairs = [pair.partition(" -> ") for pair in marks.get("in CI", "").split("; ") if pair]
        smaller = tuple((left.strip(), right.strip()) for left, _, right in pairs)
        title = re.search(r'title="([^"]+)"', match["title"])
        line = text.count("\n", 0, match.start("text")) + 1
        needs = tuple(marks.get("needs", "").replace(",", " ").split())
        found.append(Block(page, line, match["language"], title[1] if title else "", match["text"], needs, smaller))
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
    values = {name: value for name, value in SIZES[method].items() if name not in given} | QUICK
    if given & {"init_from", "model_name_or_path"}:  # these say what the trunk is
        values = {name: value for name, value in values.items() if name not in TRUNK}
    for name, value in values.items():
        if name in known and name not in ("eval_strategy", "eval_steps", *given & {"probe_every_steps"}):
            texts = value if isinstance(value, list) else [value]
            words = [*words, f"--{name}", *(str(entry).lower() for entry in texts)]
    return list(words)


def output_of(words: Sequence[str]) -> str:
    """The folder that `geossl pretrain ...` writes."""
    return words[words.index("--output_dir") + 1] if "--output_dir" in words else f"geossl-{words[1]}"


def run_geossl(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs what follows `geossl`, small, in this process, to its good end."""
    if words[0] == "pretrain" and "--resume_from_checkpoint" not in words:  # each line begins anew
        shutil.rmtree(output_of(words), ignore_errors=True)
    if words[0] != "demo":
        assert main(small(words)) == 0, shlex.join(words)
        return
    import hf_geossl.demo

    launch, opened = hf_geossl.demo.launch_demo, []
    with monkeypatch.context() as patch:
        patch.setattr("hf_geossl.demo.launch_demo", lambda *a, **k: opened.append(launch(*a, **k, block=False)))
        assert main(list(words)) == 0
    with urlopen(opened[0].local_url) as page:
        assert page.status == 200
    opened[0].close()


def run_script(script: str) -> None:
    """Runs commands of a shell that start processes of their own; a job of SLURM is stopped and queued again."""
    paths = os.pathsep.join([str(Path("bin").resolve()), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": paths, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    shutil.rmtree("mine", ignore_errors=True)  # each begins anew
    if "#SBATCH" in script:
        run_job(script, environment)
        return
    environment["PET_MASTER_PORT"] = str(free_port())  # where torchrun's processes meet
    ended = subprocess.run(["bash", "-euo", "pipefail", "-c", script], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, f"{script}\n{ended.stdout[-2000:]}{ended.stderr[-4000:]}"


# two nodes on this machine: the batch shell alone gets SLURM's signal, as `--signal=B:TERM` says
SLURM = {
    "srun": """#!/bin/bash
trap 'kill -TERM $nodes' TERM
for node in $(seq "$SLURM_NNODES"); do "$@" & nodes+=" $!"; done
for node in $nodes; do while kill -0 $node 2>/dev/null; do wait $node; done; done
""",
    "scontrol": """#!/bin/bash
if [ "$1" = requeue ]; then echo "$2" >>requeued; else printf 'localhost\\n%.0s' $(seq "$SLURM_NNODES"); fi
""",
}


def run_job(script: str, environment: dict[str, str]) -> None:
    """Starts a job that trains until it is told to stop, twice: the second time it goes on from where the first was.

    SLURM tells the batch shell alone, as the script asks for; others tell all processes at once, as is done the second time.
    """
    Path("bin").mkdir()
    for name, text in SLURM.items():
        Path("bin", name).write_text(text)
        Path("bin", name).chmod(0o755)
    Path("job.sh").write_text(script)
    environment |= {"SLURM_NNODES": "2", "SLURM_NODELIST": "node[1-2]", "SLURM_JOB_ID": "17", "PORT": str(free_port())}
    last = 0
    for start in (1, 2):
        log = Path(f"job-{start}.log")
        with log.open("w") as file:
            job = subprocess.Popen(
                ["bash", "job.sh"], env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            deadline = time.monotonic() + 120
            while f"step {last + 2}:" not in log.read_text() and job.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            (os.kill if start == 1 else os.killpg)(job.pid, signal.SIGTERM)
            job.wait(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
        said = log.read_text()
        stopped = re.search(r"stopped at step (\d+). Go on with:", said)
        assert stopped, said[-4000:]
        assert said.count("--resume_from_checkpoint true") == 1
        assert Path("requeued").read_text() == "17\n" * start
        assert f"step {last + 2}:" in said
        assert f"step {last}:" not in said
        last = int(stopped[1])
        assert len(list(Path(f"mine/checkpoint-{last}").glob("run_state_*.json"))) == 2
        assert not Path("mine/.staging").exists()


def run_bash(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the commands of a block; of those that install, checks that CI installs the same."""
    if block.starts_processes:
        for script in [block.in_ci()] if "#SBATCH" in block.text else block.in_ci().splitlines():
            run_script(script)
        return
    for words in commands(block.in_ci()):
        with monkeypatch.context() as patch:
            while variable := re.fullmatch(r"([A-Z_]+)=(.*)", words[0]):
                patch.setenv(*variable.groups())
                words = words[1:]
            if words[0] == "geossl":
                if block.lacks:
                    parse(words[1:], monkeypatch)
                else:
                    run_geossl(words[1:], monkeypatch)
            elif words[0] == "python":
                patch.setattr(sys, "argv", words[1:])
                runpy.run_path(str(ROOT / words[1]), run_name="__main__")
            elif words[0] == "pip":
                setup = (ROOT / "setup.py").read_text()
                for word in words[2:]:
                    name, _, extras = word.rstrip("]").partition("[")
                    assert word in ("-e", ".") or name == "." or f'"{name}>' in setup, f"CI does not install {name}"
                    assert all(f'"{extra}": ' in setup for extra in extras.split(",") if extra), words
            else:
                assert words[0] == "pytest", f"{block.place}: who runs {words}?"  # .ci/run does


def run_block(block: Block, namespace: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a block in the working folder, or checks as much of it as can be checked without the packages that it lacks."""
    if block.title:
        Path(block.title).write_text(block.in_ci())
    if block.language == "python":
        code = compile(block.in_ci(), block.place, "exec")
        if not block.lacks:
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
