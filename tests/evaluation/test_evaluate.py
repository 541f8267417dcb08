"""`evaluate_model` and `geossl evaluate`: what is kept, what is told, and that a card can take it."""

import json
import logging
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

from hf_geossl import GTSAConfig, GTSAModel, evaluate_model
from hf_geossl.cli.main import main
from hf_geossl.evaluation.protocol import EvaluationProtocol, TaskResult, load_protocol
from hf_geossl.evaluation.registry import TASKS, Task
from hf_geossl.hub.model_folder import model_files
from hf_geossl.hub.results import eval_results, load_results, model_index, read_results
from tests.helpers import forked

FAKES = "hf_geossl.evaluation.protocols.fakes"
TOKEN = "hf_" + "aB3dE5fG7hJ9kL1mN2pQ4rS6tU8vW0xY"


@dataclass(frozen=True)
class FakeSettings:
    """Of the tasks below."""

    steps: int = 3
    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[float, float] = (0.5, 2.0)
    kinds: Sequence[str] = ("kite",)
    name: str | None = None
    quick: bool = False


class Fakes:
    """Tasks that are quick, and count how often they are measured."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def good(self, encoder: Any, data: Any, options: Any, settings: FakeSettings) -> TaskResult:
        self.calls.append("good")
        details = {
            "settings": asdict(settings),
            "curve": np.array([1.0, math.nan]),
            "where": f"{Path.home()}/secret/run",
            "token": TOKEN,
            "floors": {"score": {"random weights": 0.25}},
        }
        pictures = {
            "square": lambda: Image.new("RGB", (8, 8), "red"),
            "broken": lambda: Image.new("nonsense", (1, 1)),
        }
        metrics = {"score": settings.rate, "nothing": math.nan, "endless": math.inf}
        return TaskResult(metrics, {"score": (0.4, 0.6), "nothing": (math.nan, math.nan)}, details, pictures)

    def bad(self, encoder: Any, data: Any, options: Any, settings: FakeSettings) -> TaskResult:
        self.calls.append("bad")
        raise ValueError(f"{data.dataset} has no maps of depth:\n name {Path.home()}/there or another column")

    def odd(self, encoder: Any, data: Any, options: Any, settings: FakeSettings) -> TaskResult:
        import a_package_that_nobody_has  # noqa: F401

        return TaskResult({})


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    fakes, module = Fakes(), ModuleType(FAKES)
    module.PROTOCOLS = {  # type: ignore[attr-defined]
        name: EvaluationProtocol(getattr(fakes, name), FakeSettings) for name in ("bad", "good", "odd")
    }
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("bad", "good", "odd"):
        monkeypatch.setitem(TASKS, name, Task(name, "fakes", f"the task {name}"))
    return fakes


@pytest.fixture
def few_tasks(fakes: Fakes) -> Iterator[None]:
    """There are no tasks but `good` and `position`."""
    everything = dict(TASKS)
    for name in set(TASKS) - {"good", "position"}:
        del TASKS[name]
    yield
    TASKS.clear()
    TASKS.update(everything)  # in the order that it had


def small_model(seed: int = 0, **fields: Any) -> GTSAModel:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return GTSAModel(GTSAConfig(**{**sizes, "image_size": 32, "patch_size": 8, **fields}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_model().save_pretrained(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def quick(fakes: Fakes, folder: Path) -> Callable[..., dict[str, Any]]:
    """Evaluates the folder by the task `good`, without pictures."""

    def evaluate(tasks: Any = ("good",), **keywords: Any) -> dict[str, Any]:
        return evaluate_model(folder, tasks, **{"limit": 8, "pictures": False, "progress": False, **keywords})

    return evaluate


def strict(path: Path) -> Any:
    """JSON without NaN and Infinity, which are none."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


# ---- what is measured, and how it is written ----


