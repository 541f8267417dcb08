"""EquiCoherent's training: exact resume, centers, schedules, layer-wise rates, hosts without a teacher, what a run leaves."""

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, TrainerCallback

from hf_geossl import (
    EquiCoherentForPreTraining,
    EquiCoherentTrainer,
    load_stream,
)
from hf_geossl.data.evaluation_batches import EvaluationBatches, FirstImages
from hf_geossl.data.streams import ImageStream
from hf_geossl.hub.export import export_model
from tests.helpers.equicoherent_run import make_trainer, small_arguments, small_config, small_views
from tests.helpers.exact_resume import different_weights, undisturbed_and_resumed
from tests.helpers.inputs import evaluation_inputs, record_inputs
from tests.helpers.photographs import pieces, write_folder

HOSTS = ("ibot", "dinov2", "dino", "vicreg", "simclr")


PARTS = {
    "ibot": {"class_loss", "patch_loss"},
    "dinov2": {"class_loss", "patch_loss", "koleo_loss"},
    "dino": {"class_loss"},
    "vicreg": {"invariance_loss", "variance_loss", "covariance_loss"},
    "simclr": {"contrast_loss"},
}


@pytest.fixture
def images(smooth_images: Any) -> Any:
    return smooth_images


def _logged(trainer: EquiCoherentTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "grad_norm" in entry]


def _exact(line: dict[str, Any]) -> dict[str, Any]:
    """A log line without what the clock has measured."""
    clocked = ("data_wait", "images_per_second")
    return {
        name: value for name, value in line.items() if not re.search("second|runtime", name) and name not in clocked
    }


class Recorder(TrainerCallback):
    """The model at the start and the end of each step, and each parameter's learning rate and decay in it."""

    def __init__(self) -> None:
        self.before: list[torch.nn.Module] = []
        self.after: list[torch.nn.Module] = []
        self.rates: list[dict[str, float]] = []
        self.decays: list[dict[str, float]] = []

    def on_step_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        self.before.append(copy.deepcopy(model))
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = [(names[id(p)], group) for group in optimizer.param_groups for p in group["params"]]
        assert len(groups) == len({name for name, _ in groups})  # none is in two groups
        self.rates.append({name: group["lr"] for name, group in groups})

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        self.after.append(copy.deepcopy(model))
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = [(names[id(p)], group) for group in optimizer.param_groups for p in group["params"]]
        self.decays.append({name: group["weight_decay"] for name, group in groups})


def _warmup_and_cosine(step: int, total: int, warmup: int, peak: float, end: float) -> float:
    """The DINO authors' table: np.linspace over the warm-up, half a cosine over the rest."""
    rest = np.arange(total - warmup)
    cosine = end + 0.5 * (peak - end) * (1 + np.cos(np.pi * rest / len(rest)))
    return float(np.concatenate([np.linspace(0, peak, warmup), cosine])[step])


@pytest.mark.parametrize(("host", "workers"), [("ibot", 2), ("dinov2", 0)])
def test_resume_after_kill_continues_bit_for_bit(host: str, workers: int, tmp_path: Path) -> None:
    """With centers, masks, a transformation, stochastic depth, frozen prototypes and layer-wise rates."""
    undisturbed, resumed = undisturbed_and_resumed(
        make_trainer, tmp_path, workers, config={"host": host}, layer_decay=0.8, freeze_last_layer=12
    )
    assert different_weights(undisturbed.model, resumed.model) == []
    for center in ("class_center", "patch_center"):
        assert resumed.model.state_dict()[center].abs().min() > 0
    found, expected = ([_exact(line) for line in _logged(trainer)] for trainer in (resumed, undisturbed))
    assert found == expected
    assert [line["step"] for line in found] == [3, 6, 9, 12, 15, 18]
    assert PARTS[host] | {"host_loss", "reconstruction_loss", "teacher_entropy", "grad_norm"} <= found[0].keys()


