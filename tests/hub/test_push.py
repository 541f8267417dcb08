"""Publishing through a real HTTP server that speaks the Hub's protocol, by the real client."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.utils import _http
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageClassification, TrainerCallback, pipeline

import hf_geossl
from hf_geossl import PublishError, load_for_pretraining, load_stream, publish
from hf_geossl.cli.main import main
from hf_geossl.data import retries
from hf_geossl.data.evaluation_batches import FirstImages
from hf_geossl.hub.card import render_card
from hf_geossl.hub.written_card import is_rendered, sign_card
from tests.helpers import loca_run
from tests.helpers.gtsa_run import make_trainer
from tests.helpers.hub_server import READ_TOKEN, STRANGER_TOKEN, WRITE_TOKEN, HubServer, Token
from tests.helpers.methods import METHODS, randomise
from tests.helpers.photographs import write_folder

TOKEN_IN_TEXT = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz0123"
MODELING = Path(hf_geossl.modeling.__file__).parent


def code_needed(method: str) -> set[str]:
    """Names of the modules that Python imports, however deep, when those of an `auto_map` are imported."""
    waiting = [entry.partition(".")[0] for entry in METHODS[method].kind("Model").auto_map.values()]
    needed: set[str] = set()
    while waiting:
        module = waiting.pop()
        if module not in needed:
            needed.add(module)
            tree = ast.parse((MODELING / f"{module}.py").read_text(encoding="utf-8"))
            imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
            waiting += [node.module for node in imports if node.module]
    return needed


CODE = {method: code_needed(method) for method in METHODS}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that this process's client talks to; nobody waits between attempts."""
    with HubServer(tmp_path / "hub") as server:
        clock = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
        monkeypatch.setattr(_http, "time", clock)
        monkeypatch.setattr(retries, "sleep", lambda seconds: None)
        server.take_client(monkeypatch)
        yield server
    assert not server.errors


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "photos", 12)


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves that was measured on held-out images and had something to hide in its arguments."""
    folder = tmp_path_factory.mktemp("runs") / "my-run"
    trainer = loca_run.make_trainer(
        folder, str(photos), eval_dataset=FirstImages(load_stream(str(photos)), 8), logging_steps=2, picture=True,
        run_name=f"{TOKEN_IN_TEXT} of /home/alice/photos <script>alert(1)</script>", save_steps=2, hub_token="s3cr3t-x9",
    )  # fmt: skip
    trainer.command = f"geossl pretrain x --dataset {photos} --hub_token {TOKEN_IN_TEXT} --run_name '<b>| x'"
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "my-run"))


def commits(hub: HubServer, repo: str = "tester/m", **kwargs: Any) -> list[dict[str, Any]]:
    return hub.commits(repo, **kwargs)


def sent(hub: HubServer, method: str, part: str) -> int:
    return sum(request.method == method and part in request.path for request in hub.requests)


# ---- What arrives


def test_a_run_arrives_whole_in_one_commit(hub: HubServer, run: Path) -> None:
    found = publish(run, "tester/m", license="cc-by-4.0")
    assert len(commits(hub)) == 2  # the empty repository's, and ours
    assert found.commit == commits(hub)[0]["id"]
    files = hub.files("tester/m")
    del files[".gitattributes"]
    code = {f"{name}.py" for name in CODE["loca"]}
    assert set(files) == code | {
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json", "features.png", "positions.png",
        "training_run.json", "training_args.yaml",
    }  # fmt: skip
    assert {file.path: (file.size, file.state) for file in found.files} == {
        path: (len(content), "new") for path, content in files.items()
    }
    for name in code:
        assert files[name] == (Path(hf_geossl.__file__).parent / "modeling" / name).read_bytes(), name
    assert files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    config = json.loads(files["config.json"])
    assert config["auto_map"] == METHODS["loca"].kind("Model").auto_map
    assert {name.partition(".")[0] for name in config["auto_map"].values()} <= CODE["loca"]
    arguments = yaml.safe_load(files["training_args.yaml"])
    assert (arguments["max_steps"], arguments["base_learning_rate"]) == (4, 5e-2)
    record = json.loads(files["training_run.json"])
    assert (record["steps"], record["images"], record["held_out"]["images"]) == (4, 16, 8)
    assert 0 < record["seconds"] < 600


def test_others_go_on_from_heads_and_teacher(hub: HubServer, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--include_pretraining` sends them beside the trunk; the next push without it takes them away and says so."""
    assert main(["publish", str(run), "tester/m", "--include_pretraining"]) == 0
    files = hub.files("tester/m")
    assert {
        "pretraining/config.json",
        "pretraining/model.safetensors",
        "pretraining/pretraining_loca.py",
    } <= files.keys()
    assert not any(path.startswith("pretraining/") and path.endswith((".md", ".pt", ".pth")) for path in files)
    card = files["README.md"].decode()
    assert "On images of your own it goes on, with its heads and teacher, which are here too, by" in card
    assert "\ngeossl pretrain loca_posttrain --init_from tester/m --dataset path/to/images\n" in card
    model = load_for_pretraining("loca", "tester/m")
    newest = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))[-1]
    expected = load_file(newest / "model.safetensors")
    found = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert model.config.init_from == "tester/m"
    assert main(["publish", str(run), "tester/m"]) == 0
    files = hub.files("tester/m")
    assert not any(path.startswith("pretraining/") for path in files)
    assert "with fresh heads" in files["README.md"].decode()
    shutil.rmtree(newest)
    for path in run.glob("checkpoint-*"):
        shutil.rmtree(path)
    assert main(["publish", str(run), "tester/m", "--include_pretraining"]) == 2
    assert "has no whole checkpoint with heads and teacher: publish it without" in capsys.readouterr().err