def test_numbers_reach_the_card(folder: Path) -> None:
    results = evaluate_model(folder, ["knn"], limit=40, bootstrap=50, cache_dir=None, progress=False)
    assert strict(folder / "results.json") == results
    read = read_results(load_results(folder / "results.json"))
    assert {result.metric: result.value for result in read} == {
        name: value for name, value in results["knn"].items() if isinstance(value, float)
    }
    assert {"accuracy", "mean_per_class_accuracy"} <= {result.metric for result in read}
    first = read[0]
    assert (first.task, first.dataset, first.dataset_id, first.split) == ("knn", "scenes", "hf_geossl/scenes", "test")
    assert first.images == 40
    assert first.command == "geossl evaluate run --tasks knn --dataset scenes --bootstrap 50 --limit 40"
    with model_files(folder, "user/name") as files:  # as `publish` sends them, without being told of the results
        card = files["README.md"]
        assert isinstance(card, bytes)
        row = next(line for line in card.decode().splitlines() if line.startswith("| knn | accuracy |"))
        low, high = results["knn"]["intervals"]["accuracy"]
        assert f"| {results['knn']['accuracy']:.4g} (95 %: {low:.4g} to {high:.4g}; " in row
        assert row.endswith("| scenes (test), 40 images |")
        assert first.command in card.decode()
        assert json.loads(files["results.json"])["knn"]["accuracy"] == results["knn"]["accuracy"]  # type: ignore[arg-type]
    low, high = results["knn"]["intervals"]["accuracy"]
    assert low <= results["knn"]["accuracy"] <= high


def test_the_command_of_the_card_measures_the_same(
    folder: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "first.json"
    words = ["--tasks", "knn", "--limit", "30", "--seed", "3", "--set", "knn.temperature=0.2", "--bootstrap", "0"]
    assert main(["evaluate", str(folder), *words, "--output", str(file), "--no_cache", "--no_pictures"]) == 0
    command = strict(file)["about"]["command"]
    assert "--seed 3" in command
    assert "knn.temperature=0.2" in command
    again = [str(folder) if word == "run" else word for word in command.split()[2:]]
    assert main(["evaluate", *again, "--output", str(tmp_path / "second.json"), "--no_cache", "--no_pictures"]) == 0
    first, second = strict(file), strict(tmp_path / "second.json")
    for results in (first, second):
        del results["knn"]["measured"]
    assert first == second
    assert first["knn"]["settings"]["temperature"] == 0.2
    shown = re.search(r"knn\n +accuracy +([\d.]+)", capfd.readouterr().out)
    assert shown is not None
    assert float(shown[1]) == pytest.approx(first["knn"]["accuracy"], abs=5e-4)


def test_the_same_model_and_seed_give_the_same_numbers_with_and_without_cache(folder: Path, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    runs = [
        evaluate_model(folder, ["knn", "linear"], limit=40, bootstrap=50, cache_dir=cache, progress=False, output=file)
        for cache, file in (
            (None, tmp_path / "a.json"),
            (tmp_path / "cache", tmp_path / "b.json"),
            (tmp_path / "cache", tmp_path / "c.json"),
        )
    ]
    assert torch.equal(state, torch.random.get_rng_state())
    for results in runs:
        assert {picture.split("/")[0] for picture in results["knn"].pop("pictures").values()} <= {"a", "b", "c"}
        for task in ("knn", "linear"):
            del results[task]["measured"]
            results[task].pop("pictures", None)
        del results["about"]["pictures"]
    assert runs[0] == runs[1] == runs[2]
    assert any((tmp_path / "cache").iterdir())


def test_values_that_are_no_number_are_named_and_not_written(quick: Callable[..., Any], folder: Path) -> None:
    results = quick()
    assert strict(folder / "results.json") == results
    assert results["good"]["score"] == 0.5
    assert results["good"]["undefined"] == ["endless", "nothing"]
    assert results["good"]["intervals"] == {"score": [0.4, 0.6]}
    assert results["good"]["details"]["curve"] == [1.0, None]
    assert [(result.metric, result.value) for result in read_results(results)] == [("score", 0.5)]


def test_nothing_of_the_machine_is_written(
    fakes: Fakes, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    main(["evaluate", str(folder), "--tasks", "good,bad", "--limit", "8", "--report", str(tmp_path / "page.html")])
    written = [folder / "results.json", tmp_path / "page.html"]
    for text in [path.read_text() for path in written]:
        for secret in (TOKEN, str(tmp_path), str(Path.home()) + "/"):
            assert secret not in text
    told = capfd.readouterr().err
    assert f"{Path.home()}/there" not in told
    assert strict(folder / "results.json")["about"]["model"] == "run"


def test_other_libraries_models_are_measured_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    models = [
        ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes), add_pooling_layer=False),
        timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0),
    ]
    for model in models:
        results = evaluate_model(model, "knn", limit=24, bootstrap=0, cache_dir=None, progress=False)
        assert 0 <= results["knn"]["accuracy"] <= 1
        assert results["knn"]["intervals"] == {}
        assert results["about"]["model"] == type(model).__name__
        assert results["about"]["command"].startswith(f"evaluate_model({type(model).__name__}, ['knn'], 'scenes'")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_images_is_measured(folder: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 15), ("test", 6)):
        for index, name in enumerate(("red", "blue")):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 60, (40, 48, 3), dtype=np.uint8)
                pixels[..., 2 * index] += 180
                Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{number}.png")
    results = evaluate_model(folder, "knn", str(tmp_path / "photos"), cache_dir=None, progress=False)
    assert results["knn"]["accuracy"] == 1.0
    about = results["about"]
    assert (about["dataset"], about["images"], "dataset_id" in about) == ("photos", 12, False)
    with pytest.raises(ValueError, match="other results|another measurement.*dataset"):
        evaluate_model(folder, "knn", cache_dir=None, progress=False)