@pytest.mark.parametrize("host", ["dino", "vicreg", "simclr"])
def test_resume_of_the_other_hosts_is_exact(host: str, images: Any, tmp_path: Path) -> None:
    whole = make_trainer(tmp_path, images, config={"host": host}, save_steps=2, logging_steps=1, warmup_steps=0)
    whole.train()
    resumed = make_trainer(tmp_path, images, config={"host": host}, logging_steps=1, warmup_steps=0)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert different_weights(whole.model, resumed.model) == []
    assert [_exact(line) for line in _logged(resumed)] == [_exact(line) for line in _logged(whole)]
    assert len(_logged(resumed)) == 4


@pytest.mark.parametrize("host", ["ibot", "dinov2", "dino"])
def test_centers_and_teacher_move_once_per_step_over_accumulation(host: str, images: Any, tmp_path: Path) -> None:
    """By hand: the teacher's scores on the recorded views; iBOT's patches all count, DINOv2's where they are masked."""
    recorder = Recorder()
    config = {"host": host, "center_momentum": 0.8}
    trainer = make_trainer(
        tmp_path, images, [recorder], config, max_steps=2, gradient_accumulation_steps=2, warmup_steps=0,
        teacher_momentum=0.5,
    )  # fmt: skip
    batches = record_inputs(trainer)
    trainer.train()
    assert len(batches) == 4
    centers = {"class_center": torch.zeros(1, 32), "patch_center": torch.zeros(1, 32)}
    if host == "dino":
        del centers["patch_center"]
    for step, (before, after) in enumerate(zip(recorder.before, recorder.after, strict=True)):
        teacher = before.teacher.eval()
        scores: dict[str, list[torch.Tensor]] = {name: [] for name in centers}
        for batch in batches[2 * step : 2 * step + 2]:
            with torch.no_grad():
                tokens = teacher.equicoherent(batch["global_pixel_values"].flatten(0, 1)).last_hidden_state
                features = teacher.split_head(tokens)
                scores["class_center"].append(teacher.head(features[:, 0]))
                if host != "dino":
                    patches = teacher.head(features[:, 1:])
                    chosen = batch["bool_masked_pos"].flatten(0, 1)
                    chosen = torch.ones_like(chosen) if host == "ibot" else chosen
                    scores["patch_center"].append(patches[chosen])
        for name, center in centers.items():
            centers[name] = 0.8 * center + (1 - 0.8) * torch.cat(scores[name]).mean(dim=0, keepdim=True)
            torch.testing.assert_close(getattr(before, name), center, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(getattr(after, name), centers[name], rtol=1e-5, atol=1e-6)
            assert (centers[name] - center).abs().max() > 1e-3
        momentum = 1 + 0.5 * (0.5 - 1) * (1 + math.cos(math.pi * step / 2))  # of the step itself
        old, new = before.state_dict(), after.state_dict()
        moved = [name for name in new if name.startswith("teacher.")]
        for name in moved:
            expected = momentum * old[name] + (1 - momentum) * new[name.removeprefix("teacher.")]
            torch.testing.assert_close(new[name], expected, rtol=1e-5, atol=1e-6)
        assert sum(not torch.equal(old[name], new[name]) for name in moved) > 30


def test_schedules_are_the_papers_formulas(images: Any, tmp_path: Path) -> None:
    """Rate and decay of every parameter, and the temperature that the model gets, at each of 10 steps."""
    recorder = Recorder()
    trainer = make_trainer(
        tmp_path, images, [recorder], {"teacher_temperature": 0.07}, max_steps=10, warmup_steps=4,
        gradient_accumulation_steps=2, min_learning_rate=1e-4, teacher_temperature_warmup=0.6,
        weight_decay=0.1, weight_decay_end=0.3,
    )  # fmt: skip
    temperatures: list[float | None] = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: temperatures.append(kwargs.get("teacher_temperature")), with_kwargs=True
    )
    trainer.train()
    peak = 5e-2 * 8 / 256
    for step in range(10):
        (rate,) = set(recorder.rates[step].values())
        assert rate == pytest.approx(_warmup_and_cosine(step, 10, 4, peak, 1e-4), rel=1e-9, abs=1e-12)
        decay = 0.3 + 0.5 * (0.1 - 0.3) * (1 + math.cos(math.pi * step / 10))
        for name, value in recorder.decays[step].items():
            small = name.endswith(".bias") or trainer.model.get_parameter(name).ndim < 2
            assert value == (0 if small else pytest.approx(decay, rel=1e-12)), name
        temperature = 0.04 + 0.03 * min(step / 6, 1)
        assert temperatures[2 * step : 2 * step + 2] == [pytest.approx(temperature, rel=1e-12)] * 2
    trainer.evaluate(images[:4])
    assert temperatures[20:] == [None], "evaluation takes the model's own, so that losses can be compared over the run"