def test_nothing_private_arrives(hub: HubServer, run: Path, photos: Path) -> None:
    results = {"knn <i>x</i>": {"accuracy | y": 0.5}, "about": {"command": f"eval {run} --token {TOKEN_IN_TEXT}"}}
    publish(run, "tester/m", results=results)
    for path, content in hub.files("tester/m").items():
        for private in (TOKEN_IN_TEXT, "s3cr3t-x9", "/home/alice", str(photos), str(run), "torch.save", "PK\x03\x04"):
            assert private.encode() not in content, (path, private)
        assert not path.endswith((".bin", ".pt", ".pth", ".pkl"))
    card = hub.files("tester/m")["README.md"].decode()
    body = card.split("---\n", 2)[2]
    assert "<script" not in card
    assert "<b>" not in body
    assert "<i>" not in body
    assert "| knn &lt;i&gt;x&lt;/i&gt; | accuracy &#124; y | 0.5 |" in body
    assert "geossl pretrain x --dataset (local path) (removed) --run_name '?b?| x'" in body


def test_secrets_that_come_into_a_folder_later_do_not_leave_it(hub: HubServer, run: Path) -> None:
    planted = f"{TOKEN_IN_TEXT} of /home/alice"
    checkpoint = max(run.glob("checkpoint-*"))
    for folder, name in ((run, "config.json"), (checkpoint, "config.json"), (run, "preprocessor_config.json"),
                         (checkpoint, "preprocessor_config.json"), (run, "training_run.json")):  # fmt: skip
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(
            json.dumps({**content, "my_note": planted, planted: 1, "_name_or_path": "/home/alice"})
        )
    with (run / "training_args.yaml").open("a") as file:
        file.write(f"note: {planted}\n")
    publish(run, "tester/m", space=True, results={TOKEN_IN_TEXT: {"/home/alice": 1, "x": [planted]}})
    for kind in ("model", "space"):
        for path, content in hub.files("tester/m", kind=kind).items():
            assert TOKEN_IN_TEXT.encode() not in content, path
            if not path.startswith("hf_geossl/"):
                assert b"/home/alice" not in content, path
    assert json.loads(hub.files("tester/m")["config.json"])["my_note"] == "(removed) of (local path)"


def test_labels_stay_as_they_are_and_are_told(hub: HubServer, tmp_path: Path) -> None:
    labels = {0: "/m/0bt9lr", 1: "hf_AbCdEfGhIjKl", 2: "<b>"}
    model = METHODS["gtsa"].model("ForImageClassification", id2label=labels, label2id={v: k for k, v in labels.items()})
    publish(model, "tester/m")
    assert json.loads(hub.files("tester/m")["config.json"])["id2label"] == {str(k): v for k, v in labels.items()}
    card = hub.files("tester/m")["README.md"].decode()
    assert "Says which of 3 classes an image shows: (local path), (removed), &lt;b&gt;." in card


@pytest.mark.parametrize("host", ["vicreg", "dino"])
def test_the_card_of_a_host_alone_speaks_of_no_reconstruction(hub: HubServer, host: str) -> None:
    publish(METHODS["equicoherent"].model("ForPreTraining", host=host, transformation=None), "tester/m")
    card = ModelCard(hub.files("tester/m")["README.md"].decode())
    assert {"vicreg": "2105.04906", "dino": "2104.14294"}[host] in card.text
    assert "2503.18753" not in card.text
    assert "reconstruct" not in card.text.replace("no image is reconstructed", "")
    assert host in card.data.tags


def test_the_code_of_the_card_runs(hub: HubServer, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(run, "tester/m")
    card = hub.files("tester/m")["README.md"].decode().replace("tester/m", str(run))
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (50, 40), "red").save("photo.jpg")
    found: dict[str, Any] = {}
    for block in blocks:
        exec(block, found)
    with torch.no_grad():
        pixels = found["processor"](found["image"], return_tensors="pt").pixel_values
        expected = found["model"](pixels).last_hidden_state
        assert torch.allclose(found["timm_model"].forward_features(pixels), expected, atol=1e-5)


def test_segmentation_models_work_in_the_pipeline(hub: HubServer, tmp_path: Path) -> None:
    publish(randomise(METHODS["loca"].model("ForSemanticSegmentation")), "tester/m")
    for path, content in hub.files("tester/m").items():
        (tmp_path / Path(path).name).write_bytes(content)
    masks = pipeline(ModelCard(hub.files("tester/m")["README.md"].decode()).data.pipeline_tag, model=str(tmp_path))(
        Image.new("RGB", (50, 40))
    )
    assert masks[0]["mask"].size == (50, 40)