# ---- what is kept ----


def test_a_second_run_keeps_what_is_finished(quick: Callable[..., Any], fakes: Fakes, folder: Path) -> None:
    first = quick()
    assert quick() == first
    assert fakes.calls == ["good"]
    changed = quick(settings={"good": {"rate": 0.75}})
    assert changed["good"]["score"] == 0.75
    assert "--set good.rate=0.75" in changed["about"]["command"]
    assert fakes.calls == ["good"] * 2
    quick(settings={"good": {"rate": 0.75}}, overwrite=True)
    assert fakes.calls == ["good"] * 3
    other = evaluate_model(folder, ["knn"], limit=24, pictures=False, progress=False, overwrite=True)
    assert set(strict(folder / "results.json")) == {"knn", "about"}  # other images: what was there is of no use
    both = evaluate_model(folder, ["good"], limit=24, pictures=False, progress=False)
    assert "knn" not in both  # what was asked for is returned, and what is known is kept
    kept = strict(folder / "results.json")
    assert kept["knn"] == other["knn"]
    assert "--tasks knn,good" in kept["about"]["command"]


@pytest.mark.parametrize(
    ("keywords", "told"),
    [
        ({"seed": 1}, "seed 0 instead of 1"),
        ({"limit": 9}, "limit 8 instead of 9"),
        ({"bootstrap": 7}, "bootstrap 1000"),
    ],
)
def test_other_measurements_are_not_mixed(quick: Callable[..., Any], folder: Path, keywords: Any, told: str) -> None:
    quick()
    before = (folder / "results.json").read_bytes()
    with pytest.raises(ValueError, match=f"results.json holds results of another measurement.*{told}"):
        quick(**keywords)
    assert (folder / "results.json").read_bytes() == before
    quick(**keywords, overwrite=True)


def test_results_of_other_weights_are_not_kept(quick: Callable[..., Any], folder: Path) -> None:
    quick()
    small_model(seed=1).save_pretrained(folder)
    with pytest.raises(ValueError, match="another measurement .weights"):
        quick()


def test_results_written_by_hand_are_not_destroyed(quick: Callable[..., Any], folder: Path) -> None:
    for content, told in (('{"knn": {"accuracy": 0.7}}', "another measurement"), ("[1]", "another"), ("{", "not JSON")):
        (folder / "results.json").write_text(content)
        with pytest.raises(ValueError, match=told):
            quick()
        assert (folder / "results.json").read_text() == content