def test_teacher_temperature_starts_at_the_end_without_a_warmup(images: Any, tmp_path: Path) -> None:
    for warmup, expected in ((0.0, [0.07] * 4), (2, [0.01, 0.04, 0.07, 0.07]), (8, [0.01, 0.0175, 0.025, 0.0325])):
        trainer = make_trainer(
            tmp_path, images, teacher_temperature_start=0.01, teacher_temperature_warmup=warmup, max_steps=4
        )
        trainer.state.max_steps = 4
        found = [trainer.model_arguments(step)["teacher_temperature"] for step in range(4)]
        assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("config", [{}, {"shared_head": False}, {"host": "dino", "norm_last_layer": True}])
def test_prototypes_stay_until_their_step_and_move_after(config: dict[str, Any], images: Any, tmp_path: Path) -> None:
    """Weight decay does not move them either; everything else moves from the first step on."""
    recorder = Recorder()
    trainer = make_trainer(
        tmp_path, images, [recorder], config, max_steps=6, freeze_last_layer=0.5, warmup_steps=0, weight_decay=0.3
    )
    trainer.train()
    names = [name for name, _ in trainer.model.named_parameters() if ".prototypes." in f".{name}"]
    frozen = [name for name in names if not name.startswith("teacher.")]
    assert len(frozen) == (1 if "norm_last_layer" in config else 2 if config == {} else 4)  # directions and lengths
    for step, (before, after) in enumerate(zip(recorder.before, recorder.after, strict=True)):
        changed = set(different_weights(before, after))
        for name in frozen:
            assert (name in changed) == (step >= 3), (step, name)
        assert {"head.linears.2.weight", "equicoherent.encoder.layer.0.attention.qkv.weight"} & changed
        assert "split_head.weight" in changed


def _dinov2_share(name: str, depth: int, decay: float, patch_share: float) -> float:
    """`get_vit_lr_decay_rate` of DINOv2, in our names."""
    layer_id = depth + 1
    if name.startswith("equicoherent.embeddings."):
        layer_id = 0
    elif ".encoder.layer." in name:
        layer_id = int(name.split(".encoder.layer.")[1].split(".")[0]) + 1
    return decay ** (depth + 1 - layer_id) * (patch_share if "patch_embeddings" in name else 1.0)


def test_each_layer_learns_at_its_own_rate(images: Any, tmp_path: Path) -> None:
    recorder = Recorder()
    config = {"host": "dinov2", "num_hidden_layers": 3, "num_register_tokens": 2, "layerscale_value": 1e-5}
    fields = {
        "layer_decay": 0.9, "patch_embed_learning_rate": 0.2, "warmup_steps": 0, "max_steps": 6, "save_steps": 3,
        "learning_rate_scaling": "sqrt", "min_learning_rate": 0.0, "logging_steps": 1,
    }  # fmt: skip
    trainer = make_trainer(tmp_path, images, [recorder], config, **fields)
    trainer.train()
    trained = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    shares = {name: _dinov2_share(name, 3, 0.9, 0.2) for name in trained}
    assert shares["equicoherent.embeddings.mask_token"] == pytest.approx(0.9**4)
    assert len({round(share, 9) for share in shares.values()}) == 6
    peak = 5e-2 * math.sqrt(4 / 1024)
    for step, rates in enumerate(recorder.rates):
        rate = _warmup_and_cosine(step, 6, 0, peak, 0.0)
        assert rates == {name: pytest.approx(rate * share, rel=1e-9) for name, share in shares.items()}
        assert _logged(trainer)[step]["learning_rate"] == pytest.approx(rate, rel=1e-9)  # the run's own
        decayed = {name for name, decay in recorder.decays[step].items() if decay > 0}
        assert decayed == {n for n in trained if trainer.model.get_parameter(n).ndim >= 2 and not n.endswith(".bias")}
    resumed = Recorder()
    again = make_trainer(tmp_path, images, [resumed], config, **fields)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.rates == recorder.rates[3:]
    assert resumed.decays == recorder.decays[3:]
    assert different_weights(trainer.model, again.model) == []