def test_the_card_tells_what_was_measured_and_the_hub_reads_it(hub: HubServer, run: Path) -> None:
    results = {
        "knn": {"accuracy": 0.625, "per_class": [1, 2]},
        "linear_segmentation": {"mean_iou": 0.25},
        "about": {"dataset": "scenes", "split": "validation", "images": 512, "command": "geossl evaluate my-run"},
    }
    publish(run, "tester/m", results=results, license="cc-by-4.0")
    files = hub.files("tester/m")
    card, info = files["README.md"].decode(), HfApi(token=WRITE_TOKEN).model_info("tester/m")
    record = json.loads((run / "training_run.json").read_text())
    held_out = {name: entry["measured"] for name, entry in record["held_out"]["values"].items()}
    assert (info.pipeline_tag, info.library_name) == ("image-feature-extraction", "transformers")
    assert {"loca", "custom_code", "self-supervised-learning"} <= set(info.tags)
    data = ModelCard(card).data
    assert data.license == "cc-by-4.0"
    measured = {(entry.task_type, entry.metric_name): entry.metric_value for entry in data.eval_results}
    assert measured == {
        ("image-classification", "knn accuracy"): 0.625,
        ("image-segmentation", "linear segmentation mean iou"): 0.25,
        **{
            ("image-feature-extraction", f"pretraining {name.replace('_', ' ')}"): value
            for name, value in held_out.items()
        },
    }
    for text in (
        'AutoModel.from_pretrained("tester/m", trust_remote_code=True)',
        'AutoModel.from_pretrained("tester/m")',
        "to_timm(model, image_size=32)",
        "| knn | accuracy | 0.625 | scenes (validation), 512 images |",
        "geossl evaluate my-run",
        f"| location accuracy | {held_out['location_accuracy']:.4f} (chance level: 0.0625) |",
        "(positions.png)",
        "The weights are published under cc-by-4.0.",
        "| training time |",
        "| hardware | CPU, ",
        "Caron, Mathilde",
    ):
        assert text in card, text
    assert "N/A" not in card
    assert not re.search(r"\|\s*\|\s*$", card.replace("| | |\n", ""), re.MULTILINE)  # no empty cell
    scenes = yaml.safe_load(files[".eval_results/hf_geossl.yaml"])
    assert [(entry["dataset"]["task_id"], entry["value"]) for entry in scenes] == [
        ("knn.accuracy", 0.625),
        ("linear_segmentation.mean_iou", 0.25),
    ]
    assert scenes[0]["dataset"]["id"] == "hf_geossl/scenes"
    assert "measured by: geossl evaluate my-run" in scenes[0]["notes"]
    assert json.loads(files["results.json"])["knn"]["per_class"] == [1, 2]


def test_a_second_push_sends_what_has_changed(hub: HubServer, run: Path) -> None:
    first = publish(run, "tester/m")
    hub.requests.clear()
    again = publish(run, "tester/m")
    assert again.commit == first.commit
    assert {file.state for file in again.files} == {"unchanged"}
    assert sent(hub, "POST", "/commit/") == sent(hub, "PUT", "") == sent(hub, "POST", "preupload") == 0
    weights = load_file(run / "model.safetensors")
    weights["layernorm.bias"] += 1
    save_file(weights, run / "model.safetensors", metadata={"format": "pt"})
    changed = publish(run, "tester/m")
    assert [file.path for file in changed.files if file.state != "unchanged"] == ["model.safetensors"]
    assert len(commits(hub)) == 3
    received = [request.received for request in hub.requests if request.method == "PUT"]
    assert received == [(run / "model.safetensors").stat().st_size]


def test_files_that_publishing_wrote_go_with_it_and_those_of_people_stay(hub: HubServer, run: Path) -> None:
    publish(run, "tester/m")
    api = HfApi(token=WRITE_TOKEN)
    for path in ("notes.md", "handler.py", "onnx/model.onnx", "other.safetensors"):
        api.upload_file(path_or_fileobj=b"mine", path_in_repo=path, repo_id="tester/m")
    other = randomise(METHODS["gtsa"].model("ForImageClassification"))
    found = publish(other, "tester/m")
    files = set(hub.files("tester/m"))
    assert {"notes.md", "handler.py", "onnx/model.onnx", "other.safetensors"} <= files
    assert {name for name in files if name.endswith(".py")} == {f"{name}.py" for name in CODE["gtsa"]} | {"handler.py"}
    assert not files & {"positions.png", "features.png", "training_run.json", "training_args.yaml", "modeling_loca.py"}
    removed = {file.path for file in found.files if file.state == "removed"}
    assert removed >= {"positions.png", "modeling_loca.py", "training_run.json"}
    card = ModelCard(hub.files("tester/m")["README.md"].decode())
    assert card.data.pipeline_tag == "image-classification"
    assert "AutoModelForImageClassification.from_pretrained" in card.text


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["Model", "Backbone", "ForSemanticSegmentation", "ForPreTraining"])
def test_models_are_published_as_they_are(hub: HubServer, tmp_path: Path, method: str, kind: str) -> None:
    model = randomise(METHODS[method].model(kind))
    publish(model, "tester/m")
    folder = tmp_path / "down"
    folder.mkdir()
    for path, content in hub.files("tester/m").items():
        (folder / path).write_bytes(content)
    assert {path.stem for path in folder.glob("*.py")} == CODE[method]
    assert (folder / "preprocessor_config.json").is_file()
    opened = type(model).from_pretrained(folder) if kind != "ForPreTraining" else AutoModel.from_pretrained(folder)
    source = model
    if kind == "ForPreTraining":  # the trunk that is meant to be used
        source = getattr(model.teacher or model, model.base_model_prefix)
    expected = source.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in opened.state_dict().items())


