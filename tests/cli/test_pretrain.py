"""`geossl pretrain`: runs on real input in three formats, what they leave, and errors of one line before they start."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModel

from hf_geossl.cli.arguments import DataArguments
from hf_geossl.cli.main import main
from hf_geossl.cli.pretrain import make_training_arguments, open_probes
from hf_geossl.cli.pretrain_arguments import parse_pretrain
from hf_geossl.cli.pretrain_model import make_config
from hf_geossl.cli.usage import UsageError
from hf_geossl.modeling.image_format import ImageFormat
from tests.helpers import forked
from tests.helpers.photographs import pieces, write_folder
from tests.helpers.small_recipes import SMALL, SMALL_EQUICOHERENT, SMALL_LOCA, error_line

COMMAND = """
import os, sys
from hf_geossl.cli.main import main

os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
main(sys.argv[1:])
"""
OPEN_ELSEWHERE = """
import sys
sys.modules["hf_geossl"] = None  # not importable
import torch
from transformers import AutoImageProcessor, AutoModel
from PIL import Image
for folder in sys.argv[1:]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    inputs = AutoImageProcessor.from_pretrained(folder)(Image.new("RGB", (50, 40), "red"), return_tensors="pt")
    print(model(**inputs).last_hidden_state.double().abs().sum().item())
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "output_dir": str(tmp_path / "run")}))
    return path