def test_a_parameter_moves_by_its_own_rate(images: Any, tmp_path: Path) -> None:
    """AdamW's first step is the rate times the sign of the gradient (less the decay, of tensors that have it)."""
    recorder = Recorder()
    trainer = make_trainer(
        tmp_path, images, [recorder], max_steps=1, warmup_steps=0, layer_decay=0.5, patch_embed_learning_rate=0.5
    )
    trainer.train()
    peak = 5e-2 * 4 / 256
    before, after = recorder.before[0].state_dict(), recorder.after[0].state_dict()
    for name, share in (
        ("equicoherent.embeddings.patch_embeddings.bias", 0.5**4),
        ("equicoherent.encoder.layer.0.norm1.bias", 0.5**2),
        ("equicoherent.encoder.layer.1.norm1.bias", 0.5),
        ("equicoherent.layernorm.bias", 1.0),
    ):
        moved = (after[name] - before[name]).abs().max().item()
        assert moved == pytest.approx(peak * share, rel=1e-3), name


@pytest.mark.parametrize("host", HOSTS)
def test_measuring_does_not_change_the_run(host: str, images: Any, tmp_path: Path) -> None:
    """Evaluation, probes and the log leave weights, centers and generators as they are; the parts add up."""
    config = {"host": host, "reconstruction_weight": 0.5}
    quiet = make_trainer(tmp_path / "quiet", images, config=config, probe_every_steps=0, warmup_steps=0)
    quiet.train()
    watched = make_trainer(
        tmp_path / "watched", images, config=config, probe_every_steps=1, warmup_steps=0, logging_steps=1,
        eval_strategy="steps", eval_steps=2, eval_dataset=images[:10], per_device_eval_batch_size=4,
    )  # fmt: skip
    watched.train()
    assert different_weights(quiet.model, watched.model) == []
    assert sum(not torch.equal(a, b) for a, b in zip(quiet.model.parameters(), make_trainer(
        tmp_path, images, config=config).model.parameters(), strict=True)) > 30  # fmt: skip
    centers = {name: buffer.clone() for name, buffer in watched.model.named_buffers() if name.endswith("_center")}
    assert len(centers) == {"ibot": 2, "dinov2": 2, "dino": 1}.get(host, 0)
    measured = [entry for entry in watched.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in measured] == [2, 4]
    again = watched.evaluate()
    watched.model.update_centers()  # what evaluation saw is not in them
    assert all(torch.equal(buffer, watched.model.get_buffer(name)) for name, buffer in centers.items())
    names = {"host_loss", "reconstruction_loss", *PARTS[host]}
    if host in ("ibot", "dinov2", "dino"):
        names |= {"teacher_entropy", "prediction_diversity"}
    for line, prefix in ((measured[-1], "eval_"), (_logged(watched)[-1], "")):
        assert names <= {name.removeprefix(prefix) for name in line}
        total = line[f"{prefix}host_loss"] + 0.5 * line[f"{prefix}reconstruction_loss"]
        assert line[f"{prefix}loss"] == pytest.approx(total, abs=2e-5)
    assert {name: again[name] for name in _exact(again) if name != "epoch"} == {
        name: measured[-1][name] for name in _exact(again) if name != "epoch"
    }
    assert again["eval_images"] == (10 if host in ("ibot", "dino") else 8)
    has_teacher = host in ("ibot", "dinov2", "dino")
    for line in _logged(watched):
        assert 0.05 < line["feature_spread"] <= 1
        assert ("target_spread" in line) == ("teacher_momentum" in line) == ("teacher_entropy" in line) == has_teacher