def test_large_weights_are_sent_in_pieces_that_load(hub: HubServer, run: Path, tmp_path: Path) -> None:
    publish(run, "tester/m", max_shard_size="40KB")
    files = hub.files("tester/m")
    shards = sorted(name for name in files if name.endswith(".safetensors"))
    assert len(shards) > 1
    assert "model.safetensors" not in files
    for name in ("config.json", "model.safetensors.index.json", *shards):
        (tmp_path / name).write_bytes(files[name])
    pieces = AutoModel.from_pretrained(tmp_path).state_dict()
    whole = load_file(run / "model.safetensors")
    assert pieces.keys() == whole.keys()
    assert all(torch.equal(pieces[name], whole[name]) for name in whole)
    publish(run, "tester/m")
    assert not set(hub.files("tester/m")) & {*shards, "model.safetensors.index.json"}
    with pytest.raises(ValueError, match="max_shard_size must be like '5GB'"):
        publish(run, "tester/m", max_shard_size="big")


def test_a_card_written_by_hand_keeps_its_text(hub: HubServer, run: Path) -> None:
    (run / "README.md").write_text(
        "---\nlicense: mit\ntags:\n- satellite\n---\n# My satellite model\n\nRead this *first*.\n"
        'AutoModel.from_pretrained("my-run")\n'
    )
    about = {"dataset": "scenes"}
    publish(run, "tester/m", results={"knn": {"accuracy": 0.5}, "about": about})
    card = ModelCard(hub.files("tester/m")["README.md"].decode())
    assert "# My satellite model\n\nRead this *first*." in card.text
    assert 'AutoModel.from_pretrained("tester/m")' in card.text
    assert (card.data.license, card.data.tags, card.data.library_name) == ("mit", ["satellite"], "transformers")
    assert ("knn accuracy", 0.5) in {(entry.metric_name, entry.metric_value) for entry in card.data.eval_results}
    assert card.text.count("| knn | accuracy | 0.5 | scenes |") == 1
    (run / "README.md").write_text(hub.files("tester/m")["README.md"].decode())
    publish(run, "tester/m", results={"knn": {"accuracy": 0.75}, "about": about})
    text = hub.files("tester/m")["README.md"].decode()
    assert text.count("| knn | accuracy | 0.75 | scenes |") == 1
    assert "| 0.5 |" not in text
    (run / "README.md").write_text(f"---\nlicense: mit\n---\nUse {TOKEN_IN_TEXT}\n")
    with pytest.raises(ValueError, match="line 4 of README.md holds what looks like a token"):
        publish(run, "tester/m")


def test_a_card_keeps_its_own_numbers_and_names_and_takes_the_licence_given(hub: HubServer, run: Path) -> None:
    (run / "README.md").write_text(
        "---\nlicense: mit\nmodel-index:\n- name: mine\n  results:\n  - task:\n      type: image-segmentation\n"
        "    dataset:\n      type: ade\n      name: ADE\n    metrics:\n    - type: miou\n      value: 0.41\n---\n# Mine\n"
        'AutoModel.from_pretrained("bert-base-uncased")\nAutoModel.from_pretrained("my-run")\n'
    )
    publish(run, "tester/m", license="apache-2.0")
    card = ModelCard(hub.files("tester/m")["README.md"].decode())
    assert card.data.license == "apache-2.0"
    assert 0.41 in [entry.metric_value for entry in card.data.eval_results]
    assert 'from_pretrained("bert-base-uncased")\nAutoModel.from_pretrained("tester/m")' in card.text
    assert "Measured on held-out images" in card.text  # the metadata claims nothing that the text does not show
    (run / "README.md").write_text("---\na: [\n---\n# Mine\n")
    with pytest.raises(ValueError, match="metadata at the top of README.md is not YAML"):
        publish(run, "tester/m")


def test_what_people_wrote_on_the_hub_stays(hub: HubServer, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    publish(run, "tester/m", license="mit", results={"knn": {"accuracy": 0.5}})
    publish(run, "tester/m")
    card = hub.files("tester/m")["README.md"].decode()
    assert ModelCard(card).data.license == "mit"
    assert "| knn | accuracy | 0.5 |" in card  # of the same weights
    api = HfApi(token=WRITE_TOKEN)
    for path, content in (("README.md", card.replace("## Limits", "## Read this\n\n## Limits").encode()),
                          (".eval_results/leaderboard.yaml", b"[]")):  # fmt: skip
        api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id="tester/m")
    weights = load_file(run / "model.safetensors")
    save_file(
        {name: value + 1 for name, value in weights.items()}, run / "model.safetensors", metadata={"format": "pt"}
    )
    publish(run, "tester/m")
    files = hub.files("tester/m")
    card = files["README.md"].decode()
    assert "## Read this" in card
    assert ".eval_results/leaderboard.yaml" in files
    assert "results.json" not in files  # measured with other weights
    assert "knn" not in card.split("---\n", 2)[2]
    assert any("on the Hub was written by hand: its text stays" in record.message for record in caplog.records)