def test_main_job_on_photographs_in_three_formats(tmp_path: Path, recipe: Path) -> None:
    """A folder of JPEG, a parquet and a WebDataset of the same photographs; then AutoModel without the package."""
    folder = write_folder(tmp_path / "jpeg", 40)
    files = sorted(folder.iterdir())
    table = pa.table({"picture": [{"bytes": path.read_bytes(), "path": path.name} for path in files]})
    pq.write_table(table, tmp_path / "photos.parquet", row_group_size=10)
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for path in files:
            archive.add(path, arcname=path.name)
    runs = {"jpeg": "jpeg", "parquet": "photos.parquet", "tar": "photos.tar"}
    for name, data in runs.items():
        arguments = ["--dataset", str(tmp_path / data), "--output_dir", str(tmp_path / f"run-{name}")]
        arguments += ["--image_column", "picture"] if name == "parquet" else []
        assert main(["pretrain", str(recipe), *arguments]) == 0
    folders = [tmp_path / f"run-{name}" for name in runs]
    expected = []
    for path in folders:
        from PIL import Image
        from transformers import AutoImageProcessor

        inputs = AutoImageProcessor.from_pretrained(path)(Image.new("RGB", (50, 40), "red"), return_tensors="pt")
        expected.append(AutoModel.from_pretrained(path)(**inputs).last_hidden_state.double().abs().sum().item())
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(
        [sys.executable, "-c", OPEN_ELSEWHERE, *map(str, folders)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert [float(line) for line in process.stdout.split()] == pytest.approx(expected, rel=1e-6)
    assert len({round(value, 3) for value in expected}) == 3  # other orders, other weights


def test_quickstart_takes_a_folder_of_photographs(tmp_path: Path) -> None:
    """The README's line for one's own images, with the recipe as it is shipped."""
    arguments = ["--dataset", str(write_folder(tmp_path / "jpeg", 12)), "--output_dir", str(tmp_path / "run")]
    small = ["--max_steps", "1", "--per_device_train_batch_size", "4", "--dataloader_num_workers", "0"]
    small += ["--report_to", "none", "--base_learning_rate", "none", "--learning_rate", "0.001"]
    assert main(["pretrain", "quickstart", *arguments, *small]) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| data | jpeg (folder) |" in card
    assert str(tmp_path) not in card


def test_run_ends_with_the_model_two_lines_and_a_picture(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", str(recipe), "--dataset", "scenes", "--dataset_config", "scene-48"]) == 0
    out = capsys.readouterr().out
    assert f'model = AutoModel.from_pretrained("{tmp_path / "run"}", trust_remote_code=True)' in out
    assert "from transformers import AutoModel" in out
    from PIL import Image

    with Image.open(tmp_path / "run" / "features.png") as picture:
        assert picture.size == (6 + 6 * 174, 6 + 3 * 204)
        assert len(picture.getcolors(1 << 20)) > 500
    assert torch.isfinite(AutoModel.from_pretrained(tmp_path / "run")(torch.zeros(1, 3, 32, 32)).pooler_output).all()


def test_folder_that_holds_a_run_is_refused_and_resumed_on_request(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs = ["--dataset", str(write_folder(tmp_path / "jpeg", 20))]
    assert main(["pretrain", str(recipe), *photographs]) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    capsys.readouterr()
    message = error_line(capsys, "pretrain", str(recipe), *photographs)
    assert "is not empty: choose another --output_dir, or go on with the run in it" in message
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert main(["pretrain", str(recipe), *photographs, "--max_steps", "6", "--resume_from_checkpoint", "true"]) == 0
    state = json.loads((tmp_path / "run" / "checkpoint-6" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "crop_loss" in entry] == [2, 4, 6]


def test_resume_without_a_checkpoint_starts_from_the_beginning(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs = ["--dataset", str(write_folder(tmp_path / "jpeg", 20)), "--max_steps", "1"]
    assert main(["pretrain", str(recipe), *photographs, "--resume_from_checkpoint", "true"]) == 0
    assert "has no whole checkpoint yet: the run starts from the beginning" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "what"), [("nowhere", "is no folder"), (".", r"is no checkpoint (it has no config.json)")]
)
def test_resume_from_what_is_no_checkpoint(
    folder: str, what: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / folder)
    message = error_line(capsys, "pretrain", str(recipe), "--resume_from_checkpoint", place)
    assert f"--resume_from_checkpoint {place} {what}: name a folder checkpoint-N of a run, or true" in message


def test_resume_in_a_strangers_folder_is_refused(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "README.md").write_text("my precious")
    message = error_line(capsys, "pretrain", str(recipe), "--resume_from_checkpoint", "true")
    assert "has no whole checkpoint to go on from, and other files (README.md)" in message
    assert (tmp_path / "run" / "README.md").read_text() == "my precious"


def test_interrupt_saves_a_checkpoint_and_says_how_to_go_on(tmp_path: Path, recipe: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "hf_geossl.cli", "pretrain", str(recipe), "--max_steps", "100000"]
    command += ["--dataset", str(write_folder(tmp_path / "jpeg", 20)), "--save_steps", "100000"]
    command += ["--dataloader_num_workers", "1"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (run / ".features" / "input.safetensors").is_file():  # written where training begins
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: workers get it too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err[-2000:]
    assert "Traceback" not in err
    assert "--resume_from_checkpoint true" in out
    assert "stopped at step" in out
    assert (run / f"checkpoint-{out.split('stopped at step ')[1].split('.')[0]}" / "COMPLETE.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "pieces_of_the_message"),
    [
        (["--max_stesp", "3"], ["--max_stesp", "did you mean '--max_steps'?"]),
        (["--max_steps", "many"], ["--max_steps", "'many'"]),
        (["--hiden_size", "3"], ["did you mean '--hidden_size'?"]),
        (["--optim", "adamw_torhc"], ["--optim", "did you mean 'adamw_torch'?"]),
        (["--clip_mode", "tensors"], ["clip_mode must be 'tensor' or 'global', got 'tensors'"]),
        (["--teacher_momentum", "2"], ["teacher_momentum must be in [0, 1], got 2.0"]),
        (["--local_size", "20"], ["local_size of the views must be a multiple of the patch size 8, got 20"]),
        (
            ["--learning_rate", "0.5", "--base_learning_rate", "0.1"],
            ["learning_rate=0.5 and base_learning_rate=0.1", "were both given"],
        ),
        (["--patch_size", "0"], ["geossl: patch_size must be at least 1, got 0"]),
        (["--num_attention_heads", "3"], ["hidden_size must be a multiple of num_attention_heads, got 32 and 3"]),
        (["--dataset", "no/where/at/all"], ["no/where/at/all"]),
        (["--image_column", "picture", "--dataset", "PARQUET"], ["picture", "image"]),
        (["--dataset", "EMPTY"], ["EMPTY"]),
        (["--dataset_config", "sceen-48"], ["sceen-48"]),
    ],
)
def test_wrong_arguments_give_one_line(
    arguments: list[str],
    pieces_of_the_message: list[str],
    tmp_path: Path,
    recipe: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "EMPTY").mkdir()
    pq.write_table(pa.table({"image": pieces(4)}), tmp_path / "PARQUET.parquet")
    replaced = {"EMPTY": str(tmp_path / "EMPTY"), "PARQUET": str(tmp_path / "PARQUET.parquet")}
    message = error_line(capsys, "pretrain", str(recipe), *(replaced.get(word, word) for word in arguments))
    for piece in pieces_of_the_message:
        assert piece in message
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_bf16_without_a_gpu_is_said_with_what_to_do(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: False)
    message = error_line(capsys, "pretrain", str(recipe), "--bf16", "true", "--use_cpu", "false")
    assert "no GPU here computes in it: --bf16 false trains in float32" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reference_size", "48"], "reference_size of the views must be the model's image_size 32, got 48"),
        (["--focal_size", "20"], "focal_size must be a multiple of patch_size = 8 pixels, got 20"),
        (["--patch_size", "12"], "image_size"),
        (["--blur", "on"], "blur must be 'off'"),
        (["--local_size", "16"], "unknown argument --local_size; did you mean '--focal_size'?"),
        (["--visible_reference_ratio", "-2"], "visible_reference_ratio must be 0 or more, got -2.0"),
        (["--reference_selection", "last"], "reference_selection must be one of consecutive, unstructured, first"),
    ],
)
def test_wrong_loca_arguments_give_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump({**SMALL_LOCA, "output_dir": str(tmp_path / "run"), "eval_strategy": "no"}))
    assert message in error_line(capsys, "pretrain", str(recipe), *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "ibott"], "host must be one of ibot, dinov2, dino, vicreg, simclr, got 'ibott'"),
        (["--transformation", "warp"], "transformation must be one of se2, rotation, translation, color, blur, None"),
        (["--equivariant_features", "48"], "equivariant_features must be at least 1 and below patch_features=48"),
        (
            ["--host", "dino", "--model_split", "logits"],
            "split='logits' divides the outputs of iBOT's head, got host='dino'",
        ),
        (["--model_split", "channels"], "split must be one of feature, logits, got 'channels'"),
        (["--centering", "sinkhorn"], "centering='sinkhorn' is DINOv2's, got host='ibot'"),
        (
            ["--host", "vicreg", "--num_local", "2"],
            "num_local must be 0 for the host 'vicreg', which takes no local views",
        ),
        (["--local_size", "20"], "local_size must be a multiple of patch_size = 8 pixels, got 20"),
        (["--padding_mode", "black"], "padding_mode"),
        (["--num_intermediate", "-1"], "num_intermediate must be 0 or more, got -1"),
        (["--reconstruction_weight", "-1"], "reconstruction_weight must be 0 or more, got -1"),
        (["--learning_rate_scaling", "root"], "learning_rate_scaling must be 'linear' or 'sqrt', got 'root'"),
        (["--layer_decay", "0"], "layer_decay must be above 0 and at most 1, got 0.0"),
        (["--patch_embed_learning_rate", "3"], "patch_embed_learning_rate must be above 0 and at most 1, got 3.0"),
        (["--freeze_last_layer", "-1"], "freeze_last_layer must be 0 or more, got -1.0"),
        (["--teacher_temperature_start", "0"], "teacher_temperature_start must be above 0, got 0.0"),
        (["--teacher_temperature_warmup", "-0.1"], "teacher_temperature_warmup must be 0 or more, got -0.1"),
        (["--rotation_weight", "1"], "unknown argument --rotation_weight"),
        (
            ["--host", "dinov2", "--per_device_train_batch_size", "1"],
            "batch_size must be 2 or more, host 'dinov2' compares",
        ),
        (
            ["--host", "vicreg", "--per_device_train_batch_size", "1"],
            "batch_size must be 2 or more, host 'vicreg' compares",
        ),
        (
            ["--host", "simclr", "--num_intermediate", "0", "--per_device_train_batch_size", "1"],
            "batch_size must be 2 or more, host 'simclr' compares",
        ),
    ],
)
def test_wrong_equicoherent_arguments_give_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump({**SMALL_EQUICOHERENT, "output_dir": str(tmp_path / "run")}))
    photographs = ["--dataset", str(write_folder(tmp_path / "jpeg", 8))]
    assert message in error_line(capsys, "pretrain", str(recipe), *photographs, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model_split", "channels"], "model_split must be one of feature, logits, got 'channels'"),
        (
            ["--host", "dino", "--model_split", "logits"],
            "model_split='logits' divides the outputs of iBOT's head, got host='dino'",
        ),
        (
            ["--model_split", "logits"],
            "num_prototypes must be patch_features - equivariant_features = 192 where model_split='logits', got 128; "
            "leave it out or set it to none",
        ),
        (["--num_intermediate", "-1"], "num_intermediate must be 0 or more, got -1"),
    ],
)
def test_errors_of_the_configuration_are_in_the_words_of_the_command_line(arguments: list[str], message: str) -> None:
    """`--split` is the data's; what the message advises is right."""
    on_ibot = ["equicoherent_quickstart", "--host", "ibot", "--num_prototypes", "128"]
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        make_config(parse_pretrain([*on_ibot, *arguments]))
    config = make_config(parse_pretrain([*on_ibot, "--model_split", "logits", "--num_prototypes", "none"]))
    assert (config.split, config.num_prototypes) == ("logits", 192)