@pytest.mark.parametrize("host", HOSTS)
def test_evaluation_is_the_mean_over_images(host: str, images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images, config={"host": host}, per_device_eval_batch_size=10)
    measured = trainer.evaluate(images)
    counts, sums = [], dict.fromkeys(("loss", "host_loss", "reconstruction_loss"), 0.0)
    for batch in trainer.get_eval_dataloader(images):
        counts.append(len(batch["crop_boxes"]))
        with torch.no_grad():
            outputs = trainer.model.eval()(**evaluation_inputs(trainer, batch))
        for name in sums:
            sums[name] += counts[-1] * outputs[name].item()
    assert counts == ([10, 10, 4] if host in ("ibot", "dino") else [10, 10])  # the others compare the images of a batch
    for name, value in sums.items():
        assert measured[f"eval_{name}"] == pytest.approx(value / sum(counts), abs=1e-5)


@pytest.mark.parametrize("host", ["vicreg", "simclr"])
def test_host_without_a_teacher_leaves_its_student(host: str, images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images, config={"host": host}, logging_steps=2, warmup_steps=0)
    trainer.train()
    with pytest.raises(ValueError, match="weights must be 'student': this method has no teacher, got 'teacher'"):
        trainer.save_model(weights="teacher")
    with pytest.raises(ValueError, match="weights must be 'teacher' or 'student', got 'mean'"):
        export_model(trainer.model, tmp_path / "other", weights="mean")
    with pytest.raises(ValueError, match=f"host '{host}' has no teacher to update; ibot, dinov2 and dino have one"):
        trainer.model.update_teacher(0.9)
    assert trainer.chance_losses() == {}
    trainer.save_model()
    pixels = torch.randn(2, 3, 40, 24)
    opened = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(opened(pixels).last_hidden_state, trainer.model.equicoherent.eval()(pixels).last_hidden_state)
    card = (tmp_path / "README.md").read_text()
    assert "The student trunk" in card
    assert f"| host | {host} |" in card
    assert "teacher momentum" not in card


def test_all_teacher_probabilities_even_are_the_chance_level(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images, max_steps=1, logging_steps=1)
    with torch.no_grad():
        for module in (trainer.model, trainer.model.teacher):
            module.head.prototypes.weight.copy_(torch.ones_like(module.head.prototypes.weight))
    trainer.train()
    line = _logged(trainer)[0]
    for name, value in trainer.chance_losses().items():
        assert line[name] == pytest.approx(value, abs=1e-5)
        assert value == pytest.approx(math.log(32))


def test_probe_sees_collapsed_features(images: Any, tmp_path: Path) -> None:
    for host in ("ibot", "vicreg"):
        trainer = make_trainer(
            tmp_path, images, config={"host": host}, max_steps=1, logging_steps=1, probe_every_steps=1
        )
        trunks = [trainer.model.equicoherent]
        trunks += [trainer.model.teacher.equicoherent] if host == "ibot" else []
        with torch.no_grad():
            for trunk in trunks:
                trunk.layernorm.weight.zero_()
                trunk.layernorm.bias.fill_(1.0)
        trainer.train()
        spreads = {name: value for name, value in _logged(trainer)[0].items() if name.endswith("_spread")}
        assert spreads == dict.fromkeys(spreads, pytest.approx(0.0, abs=1e-6))
        assert len(spreads) == len(trunks)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"host": "dino"}, "host of the views must be the model's, 'ibot', got 'dino'"),
        ({"transformation": "blur"}, "transformation of the views must be the model's, 'se2', got 'blur'"),
        ({"transformation": None}, "transformation of the views must be the model's, 'se2', got None"),
        ({"num_intermediate": 3}, "num_intermediate of the views must be the model's, 2, got 3"),
        ({"patch_size": 16}, "patch_size of the views must be the model's, 8, got 16"),
    ],
)
def test_views_that_do_not_fit_the_model_are_refused(
    fields: dict[str, Any], message: str, images: Any, tmp_path: Path
) -> None:
    config = small_config()
    with pytest.raises(ValueError, match=re.escape(message)):
        EquiCoherentTrainer(
            EquiCoherentForPreTraining(config), small_arguments(tmp_path), images, views=small_views(config, **fields)
        )