def test_an_earlier_version_s_card_is_not_taken_for_a_written_one(hub: HubServer, run: Path) -> None:
    assert is_rendered((run / "README.md").read_text())
    rendered = render_card(run, "any/name").replace("## Limits", "## Limits of old")
    body = rendered.rstrip("\n").rpartition("\n")[0]
    assert not is_rendered(rendered)
    assert is_rendered(sign_card(body))


def test_results_must_say_what_they_were_measured_on_to_be_indexed(hub: HubServer, run: Path) -> None:
    publish(run, "tester/m", results={"segmentation": {"miou": 0.3}})
    files = hub.files("tester/m")
    card = ModelCard(files["README.md"].decode())
    assert "| segmentation | miou | 0.3 |\n" in card.text
    assert all(entry.metric_type != "miou" for entry in card.data.eval_results)
    assert ".eval_results/hf_geossl.yaml" not in files
    publish(run, "tester/m", results={"segmentation": {"miou": 0.3}, "about": {"dataset_id": "user/photos"}})
    files = hub.files("tester/m")
    assert yaml.safe_load(files[".eval_results/hf_geossl.yaml"])[0]["dataset"]["id"] == "user/photos"
    assert "| segmentation | miou | 0.3 | user/photos |" in files["README.md"].decode()


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([1], "results must be of the form"),
        ({"knn": {"a": "0.5"}}, "knn a of the results is '0.5', and only finite numbers"),
        ({"knn": {"a": 10**400}}, "and only finite numbers go on a card"),
        ({"knn": {"a": 1}, "about": {"images": "<img>"}}, "about.images of the results must be a number of images"),
        ({"knn": {"a": 1}, "about": {"images": -1}}, "about.images of the results must be a number of images, got -1"),
        ({"knn": {"a": 1}, "about": {"command": ["x"]}}, "about.command of the results must be a text"),
        ({"knn": {"a": 1}, "about": {"dataset": None}}, "about.dataset of the results must be a text, got None"),
        ("", "cannot be read: is a directory"),
    ],
)
def test_results_of_another_form(hub: HubServer, run: Path, results: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        publish(run, "tester/m", results=run if results == "" else results)
    assert not hub.repositories


def test_a_folder_s_name_cannot_end_a_code_block(hub: HubServer, run: Path) -> None:
    named = run.rename(run.with_name('x" <img src=y onerror=1>\n```\n[evil](x)'))
    card = render_card(named, named.name)
    assert "<img" not in card
    assert "[evil]" not in card
    names = re.findall(r'from_pretrained\("([^"\n]*)"', card)
    assert len(names) == card.count("from_pretrained(") == 3
    assert all(re.fullmatch(r"[\w./ -]+", name) for name in names)


def test_a_licence_that_the_hub_does_not_know_makes_no_repository(
    hub: HubServer, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["publish", str(run), "tester/m", "--license", "nonsense-1.0"]) == 2
    error = capsys.readouterr().err
    assert 'the Hub refuses the card of tester/m: "license" must be one of' in error
    assert len(error) < 300
    assert not hub.repositories


def test_a_hub_that_is_not_there_is_said_soon(run: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    hub.close()
    start = time.monotonic()
    assert main(["publish", str(run), "tester/m"]) == 2
    assert "geossl: asking the Hub whose token it is failed 4 times in a row, " in capsys.readouterr().err
    assert main(["publish", str(run), "tester/m", "--dry_run"]) == 0
    assert re.search(r"^  unknown .* model.safetensors$", capsys.readouterr().out, re.MULTILINE)
    assert main(["publish", str(run), "m", "--dry_run"]) == 2
    assert "a dry run needs the whole name of the repository, user/m" in capsys.readouterr().err
    assert time.monotonic() - start < 20


def test_a_renamed_folder_has_a_card_of_the_new_name(hub: HubServer, run: Path) -> None:
    renamed = run.rename(run.with_name("renamed"))
    publish(renamed, "tester/m")
    card = hub.files("tester/m")["README.md"].decode()
    assert "my-run" not in card
    assert card == render_card(renamed, "tester/m")


# ---- Before anything is sent


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "needs a token, and there is none: make a token with write access on the Hub, then run `hf auth login`"),
        ("hf_nobody", "does not accept the token for tester/m"),
        (READ_TOKEN, "the token of tester may only read: make a token with write access"),
        (STRANGER_TOKEN, "the token belongs to stranger, who is not tester and no member of it: publish to stranger/m"),
        ("hf_fine", "the token of tester may only read"),
    ],
)
def test_a_token_that_cannot_write_is_refused_before_anything_is_read(
    hub: HubServer, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, message: str
) -> None:
    (run / "model.safetensors").write_text("would be refused, if it were read")
    hub.tokens["hf_fine"] = Token("tester", "fineGrained", permissions=("repo.content.read",))
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    with pytest.raises(PublishError, match=re.escape(message)) as caught:
        publish(run, "tester/m", token=token)
    assert "\n" not in str(caught.value)
    assert {request.path for request in hub.requests} <= {"/api/whoami-v2", "/api/agent-harnesses"}
    with pytest.raises(PublishError, match=re.escape(message)):
        make_trainer(tmp_path / "run", [{"image": 0}], push_to_hub=True, hub_model_id="tester/m", hub_token=token)
    assert not hub.repositories