def test_loca_on_photographs_is_measured_on_held_out_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder with train and validation photographs; the result opens where the package is not installed."""
    write_folder(tmp_path / "jpeg" / "train", 24)
    write_folder(tmp_path / "jpeg" / "validation", 10)
    recipe = tmp_path / "small.yaml"
    # YAML's other 'off' is a word here
    recipe.write_text(yaml.safe_dump({**SMALL_LOCA, "output_dir": str(tmp_path / "run")}) + "blur: off\n")
    data = ["--dataset", str(tmp_path / "jpeg"), "--eval_dataset", str(tmp_path / "jpeg"), "--eval_images", "9"]
    assert main(["pretrain", str(recipe), *data]) == 0
    out = capsys.readouterr().out
    history = json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert "eval_location_accuracy" in next(entry for entry in history if "eval_loss" in entry)  # eval_strategy steps
    line = re.search(r"position accuracy on 9 held-out images of jpeg \(validation\): ([\d.]+) %, chance 6\.2 %", out)
    assert line is not None, out[-500:]
    card = (tmp_path / "run" / "README.md").read_text()
    assert "On 9 images of jpeg (validation) after step 4" in card
    accuracy = re.search(r"\| location accuracy \| ([\d.]+) \(chance level: 0.0625\) \|", card)
    assert accuracy is not None
    assert 100 * float(accuracy.group(1)) == pytest.approx(float(line.group(1)), abs=0.06)
    assert f"Where queries are found: {tmp_path / 'run' / 'positions.png'}" in out
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(
        [sys.executable, "-c", OPEN_ELSEWHERE, str(tmp_path / "run")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    from PIL import Image
    from transformers import AutoImageProcessor

    run = tmp_path / "run"
    inputs = AutoImageProcessor.from_pretrained(run)(Image.new("RGB", (50, 40), "red"), return_tensors="pt")
    expected = AutoModel.from_pretrained(run)(**inputs).last_hidden_state.double().abs().sum().item()
    assert float(process.stdout) == pytest.approx(expected, rel=1e-6)


def test_gtsa_prints_its_losses_on_held_out_images(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a plain folder, which has no part called validation."""
    held_out = ["--eval_dataset", str(write_folder(tmp_path / "others", 9)), "--eval_images", "8"]
    assert main(["pretrain", str(recipe), *held_out, "--dataset_config", "scene-48", "--picture", "false"]) == 0
    parts = r"loss (\S+), crop (\S+), correspondence (\S+), rotation (\S+)"
    found = re.search(rf"losses on 8 held-out images of others \(train\): {parts}", capsys.readouterr().out)
    card = (tmp_path / "run" / "README.md").read_text()
    rotation = re.search(r"\| rotation loss \| ([\d.]+) \(chance level: 1.3863\) \|", card)
    assert found is not None
    assert rotation is not None
    assert float(rotation.group(1)) == pytest.approx(float(found.group(4)), abs=6e-4)