def test_default_views_are_those_of_the_model(images: Any, tmp_path: Path) -> None:
    config = small_config(host="simclr", transformation="color", num_intermediate=3)
    trainer = EquiCoherentTrainer(EquiCoherentForPreTraining(config), small_arguments(tmp_path), images)
    views = trainer.views
    assert (views.host, views.transformation, views.num_intermediate) == ("simclr", "color", 3)
    assert (views.patch_size, views.num_local, views.global_size) == (8, 0, 224)


@pytest.mark.parametrize("host", HOSTS)
def test_batch_of_one_image_is_refused_where_images_are_compared(
    host: str, images: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if host in ("ibot", "dino", "simclr"):  # of SimCLR the reconstruction goes on
        trainer = make_trainer(tmp_path, images, config={"host": host}, per_device_train_batch_size=1, logging_steps=1)
        assert ("holds nothing to contrast" in caplog.text) == (host == "simclr")
        trainer.train()
        assert len(_logged(trainer)) == 4
        assert all(math.isfinite(line["loss"]) for line in _logged(trainer))
        return
    message = f"per_device_train_batch_size must be 2 or more, host '{host}' compares the images of a batch; got 1"
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, images, config={"host": host}, per_device_train_batch_size=1)


@pytest.mark.parametrize("host", HOSTS)
def test_evaluation_that_cannot_work_is_refused_before_training(host: str, images: Any, tmp_path: Path) -> None:
    """Batches of one image, and fewer images than a batch, wherever their number is known without reading them."""
    photographs = load_stream(str(write_folder(tmp_path / "jpeg", 5)))
    table = pa.table({"image": [{"bytes": piece, "path": None} for piece in pieces(5)]})
    pq.write_table(table, tmp_path / "photographs.parquet")
    few = [images[:5], photographs, load_stream(str(tmp_path / "photographs.parquet"))]
    few += [FirstImages(load_stream("scenes"), 5), FirstImages(photographs, 512)]
    for held_out, size, told in (
        (
            few[0],
            1,
            f"per_device_eval_batch_size must be 2 or more, host '{host}' compares the images of a batch; got 1",
        ),
        *(
            (found, 6, "eval_dataset must hold at least a whole batch of 6 images, .* got 5; .*--eval_images")
            for found in few
        ),
    ):
        fields = {"eval_dataset": held_out, "per_device_eval_batch_size": size}
        if host in ("ibot", "dino"):
            trainer = make_trainer(tmp_path, images, config={"host": host}, **fields)
            assert trainer.evaluate()["eval_images"] == 5
        else:
            with pytest.raises(ValueError, match=told):
                make_trainer(tmp_path, images, config={"host": host}, **fields)
    trainer = make_trainer(tmp_path, images, config={"host": host}, eval_dataset=few[-1], per_device_eval_batch_size=5)
    assert trainer.evaluate()["eval_images"] == 5


def test_evaluation_batches_of_several_processes_are_whole_over_all(images: Any) -> None:
    stream, views = ImageStream.from_dataset(images[:7]), small_views(small_config())
    told = r"a whole batch of 8 images \(4 on each of 2 processes\), .* got 7; .* per_device_eval_batch_size"
    batches = EvaluationBatches(stream, views, 4, rank=0, world_size=2, drop_last=True)
    with pytest.raises(ValueError, match=told):
        batches.check_size()
    with pytest.raises(ValueError, match=told):
        next(iter(batches))
    EvaluationBatches(stream, views, 4, rank=0, world_size=2).check_size()
    EvaluationBatches(stream, views, 3, rank=0, world_size=2, drop_last=True).check_size()