INTERRUPTED = """
import sys, time
from types import ModuleType
from tests.evaluation.test_evaluate import FAKES, FakeSettings
from hf_geossl.cli.main import main
from hf_geossl.evaluation.protocol import EvaluationProtocol, TaskResult
from hf_geossl.evaluation.registry import TASKS, Task

def quick(*_):
    return TaskResult({"score": 0.5})

def slow(*_):
    print("measuring", flush=True)
    time.sleep(60)

module = ModuleType(FAKES)
module.PROTOCOLS = {"quick": EvaluationProtocol(quick, FakeSettings), "slow": EvaluationProtocol(slow, FakeSettings)}
sys.modules[module.__name__] = module
TASKS.update(quick=Task("quick", "fakes", ""), slow=Task("slow", "fakes", ""))
sys.exit(main(["evaluate", sys.argv[1], "--tasks", "quick,slow", "--limit", "4"]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_an_interrupt_loses_nothing_finished(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    process = forked.start(INTERRUPTED, str(folder), output=tmp_path / "pipe")
    try:
        with (tmp_path / "pipe").open() as pipe:
            assert "measuring\n" in iter(pipe.readline, "")
            start = time.monotonic()
            assert process.pid is not None
            os.kill(process.pid, signal.SIGINT)
            told = pipe.read()
        process.join(30)
    finally:
        process.kill()
    assert time.monotonic() - start < 20
    assert process.exitcode == 130
    assert "interrupted" in told
    assert "Traceback" not in told
    kept = strict(folder / "results.json")
    assert kept["quick"]["score"] == 0.5
    assert "slow" not in kept
    assert [path.name for path in folder.glob(".*")] == []


# ---- which images, which weights ----


def test_clips_of_a_folder_are_measured(folder: Path, tmp_path: Path) -> None:
    """DAVIS has no train and test folders; its split is one of its lists."""
    rng = np.random.default_rng(0)
    for clip in ("one", "two", "three"):
        for kind in ("JPEGImages", "Annotations"):
            (tmp_path / "davis" / kind / "480p" / clip).mkdir(parents=True)
        for frame in range(3):
            place = tmp_path / "davis" / "JPEGImages" / "480p" / clip / f"{frame:05}.png"
            Image.fromarray(rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(place)
            mask = np.zeros((32, 48), np.uint8)
            mask[8:20, 10 + frame : 30 + frame] = 1
            Image.fromarray(mask).save(tmp_path / "davis" / "Annotations" / "480p" / clip / f"{frame:05}.png")
    lists = tmp_path / "davis" / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("one\ntwo\n")
    words = [
        "--tasks",
        "propagation,knn",
        "--dataset",
        str(tmp_path / "davis"),
        "--test_split",
        "val",
        "--bootstrap",
        "20",
    ]
    words += ["--set", "propagation.side=32", "--no_cache"]
    assert main(["evaluate", str(folder), *words]) == 1  # clips have no classes
    results = strict(folder / "results.json")
    assert results["propagation"]["details"]["clips"] == 2
    assert 0 <= results["propagation"]["j_and_f_mean"] <= 1
    assert "it holds clips, which only the task propagation reads" in results["about"]["failed"]["knn"]
    [first, *_] = read_results(results)
    assert (first.counted, first.data) == ("2 clips", "davis (val), 2 clips")
    (lists / "val.txt").write_text("one\n")  # other data, which are noticed
    with pytest.raises(ValueError, match="results of another measurement"):
        evaluate_model(folder, ["propagation"], str(tmp_path / "davis"), test_split="val", progress=False)


def test_the_images_that_a_task_has_seen_are_those_of_the_card() -> None:
    results = {
        "about": {"dataset": "scenes", "config_name": "topdown", "split": "test", "images": 60},
        "knn": {"accuracy": 0.5},
        "equivariance": {"rotation_r2_ridge": 0.1, "details": {"test_images": 20}},
        "segmentation": {"mean_iou": 0.1, "details": {"images": 40}},
        "propagation": {"j_mean": 0.3, "details": {"clips": 3}},
    }
    read = {result.task: result for result in read_results(results)}
    assert {task: result.data for task, result in read.items()} == {
        "knn": "scenes, topdown (test), 60 images",
        "equivariance": "scenes, topdown (test), 20 images",
        "segmentation": "scenes, topdown (test), 40 images",
        "propagation": "scenes, topdown (test), 3 clips",
    }
    assert [entry.dataset_config for entry in model_index(list(read.values()))] == ["topdown"] * 4
    assert "3 clips" in eval_results([read["propagation"]])[0]["notes"]


def test_results_of_other_weights_are_not_published(
    quick: Callable[..., Any], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quick()
    with model_files(folder, "user/name") as files:
        assert "results.json" in files
    small_model(seed=1).save_pretrained(folder)
    with caplog.at_level(logging.WARNING), model_files(folder, "user/name") as files:
        assert "results.json" not in files
        assert "score" not in files["README.md"].decode()  # type: ignore[union-attr]
    assert "the results are of other weights than run holds now: measure again" in caplog.text
    with (
        pytest.raises(ValueError, match="are of other weights"),
        model_files(folder, "user/name", results=folder / "results.json"),
    ):
        pass


def test_tasks_may_come_from_a_generator(quick: Callable[..., Any]) -> None:
    assert quick(name for name in ["good"])["good"]["score"] == 0.5
    assert "good" in quick(name for name in ["good", "bad"])["about"]["command"]
    assert "position" in quick(name for name in ["position"])["about"]["failed"]


def test_numbers_stay_where_measuring_them_again_fails(
    quick: Callable[..., Any], fakes: Fakes, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick()
    good = load_protocol("good")
    monkeypatch.setitem(sys.modules[FAKES].PROTOCOLS, "good", replace(good, measure=fakes.bad))
    quick(overwrite=True)
    assert strict(folder / "results.json")["good"]["score"] == 0.5


def test_the_command_tells_what_was_asked_for(quick: Callable[..., Any]) -> None:
    command = quick(device="cpu", trust_remote_code=True)["about"]["command"]
    assert " --device cpu --trust_remote_code" in command


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
        ({"bootstrap": -1}, "bootstrap must be at least 0, got -1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"device": "nix"}, "the device 'nix' cannot be used here"),
    ],
)
def test_wrong_numbers_are_named_before_anything_is_measured(
    quick: Callable[..., Any], fakes: Fakes, given: Any, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        quick(**given)
    assert not fakes.calls


# ---- what is told ----


def test_a_task_that_fails_is_told_and_the_others_go_on(
    quick: Callable[..., Any], fakes: Fakes, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        results = quick("odd,bad,good")
    assert fakes.calls == ["bad", "good"]
    assert results["good"]["score"] == 0.5
    assert "bad" not in results
    failed = results["about"]["failed"]
    assert failed["bad"] == "scenes has no maps of depth: name (local path) or another column"
    assert failed["odd"] == "odd needs a_package_that_nobody_has, which is missing: pip install 'hf_geossl[eval]'"
    assert "run, bad was not measured: scenes has no maps" in caplog.text
    assert main(["evaluate", str(folder), "--tasks", "bad,good", "--limit", "8", "--no_pictures"]) == 1
    assert main(["evaluate", str(folder), "--tasks", "good", "--limit", "8", "--no_pictures"]) == 0
    assert strict(folder / "results.json")["about"]["failed"] == {}


def test_packages_that_all_tasks_lack_are_said_once_and_nothing_is_written(
    quick: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(name: str) -> EvaluationProtocol:
        raise ImportError(f"{name} needs a_package")

    monkeypatch.setattr("hf_geossl.evaluation.evaluate.load_protocol", lacking)
    with pytest.raises(ImportError, match="^good needs a_package$"):
        quick("odd,good")
    assert not (folder / "results.json").exists()


def test_a_task_that_fails_with_new_settings_has_no_numbers_of_old_ones(
    quick: Callable[..., Any],
    fakes: Fakes,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert quick()["good"]["score"] == 0.5
    good = load_protocol("good")
    monkeypatch.setitem(sys.modules[FAKES].PROTOCOLS, "good", replace(good, measure=fakes.bad))
    assert quick()["good"]["score"] == 0.5  # kept, it is of these settings
    with caplog.at_level(logging.WARNING):
        results = quick(settings={"good": {"rate": 0.75}})
    assert "good" not in results
    assert "good" in results["about"]["failed"]
    assert "its former numbers, of other settings, are dropped" in caplog.text
    assert set(strict(folder / "results.json")) == {"about"}


def test_all_tasks_leave_out_those_that_the_model_has_no_head_for(
    fakes: Fakes, folder: Path, few_tasks: None, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(folder), "--limit", "8", "--no_pictures"]
    assert main([*words, "--tasks", "all"]) == 0
    told = capfd.readouterr().err
    assert "position is left out: position needs the training head of a LOCAForPreTraining" in told
    results = strict(folder / "results.json")
    assert set(results) == {"good", "about"}
    assert results["about"]["failed"] == {}
    for named, status in (("position", 2), ("all,position", 1)):
        assert main([*words, "--tasks", named]) == status
        assert "position" in strict(folder / "results.json")["about"]["failed"]


def test_pictures_are_drawn_and_one_that_fails_costs_no_number(
    fakes: Fakes, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    results = evaluate_model(folder, ["good"], limit=8, progress=False)
    assert results["good"]["score"] == 0.5
    assert results["good"]["pictures"] == {"square": "results/good_square.png"}
    assert Image.open(folder / "results" / "good_square.png").getpixel((4, 4)) == (255, 0, 0)
    features = Image.open(folder / results["about"]["pictures"]["features"])
    assert features.width > features.height
    assert "the picture good_broken.png was not drawn" in caplog.text
    assert sorted(path.name for path in (folder / "results").iterdir()) == ["features.png", "good_square.png"]
    assert evaluate_model(folder, ["good"], limit=8, progress=False) == results


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--tasks", "kn"], "there is no task 'kn'; did you mean 'knn'?"),
        (["--tasks", "zzzz"], "there is no task 'zzzz'; tasks are knn, linear"),
        (["--set", "knn.temprature=1"], "knn has no setting 'temprature'; did you mean 'temperature'?"),
        (["--set", "knn.temperature=warm"], "knn.temperature must be float, such as 0.07, got 'warm'"),
        (
            ["--set", "linear.feature=1", "--tasks", "knn"],
            "settings are given for linear, which is not among the tasks",
        ),
        (["--set", "temperature=1"], "--set takes TASK.SETTING=VALUE"),
        (["--report", "page.pdf"], "a report is an .html page or an .md table, got 'page.pdf'"),
        (["--image_size", "30"], "image_size must be a multiple of the patch size 8, got 30; 32 is the nearest"),
        (["--dataset", "no/such/place"], "no/such/place|place"),
        (["--limit", "0"], "limit must be at least 1, got 0"),
    ],
)
def test_wrong_words_get_one_line(folder: Path, words: list[str], told: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(folder), *words, "--no_pictures"]) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert re.search(told if "|" in told else re.escape(told), lines[0])
    assert not (folder / "results.json").exists()


def test_several_models_go_to_files_of_their_own(
    fakes: Fakes, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small_model(seed=1).save_pretrained(tmp_path / "other" / "run")
    models = [str(folder), str(tmp_path / "other" / "run"), str(tmp_path / "missing")]
    words = ["--tasks", "good", "--limit", "8", "--no_pictures", "--output", str(tmp_path / "out")]
    assert main(["evaluate", *models, *words]) == 1  # one is missing, and the others are measured
    told = capfd.readouterr()
    assert "missing is no model" in told.err
    assert re.search(r"^ +run +run \(2\)$", told.out, re.MULTILINE)
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == ["run.json", "run_2.json"]
    prints = {strict(file)["about"]["model_fingerprint"] for file in files}
    assert len(prints) == 2
    assert main(["evaluate", *models[:2], *words[:-1], str(tmp_path / "one.json")]) == 2
    assert "--output must be a folder" in capfd.readouterr().err


def test_an_unknown_keyword_is_named(folder: Path) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'limits'"):
        evaluate_model(folder, ["knn"], limits=3)  # type: ignore[call-arg]