def test_a_fine_grained_token_with_the_right_may_write(hub: HubServer, run: Path) -> None:
    hub.tokens["hf_fine"] = Token("tester", "fineGrained", permissions=("repo.content.read", "repo.write"))
    assert publish(run, "m", token="hf_fine").repo_id == "tester/m"
    assert publish(run, "lab/m").repo_id == "lab/m"


def test_a_dry_run_lists_and_sends_nothing(
    hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as without_token:
        without_token.delenv("HF_TOKEN")
        found = publish(run, "tester/m", dry_run=True)
        assert found.commit is None
        assert {file.state for file in found.files} == {"new"}
    assert not hub.repositories
    publish(run, "tester/m")
    (run / "features.png").unlink()
    before = len(commits(hub))
    assert main(["publish", str(run), "tester/m", "--dry_run", "--license", "mit"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^  changed +[\d.]+ kB  README.md$", printed, re.MULTILINE)
    assert re.search(r"^  removed +[\d.]+ [kM]B  features.png$", printed, re.MULTILINE)
    assert re.search(r"^  unchanged .* model.safetensors$", printed, re.MULTILINE)
    assert re.search(r"1 of \d+ files would be sent", printed)
    assert len(commits(hub)) == before


def test_a_dry_run_needs_no_network(
    hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compared = publish(run, "tester/m", dry_run=True, space=True)
    monkeypatch.delenv("HF_TOKEN")
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        if not offline:
            hub.fail("GET ", times=1000, status=503)
        caplog.clear()
        listed = publish(run, "tester/m", dry_run=True, space=True)
        hub.clear_faults()
        for one, other in ((listed, compared), (listed.space, compared.space)):
            assert one is not None
            assert other is not None
            assert [file.path for file in one.files] == [file.path for file in other.files]
            assert {file.state for file in one.files} == {"unknown"}
            assert one.sent == list(one.files)
            assert one.url == other.url
        said = [record.getMessage() for record in caplog.records if "could not be compared" in record.getMessage()]
        assert len(said) == 1
        assert "\n" not in said[0]


def test_a_missing_folder_is_said_without_asking_the_network(hub: HubServer, tmp_path: Path) -> None:
    hub.fail(".*", times=1000, status=503)
    for dry_run in (False, True):
        with pytest.raises(ValueError, match="there is no folder 'gone'") as caught:
            publish(tmp_path / "gone", "tester/m", dry_run=dry_run)
        assert "\n" not in str(caught.value)
    assert not hub.requests
    hub.clear_faults()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: shutil.rmtree(run), "there is no folder my-run"),
        (
            lambda run: (run / "config.json").unlink(),
            "my-run holds no config.json: ",
        ),
        (lambda run: (run / "config.json").write_text("{"), "config.json of my-run cannot be read"),
        (
            lambda run: (run / "config.json").write_text('{"model_type": "bert"}'),
            "of type 'bert', and this library's are gtsa",
        ),
        (
            lambda run: (run / "model.safetensors").rename(run / "pytorch_model.bin"),
            "holds no model.safetensors (it holds pytorch_model.bin, and only safetensors are published)",
        ),
        (
            lambda run: (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-50]),
            "model.safetensors of my-run is damaged",
        ),
        (lambda run: (run / "results.json").write_text("[1]"), "results must be of the form {task: {metric: number}}"),
        (
            lambda run: (run / "results.json").write_text('{"knn": {"a": NaN}}'),
            "knn a of the results is 'nan', and only finite numbers",
        ),
    ],
)
def test_folders_that_cannot_be_published(
    hub: HubServer, run: Path, capsys: pytest.CaptureFixture[str], spoil: Any, message: str
) -> None:
    spoil(run)
    assert main(["publish", str(run), "tester/m"]) == 2
    error = capsys.readouterr().err
    assert message in error.replace(f"{run.parent}/", "")
    assert error.count("\n") == 1
    assert not hub.repositories


def test_names_and_files_that_are_none(hub: HubServer, run: Path) -> None:
    with pytest.raises(ValueError, match="'a b/c' is no name of a repository: give user/name"):
        publish(run, "a b/c")
    with pytest.raises(ValueError, match="the results file 'none.json' cannot be read"):
        publish(run, "tester/m", results=run / "none.json")
    with pytest.raises(TypeError, match="publish takes a folder, or a model of gtsa, loca, equicoherent, got Linear"):
        publish(torch.nn.Linear(1, 1), "tester/m")


# ---- Faults