@pytest.mark.parametrize(("host", "count"), [("ibot", 9), ("dino", 9), ("dinov2", 8), ("vicreg", 8), ("simclr", 8)])
def test_evaluation_leaves_a_rest_out_where_images_are_compared(
    host: str, count: int, images: Any, tmp_path: Path
) -> None:
    trainer = make_trainer(tmp_path, images, config={"host": host}, per_device_eval_batch_size=4)
    measured = trainer.evaluate(images[:9])
    assert math.isfinite(measured["eval_host_loss"])
    assert measured["eval_images"] == count
    if count == 8:
        with pytest.raises(ValueError, match="a whole batch of 4 images, .* got 3; .* per_device_eval_batch_size"):
            trainer.evaluate(images[:3])


def test_images_are_reconstructed_and_the_host_stays_alive(images: Any, tmp_path: Path) -> None:
    """Better than the mean image within 100 steps; the teacher tells images apart and is neither even nor certain."""
    config = {
        "initializer_range": 0.1, "head_hidden_size": 64, "head_bottleneck_size": 32, "teacher_temperature": 0.04,
        "decoder_hidden_size": 32, "reconstruction_weight": 5.0, "drop_path_rate": 0.0,
    }  # fmt: skip
    trainer = make_trainer(
        tmp_path, images, config=config, max_steps=100, logging_steps=25, probe_every_steps=5,
        per_device_train_batch_size=8, base_learning_rate=3e-2, teacher_momentum=0.99, weight_decay_end=0.04,
    )  # fmt: skip
    trainer.train()
    first, last = _logged(trainer)[0], _logged(trainer)[-1]
    assert first["reconstruction_loss"] > 1.05 * first["mean_image_loss"]
    assert last["reconstruction_loss"] < 0.85 * last["mean_image_loss"]
    assert last["patch_loss"] < first["patch_loss"] - 0.2
    assert abs(last["class_loss"] - first["class_loss"]) > 0.05
    assert 0.5 < last["teacher_entropy"] < 0.8 * math.log(32)
    assert last["prediction_diversity"] > 0.4
    assert last["feature_spread"] > 0.3
    assert last["target_spread"] > 0.2


def test_arms_of_a_comparison_start_with_the_same_host_loss(images: Any, tmp_path: Path) -> None:
    """Weight 0 or K = 0 give the host's first loss and gradient to the last bit; without a transformation, another."""
    arms: dict[str, dict[str, Any]] = {
        "task": {"reconstruction_weight": 1e5},  # against gradients of the host that are so much larger at the start
        "weight 0": {"reconstruction_weight": 0.0},
        "K = 0": {"num_intermediate": 0},
        "no transformation": {"transformation": None},
    }
    for host in ("ibot", "vicreg"):
        lines, starts, ends = {}, {}, {}
        for name, config in arms.items():
            trainer = make_trainer(
                tmp_path / f"{host} {name}", images, config={"host": host, **config}, logging_steps=1, warmup_steps=0
            )
            starts[name] = copy.deepcopy(trainer.model)
            trainer.train()
            lines[name], ends[name] = _logged(trainer), trainer.model
            assert (trainer.model.reconstruction is None) == (name != "task")
            assert ("reconstruction_loss" in lines[name][0]) == (name == "task")
        shared = set(starts["weight 0"].state_dict())
        for name in arms:
            state = starts[name].state_dict()
            assert all(torch.equal(state[key], starts["weight 0"].state_dict()[key]) for key in shared)
        for name in ("weight 0", "K = 0"):
            assert lines[name][0]["host_loss"] == lines["task"][0]["host_loss"]
            assert lines[name][0]["loss"] == lines[name][0]["host_loss"]
        assert lines["weight 0"][1]["host_loss"] != lines["task"][1]["host_loss"]  # the task has moved the trunk
        assert [line["loss"] for line in lines["weight 0"]] == [line["loss"] for line in lines["K = 0"]]
        assert different_weights(ends["weight 0"], ends["K = 0"]) == []
        assert lines["no transformation"][0]["host_loss"] != lines["task"][0]["host_loss"]
        assert len(different_weights(starts["no transformation"], ends["no transformation"])) > 30