def test_missing_held_out_images_are_named_before_training(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given, message in (
        (["--eval_dataset", "no/where/at/all"], "no/where/at/all"),
        (["--eval_dataset", "scenes", "--eval_images", "0"], "--eval_images must be at least 1, got 0"),
        (["--eval_dataset", "scenes", "--eval_split", "valid"], "valid"),
    ):
        assert message in error_line(capsys, "pretrain", str(recipe), *given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("place", "warning", "remedy"),
    [
        (
            "hf_geossl.training.trainer:TeacherStudentTrainer.evaluate",
            "the evaluation could not be made (ZeroDivisionError: broken)",
            "geossl evaluate",
        ),
        (
            "hf_geossl.training.outputs.exporter:write_card",
            "the model card could not be made (ZeroDivisionError: broken)",
            "geossl card",
        ),
        (
            "hf_geossl.training.pictures.base:FeaturePicture.draw",
            "could not be made (ZeroDivisionError: broken)",
            "",
        ),
    ],
)
def test_what_fails_after_the_training_is_a_line_and_the_model_is_there(
    place: str,
    warning: str,
    remedy: str,
    tmp_path: Path,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("broken")

    module, _, attribute = place.partition(":")
    monkeypatch.setattr(f"{module}.{attribute}", fail)
    held_out = ["--eval_dataset", "scenes", "--eval_images", "8", "--dataset_config", "scene-48", "--max_steps", "1"]
    assert main(["pretrain", str(recipe), *held_out]) == 0
    assert AutoModel.from_pretrained(tmp_path / "run").config.hidden_size == 32
    lines = [record.getMessage() for record in caplog.records if warning in record.getMessage()]
    assert len(set(lines)) == 1, caplog.text
    assert remedy in lines[0]
    assert "The model is in" in capsys.readouterr().out
    monkeypatch.undo()
    assert main(["card", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "README.md").is_file()


def test_trackers_know_a_run_by_its_folder_unless_it_has_a_name() -> None:
    quick = ["quickstart", "--output_dir", "runs/first"]
    assert make_training_arguments(parse_pretrain(quick)).run_name == "first"
    assert make_training_arguments(parse_pretrain([*quick, "--run_name", "mine"])).run_name == "mine"


def test_lines_of_a_redirected_run_arrive_while_it_trains(tmp_path: Path, recipe: Path) -> None:
    words = ["pretrain", str(recipe), "--max_steps", "100000", "--dataset", "scenes", "--dataset_config", "scene-48"]
    os.mkfifo(tmp_path / "pipe")
    process = forked.start(COMMAND, *words, "--picture", "false", "--logging_steps", "1", output=tmp_path / "pipe")
    try:
        with (tmp_path / "pipe").open() as pipe:
            lines = [line for line, _ in zip(pipe, range(3), strict=False)]
            assert process.is_alive()  # 100,000 steps are not done
    finally:
        process.kill()
        process.join()
    assert lines[0].startswith(f"{tmp_path / 'run'}: ")
    assert [line.split(":")[0] for line in lines[1:]] == ["step 1", "step 2"]


def test_nothing_but_sentences_is_printed(tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No raw dictionary of transformers' own callbacks, neither while it trains nor at the end."""
    held_out = ["--eval_dataset", "scenes", "--eval_images", "8", "--eval_strategy", "steps", "--eval_steps", "2"]
    assert main(["pretrain", str(recipe), *held_out, "--dataset_config", "scene-48"]) == 0
    captured = capsys.readouterr()
    assert "{'" not in captured.out + captured.err
    assert "step 4, 8 held-out images: loss" in captured.out


def test_scenes_have_labelled_probes_by_default_and_others_where_they_are_named(tmp_path: Path) -> None:
    rgb, photographs = ImageFormat(), str(write_folder(tmp_path / "photographs", 4))
    assert open_probes(DataArguments(), 32, rgb).load(3, 32).name == "scenes (validation)"
    topdown = open_probes(DataArguments(dataset_config="topdown-96"), 32, rgb)
    assert topdown.load(3, 32).name == "scenes, topdown (validation)"
    assert open_probes(DataArguments(probe_dataset="off"), 32, rgb) is None
    assert open_probes(DataArguments(dataset=photographs), 32, rgb) is None
    with pytest.raises(ValueError, match="no 'label'|split"):
        open_probes(DataArguments(probe_dataset=photographs), 32, rgb)