FAULTS = {
    "who": ("GET /api/whoami-v2", {"status": 500}),
    "create": ("POST /api/repos/create", {"status": 503}),
    "tree": ("GET .*/tree/", {"status": 502}),
    "preupload": ("POST .*/preupload/", {"status": 500}),
    "batch": ("POST .*/info/lfs/objects/batch", {"status": 500}),
    "upload refused": ("PUT ", {"status": 500}),
    "upload cut": ("PUT ", {"cut_upload": 1000}),
    "verify": ("POST .*/verify", {"status": 500}),
    "commit refused": ("POST .*/commit/", {"status": 500}),
    "commit cut": ("POST .*/commit/", {"cut_upload": 1000}),
    "too many": ("POST .*/commit/", {"status": 429, "retry_after": 7}),
    "too many at first": ("POST .*/preupload/", {"status": 429, "retry_after": 7}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_tried_again(hub: HubServer, run: Path, fault: str) -> None:
    match, effects = FAULTS[fault]
    hub.fail(match, times=1, **effects)
    found = publish(run, "tester/m")
    assert hub.faults[0].times == 0
    assert len(commits(hub)) == 2
    assert hub.files("tester/m")["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert found.commit == commits(hub)[0]["id"]


@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - {"verify"}))  # what is there needs no second verification
def test_a_fault_that_stays_is_told_in_a_line_and_leaves_the_repository_as_it_was(
    hub: HubServer, run: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    publish(run, "tester/m")
    before, history = hub.files("tester/m"), commits(hub)
    weights = load_file(run / "model.safetensors")
    save_file(
        {name: value + 1 for name, value in weights.items()}, run / "model.safetensors", metadata={"format": "pt"}
    )
    match, effects = FAULTS[fault]
    hub.fail(match, times=1000, **effects)
    capsys.readouterr()
    assert main(["publish", str(run), "tester/m", "--license", "mit"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("geossl: ")]
    assert len(errors) == 1
    assert "epository is as it was" in errors[0]
    assert (hub.files("tester/m"), commits(hub)) == (before, history)
    hub.clear_faults()
    publish(run, "tester/m", license="mit")
    assert hub.files("tester/m")["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert len(commits(hub)) == len(history) + 1


def test_an_answer_that_is_lost_makes_no_second_commit(hub: HubServer, run: Path) -> None:
    hub.fail("POST .*/commit/", cut_answer=-1)
    found = publish(run, "tester/m")
    assert len(commits(hub)) == 2
    assert found.commit == commits(hub)[0]["id"]


def test_the_server_is_given_the_time_it_asks_for(
    hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(retries, "sleep", waited.append)
    monkeypatch.setattr(_http.time, "sleep", waited.append)
    hub.fail("POST .*/commit/", status=429, retry_after=7)
    publish(run, "tester/m")
    assert max(waited) >= 7


# ---- Revisions, private repositories, Spaces


def test_a_branch_is_made_and_main_stays(hub: HubServer, run: Path) -> None:
    publish(run, "tester/m", private=True)
    assert HfApi(token=WRITE_TOKEN).model_info("tester/m").private is True
    main_files = hub.files("tester/m")
    publish(run, "tester/m", revision="v2", license="mit")
    assert hub.files("tester/m") == main_files
    assert hub.files("tester/m", "v2")["README.md"] != main_files["README.md"]
    assert publish(run, "tester/m", revision="v2", license="mit").url.endswith("/tester/m/tree/v2")


def test_a_space_of_the_same_name_shows_the_model(hub: HubServer, run: Path) -> None:
    found = publish(run, "tester/m", space=True, private=True)
    assert found.space is not None
    assert found.space.url == f"{hub.url}/spaces/tester/m"
    assert len(commits(hub, kind="space")) == 2
    info = HfApi(token=WRITE_TOKEN).space_info("tester/m")
    assert (info.sdk, info.private) == ("gradio", True)
    files = hub.files("tester/m", kind="space")
    assert {"app.py", "requirements.txt", "README.md", "model/config.json", "model/model.safetensors"} <= set(files)
    assert json.loads(files["model/config.json"])["architectures"] == ["LOCAForPreTraining"]  # with the heads to show
    assert "https://huggingface.co/spaces/tester/m" in hub.files("tester/m")["README.md"].decode()
    hub.requests.clear()
    again = publish(run, "tester/m", space=True)
    assert {file.state for file in (*again.files, *again.space.files)} == {"unchanged"}
    assert sent(hub, "POST", "/commit/") == sent(hub, "PUT", "") == 0


def test_what_is_private_stays_private(hub: HubServer, run: Path) -> None:
    publish(run, "tester/m", private=True)
    found = publish(run, "tester/m", space=True)
    assert HfApi(token=WRITE_TOKEN).space_info("tester/m").private is True
    assert found.space is not None
    publish(run, "tester/open")
    with pytest.raises(PublishError, match="model tester/open is there already and public, and a private one is asked"):
        publish(run, "tester/open", private=True)


def test_a_space_with_another_app_is_not_written_over(hub: HubServer, run: Path) -> None:
    hub.add("tester/m", {"app.py": b"print('mine')"}, kind="space", sdk="gradio")
    with pytest.raises(PublishError, match="there is a Space tester/m with another app, which would be lost"):
        publish(run, "tester/m", space=True)
    assert ("model", "tester/m") not in hub.repositories
    assert hub.files("tester/m", kind="space")["app.py"] == b"print('mine')"


# ---- During training


def test_training_pushes_while_it_goes_on(hub: HubServer, photos: Path, tmp_path: Path) -> None:
    """The first upload is held back until the run is over: no step waits for it."""
    held = hub.fail("PUT ", pause=100)
    seen: list[int] = []

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(state.global_step)
            if state.global_step == 6:
                assert held.reached.wait(30)
                held.release()

    trainer = make_trainer(
        tmp_path / "run", str(photos), callbacks=[Watch()], max_steps=6, save_steps=1, push_to_hub=True,
        hub_model_id="tester/m", hub_strategy="every_save", hub_token=WRITE_TOKEN,
    )  # fmt: skip
    assert set(hub.files("tester/m")) == {".gitattributes"}  # made, and nothing in it yet
    trainer.train()
    assert seen == [1, 2, 3, 4, 5, 6]
    trainer.publisher.wait()
    messages = [commit["title"] for commit in commits(hub)]
    assert messages[-2] == "Training in progress, step 1"
    assert len(messages) == 3  # those in between found the first still on its way; the last was pushed after it
    found = trainer.push_to_hub()
    assert hub.files("tester/m")["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    assert found.commit == commits(hub)[0]["id"]
    last = commits(hub)[0]["title"]  # where the card has not changed since the last step either, nothing was sent
    assert last == ("Training in progress, step 6" if len(commits(hub)) == 3 else "End of training")
    assert not list((tmp_path / "run").glob(".push-*"))
    assert "last-checkpoint/optimizer.pt" not in hub.files("tester/m")


def test_a_push_that_fails_does_not_stop_the_run(
    hub: HubServer, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {
        "max_steps": 2,
        "save_steps": 1,
        "push_to_hub": True,
        "hub_model_id": "tester/m",
        "hub_token": WRITE_TOKEN,
    }
    trainer = make_trainer(tmp_path / "run", str(photos), hub_strategy="every_save", hub_always_push=True, **fields)
    hub.fail("POST .*/commit/", times=1000, status=500)
    trainer.train()
    trainer.publisher.wait()
    assert trainer.state.global_step == 2
    warnings = [record.message for record in caplog.records if "was not pushed, and the run goes on" in record.message]
    assert [warning.split()[1] for warning in warnings] == ["1", "2"]
    with pytest.raises(PublishError, match="repository is as it was"):
        trainer.push_to_hub()
    assert (tmp_path / "run" / "model.safetensors").is_file()
    hub.clear_faults()
    trainer.push_to_hub(license="mit")
    assert ModelCard(hub.files("tester/m")["README.md"].decode()).data.license == "mit"


def test_a_pushed_checkpoint_resumes_bit_for_bit(hub: HubServer, photos: Path, tmp_path: Path) -> None:
    fields = {
        "max_steps": 4,
        "save_steps": 2,
        "push_to_hub": True,
        "hub_model_id": "tester/m",
        "hub_token": WRITE_TOKEN,
    }
    trainer = make_trainer(
        tmp_path / "run", str(photos), hub_strategy="checkpoint", hub_always_push=True, save_total_limit=1, **fields
    )
    trainer.train()
    trainer.publisher.wait()
    assert len(commits(hub)) == 3  # model and checkpoint of a step in one commit
    step_2 = commits(hub)[1]["id"]
    folder = tmp_path / "down" / "checkpoint-2"
    folder.mkdir(parents=True)
    for path, content in hub.files("tester/m", step_2).items():
        if path.startswith("last-checkpoint/"):
            (folder / path.removeprefix("last-checkpoint/")).write_bytes(content)
    assert yaml.safe_load((folder / "training_args.yaml").read_text())["max_steps"] == 4
    assert not (folder / "training_args.bin").exists()
    again = make_trainer(tmp_path / "again", str(photos), max_steps=4, save_steps=2)
    again.train(resume_from_checkpoint=str(folder))
    expected = trainer.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.model.state_dict().items())


def test_the_command_pushes_at_the_end(
    hub: HubServer, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [
        "--max_steps",
        "2",
        "--hidden_size",
        "48",
        "--num_hidden_layers",
        "1",
        "--per_device_train_batch_size",
        "2",
    ]
    command = ["pretrain", "quickstart", "--dataset", str(photos), "--output_dir", str(tmp_path / "my-run"), *small,
               "--dataloader_num_workers", "0", "--picture", "false", "--push_to_hub", "true"]  # fmt: skip
    assert main([*command, "--hub_model_id", "tester/m"]) == 0
    card = hub.files("tester/m")["README.md"].decode()
    assert "geossl pretrain quickstart --dataset (local path) --output_dir (local path) --max_steps 2" in card
    assert f"{hub.url}/tester/m" in capsys.readouterr().out
    features = AutoModelForImageClassification.from_pretrained(tmp_path / "my-run")
    assert features.config.hidden_size == 48


# ---- A push that is killed


@pytest.mark.parametrize("moment", ["PUT ", "POST .*/commit/"])
def test_a_killed_push_leaves_the_repository_whole(hub: HubServer, run: Path, tmp_path: Path, moment: str) -> None:
    publish(run, "tester/m")
    before, history = hub.files("tester/m"), commits(hub)
    weights = load_file(run / "model.safetensors")
    save_file(
        {name: value + 1 for name, value in weights.items()}, run / "model.safetensors", metadata={"format": "pt"}
    )
    held = hub.fail(moment, pause=50)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_TOKEN": WRITE_TOKEN, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hf_geossl.cli", "publish", str(run), "tester/m"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert held.reached.wait(60)
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    finally:
        process.kill()
    hub.clear_faults()
    time.sleep(0.5)
    if moment == "PUT ":
        assert (hub.files("tester/m"), commits(hub)) == (before, history)
    else:  # the whole request had left when its sender died: the old or the new state, and nothing between
        states = {len(history): before["model.safetensors"], len(history) + 1: (run / "model.safetensors").read_bytes()}
        assert hub.files("tester/m")["model.safetensors"] == states[len(commits(hub))]
    publish(run, "tester/m")
    assert hub.files("tester/m")["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert len(commits(hub)) == len(history) + 1