def test_final_image_is_reconstructed_on_request(images: Any, tmp_path: Path) -> None:
    """K + 1 decoders, and with K = 0 one: the loss is that of the second global view."""
    config = {"host": "simclr", "num_intermediate": 0, "reconstruct_final": True}
    trainer = make_trainer(tmp_path, images, config=config, max_steps=1, logging_steps=1)
    batches, start = record_inputs(trainer), copy.deepcopy(trainer.model).train()
    trainer.train()
    torch.manual_seed(trainer.args.seed)
    with torch.no_grad():
        outputs = start.eval()(**batches[0])
    expected = (outputs.reconstructions[:, 0] - batches[0]["global_pixel_values"][:, 1]).square().mean()
    assert outputs.reconstruction_loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert outputs.reconstructions.shape == (4, 1, 3, 32, 32)
    assert 0.1 < _logged(trainer)[0]["reconstruction_loss"] < 10


def test_run_leaves_a_model_and_a_card(images: Any, tmp_path: Path) -> None:
    folder = tmp_path / "equicoherent-model"
    trainer = make_trainer(
        folder, images, config={"host": "dinov2", "transformation": "rotation"}, max_steps=4, logging_steps=2,
        save_steps=2, teacher_momentum=0.5, eval_dataset=images[:8], per_device_eval_batch_size=4, warmup_steps=0,
    )  # fmt: skip
    trainer.train()
    measured = trainer.evaluate()
    trainer.save_model()
    pixels = torch.randn(2, 3, 40, 24)
    outputs = AutoModel.from_pretrained(folder)(pixels)
    assert outputs.last_hidden_state.shape == (2, 16, 32)
    assert torch.equal(outputs.pooler_output, outputs.last_hidden_state[:, 0])
    teacher, student = trainer.model.teacher.equicoherent.eval(), trainer.model.equicoherent.eval()
    assert torch.equal(outputs.last_hidden_state, teacher(pixels).last_hidden_state)
    trainer.save_model(str(tmp_path / "student"), weights="student")
    features = AutoModel.from_pretrained(tmp_path / "student")(pixels).last_hidden_state
    assert torch.equal(features, student(pixels).last_hidden_state)
    assert not torch.equal(features, outputs.last_hidden_state)
    weights = load_file(folder / "model.safetensors")
    assert {name.split(".")[0] for name in weights} == {"embeddings", "encoder", "layernorm"}
    config = json.loads((folder / "config.json").read_text())
    assert (config["host"], config["transformation"]) == ("dinov2", "rotation")
    card, last = (folder / "README.md").read_text(), _logged(trainer)[-1]
    for fact in (
        "It learned without labels",
        "The teacher trunk",
        "`(batch, 1 + patches, 32)`, class token first; `outputs.pooler_output` is the class token",
        "| host | dinov2 |",
        "| transformation | rotation |",
        "| num intermediate | 2 |",
        "| reconstruction weight | 1.0 |",
        "| num prototypes | 32 |",
        "| teacher momentum | 0.5 to 1 |",
        f"{last['reconstruction_loss']:.4f}",
        f"{last['koleo_loss']:.4f}",
        "On 8 images of",
        f"| class loss | {measured['eval_class_loss']:.4f} (chance level: {math.log(32):.4f}) |",
        f"| reconstruction loss | {measured['eval_reconstruction_loss']:.4f} (chance level: {measured['eval_mean_image_loss']:.4f}) |",
        f"| host loss | {measured['eval_host_loss']:.4f} |",
    ):
        assert fact in card, fact
    for stranger in ("N/A", "nan", str(tmp_path), str(Path.home())):
        assert stranger not in card, stranger
    assert str(tmp_path) not in (folder / "config.json").read_text()
