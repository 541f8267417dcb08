"""LOCA's models and pretraining against the formulas, token by token: initial values, draws, losses, gradients."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_geossl import LOCAConfig, LOCAForPreTraining, LOCAModel
from hf_geossl.hub.export import export_model
from hf_geossl.modeling.objectives import patch_cluster_losses
from tests.helpers.literal_loca import literal_cross_attention, literal_norm
from tests.helpers.methods import KINDS, METHODS, images, literal_trunk, loca_batch, randomise

LOCA = METHODS["loca"]


_config = LOCA.config


State = dict[str, torch.Tensor]


def _model(std: float = 0.2, **fields: Any) -> Any:
    """Random weights; student and teacher differ."""
    model = LOCA.model("ForPreTraining", std, **fields)
    randomise(model.teacher, std, seed=5)
    return model


def _part(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def test_parameter_counts_of_the_papers_small() -> None:
    with torch.device("meta"):
        model, plain = LOCAForPreTraining(LOCAConfig()), LOCAForPreTraining(LOCAConfig(use_cluster_loss=False))

    def count(module: nn.Module, trained: bool = False) -> int:
        return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)

    width, hidden = 384, 1536
    attention, mlp, norm = 4 * (width * width + width), 2 * width * hidden + hidden + width, 2 * width
    trunk = 16 * 16 * 3 * width + width + 196 * width + 12 * (attention + mlp + 2 * norm) + norm
    location = attention + mlp + 3 * norm + norm + width * 196 + 196
    clusters = (width * 2048 + 2048) + (2048 * 2048 + 2048) + (2048 * 256 + 256) + 256 * 4096
    assert count(model.loca) == trunk
    assert count(model.cluster_head) == clusters
    assert count(model, trained=True) == count(model.teacher) == trunk + location + clusters
    assert count(plain, trained=True) == count(plain.teacher) == trunk + location


def test_a_trunk_may_have_a_class_token() -> None:
    assert LOCAModel(_config(use_class_token=True))(torch.zeros(1, 3, 16, 16)).last_hidden_state.shape == (1, 5, 32)


def _check_uniform(matrix: torch.Tensor, bound: float, name: str) -> None:
    error = 4 * 0.45 * bound / matrix.numel() ** 0.5  # a deviation's own is 0.26 * bound / sqrt(count)
    assert matrix.abs().max() <= bound, name
    assert matrix.abs().max() > bound * (1 - 20 / matrix.numel()), name
    assert matrix.std().item() == pytest.approx(bound / 3**0.5, abs=error), name
    assert abs(matrix.mean().item()) < 4 * bound / 3**0.5 / matrix.numel() ** 0.5, name


def _check_lecun_normal(matrix: torch.Tensor, name: str) -> None:
    std = matrix[0].numel() ** -0.5
    assert matrix.std().item() == pytest.approx(std, rel=4 / (2 * matrix.numel()) ** 0.5), name
    assert abs(matrix.mean().item()) < 4 * std / matrix.numel() ** 0.5, name
    assert matrix.abs().max() <= 2 * std / 0.87962, name
    assert matrix.abs().max() > 1.9 * std / 0.87962, f"{name} is normal, cut off at two deviations"


def _check_initial_values(model: nn.Module, hidden_size: int) -> set[str]:
    """Every parameter against the formula of its kind; returns the kinds."""
    kinds = set()
    for name, value in model.named_parameters():
        if name.startswith("teacher."):
            continue
        owner, _, last = name.rpartition(".")
        if last == "position_embeddings":
            kind, share = "positions", 4 / (2 * value.numel()) ** 0.5
            assert value.std().item() == pytest.approx(hidden_size**-0.5, rel=share), name
            assert abs(value.mean().item()) < 4 * (hidden_size * value.numel()) ** -0.5, name
            assert value.numel() < 1000 or value.abs().max() > 2.5 * hidden_size**-0.5, f"{name} is not cut off"
        elif "norm" in owner:
            kind = "norm"
            assert torch.equal(value, torch.full_like(value, float(last == "weight"))), name
        elif ".mlp." in owner and last == "bias":
            kind = "MLP bias"
            assert value.std().item() == pytest.approx(1e-6, rel=0.6), name
            assert value.abs().max() < 5e-6, name
        elif last == "bias":
            kind = "bias"
            assert not value.any(), name
        elif ".attention." in owner:
            kind = "attention"
            assert value.shape[0] % hidden_size == 0, name
            for matrix in value.split(hidden_size):  # each of queries, keys and values on its own
                _check_uniform(matrix, (6 / (2 * hidden_size)) ** 0.5, name)
        elif ".mlp." in owner:
            kind = "MLP"
            _check_uniform(value, (6 / sum(value.shape)) ** 0.5, name)
        elif "prototypes" in owner:
            kind = "prototypes"
            torch.testing.assert_close(value.norm(dim=1), torch.ones(len(value)))
            deviation = value.shape[1] ** -0.5  # of a coordinate of a random unit vector
            assert value.std().item() == pytest.approx(deviation, rel=4 / (2 * value.numel()) ** 0.5), name
            assert abs(value.mean().item()) < 4 * deviation / value.numel() ** 0.5, name
        else:
            kind = "LeCun normal"
            _check_lecun_normal(value, name)
        kinds.add(kind)
    return kinds


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_parameter_starts_as_specified(kind: str) -> None:
    torch.manual_seed(0)
    wide = {"hidden_size": 96, "image_size": 64, "head_hidden_size": 80, "head_bottleneck_size": 64}
    model = LOCA.kind(kind)(_config(**wide, num_prototypes=200, num_labels=70))
    kinds = _check_initial_values(model, 96)
    trunk = {"positions", "norm", "MLP bias", "bias", "attention", "MLP", "LeCun normal"}
    assert kinds == (trunk | {"prototypes"} if kind == "ForPreTraining" else trunk)


def test_heads_start_as_ever_beside_an_exported_trunk(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = _model(1.0, hidden_size=96, head_hidden_size=80, head_bottleneck_size=64, num_prototypes=200)
    export_model(model, tmp_path / "exported", weights="teacher")
    again = LOCAForPreTraining.from_pretrained(tmp_path / "exported")
    again.loca = LOCAModel(again.config)
    assert "prototypes" in _check_initial_values(again, 96)


@pytest.mark.parametrize("fields", [{}, {"use_cluster_loss": False}, {"location_target": "self"}])
def test_teacher_holds_every_trained_submodule_under_the_students_names(fields: dict[str, Any]) -> None:
    model = LOCAForPreTraining(_config(**fields))
    state = model.state_dict()
    teacher = _part(state, "teacher.")
    student = {name: value for name, value in state.items() if not name.startswith("teacher.")}
    assert teacher.keys() == student.keys()
    assert any(name.startswith("cluster_head.") for name in student) == (not fields)
    for name, value in teacher.items():
        assert torch.equal(value, student[name]), name
        assert value.data_ptr() != student[name].data_ptr(), name


def test_teacher_has_the_students_stochastic_depth_in_training(tmp_path: Path) -> None:
    model = _model(drop_path_rate=0.6)
    model.save_pretrained(tmp_path)
    for one in (model, LOCAForPreTraining.from_pretrained(tmp_path), copy.deepcopy(model)):
        rates = [layer.drop_path.rate for layer in one.teacher.loca.encoder.layer]
        assert rates == pytest.approx([0.0, 0.2, 0.4, 0.6])
    batch = loca_batch(8, 0)
    given = {"kept_query_tokens": torch.arange(3), "visible_reference_tokens": torch.arange(5)}
    torch.manual_seed(0)
    scores = [model.train()(**batch, **given).reference_cluster_logits for _ in range(2)]
    assert not torch.equal(*scores)
    scores = [model.eval()(**batch, **given).reference_cluster_logits for _ in range(2)]
    assert torch.equal(*scores)


@pytest.mark.parametrize("fields", [{"use_cluster_loss": False}, {"location_target": "self"}])
@pytest.mark.parametrize("num_focal", [0, 2])
def test_all_of_the_student_is_trained_without_the_cluster_loss_too(
    fields: dict[str, Any], num_focal: int, tmp_path: Path
) -> None:
    """DistributedDataParallel waits for the gradient of every parameter that asks for one."""
    _model(**fields).save_pretrained(tmp_path)
    model = LOCAForPreTraining.from_pretrained(tmp_path).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(**loca_batch(num_focal=num_focal)).loss.backward()
    for name, parameter in model.named_parameters():
        frozen = name.startswith("teacher.") or (fields.get("location_target") == "self" and "position_emb" in name)
        assert parameter.requires_grad != frozen, name
        assert (parameter.grad is None) == frozen, name
        assert torch.equal(before[name], parameter), name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("selection", ["consecutive", "unstructured", "first"])
def test_tokens_come_from_the_global_generator_and_act_as_given_ones(
    selection: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = _model(reference_selection=selection).train(training), loca_batch()
    drawn: dict[str, list[torch.Tensor]] = {"kept_query_tokens": [], "visible_reference_tokens": []}
    for name, found in drawn.items():
        draw = getattr(model, f"draw_{name}")
        monkeypatch.setattr(model, f"draw_{name}", lambda *a, d=draw, f=found: f.append(d(*a)) or f[-1])
    torch.manual_seed(1)
    first = model(**batch)
    state = torch.random.get_rng_state()
    second = model(**batch)
    torch.manual_seed(1)
    assert torch.equal(model(**batch).random_query_logits, first.random_query_logits)
    torch.random.set_rng_state(state)
    assert torch.equal(model(**batch).random_query_logits, second.random_query_logits)
    kept = drawn["kept_query_tokens"]
    assert torch.equal(kept[0], kept[2])
    assert torch.equal(kept[1], kept[3])
    assert not torch.equal(kept[0], kept[1])
    given = {name: found[0] for name, found in drawn.items()}
    state = torch.random.get_rng_state()
    again = model(**batch, **given)
    assert torch.equal(state, torch.random.get_rng_state()), "nothing is drawn where tokens are given"
    assert torch.equal(again.random_query_logits, first.random_query_logits)
    assert torch.equal(again.focal_query_logits, first.focal_query_logits)
    assert again.loss.item() == first.loss.item()
    half = {"kept_query_tokens": given["kept_query_tokens"]}  # one given, the other drawn
    assert model(**batch, **half).random_query_logits.shape == first.random_query_logits.shape


def test_a_consecutive_run_starts_anywhere_alike() -> None:
    model = LOCAForPreTraining(_config(visible_reference_ratio=0.3))  # 4 of 16: starts 0 to 12
    torch.manual_seed(0)
    runs = [model.draw_visible_reference_tokens() for _ in range(2600)]
    for run in runs:
        assert torch.equal(run, run[0] + torch.arange(4))
    counts = torch.bincount(torch.stack(runs)[:, 0], minlength=13)
    assert len(counts) == 13
    assert ((counts - 200) ** 2 / 200).sum() < 35, "chi-square with 12 degrees of freedom, 0.05 %"


def test_unstructured_tokens_are_a_subset_without_repetition_each_alike() -> None:
    model = LOCAForPreTraining(_config(visible_reference_ratio=0.3, reference_selection="unstructured"))
    torch.manual_seed(0)
    for draw, size in ((model.draw_visible_reference_tokens, 4), (lambda: model.draw_kept_query_tokens(16), 7)):
        subsets = torch.stack([draw() for _ in range(1600)])
        assert subsets.shape == (1600, size)
        assert all(len(set(subset)) == size for subset in subsets.tolist())
        counts = torch.bincount(subsets.flatten(), minlength=16).double()
        deviation = (1600 * size / 16 * (1 - size / 16)) ** 0.5
        assert (counts - 100 * size).abs().max() < 4.5 * deviation


def test_how_many_tokens_are_drawn() -> None:
    with torch.device("meta"):
        shipped = LOCAForPreTraining(LOCAConfig(hidden_size=12, num_hidden_layers=1))
    assert len(shipped.draw_visible_reference_tokens()) == 39  # 20 % of 196, rounded down
    assert len(shipped.draw_kept_query_tokens(196)) == 70
    assert sorted(shipped.draw_kept_query_tokens(36).tolist()) == list(range(36)), "all where there are no more"
    shipped.config.reference_selection = "first"
    assert torch.equal(shipped.draw_visible_reference_tokens(), torch.arange(39))
    for ratio in (1.0, 0.001, 0.0, 1.5):  # everything, also where nothing would be left or more than there is
        shipped.config.visible_reference_ratio = ratio
        for selection in ("consecutive", "first"):
            shipped.config.reference_selection = selection
            assert torch.equal(shipped.draw_visible_reference_tokens(), torch.arange(196))


def _slow_forward(
    config: LOCAConfig, student: State, teacher: State, batch: State, kept: list[int], visible: list[int]
) -> dict[str, Any]:
    """Sections 3.3 to 3.7 with loops over images and tokens, in float64."""

    def trunk(state: State, pixels: torch.Tensor, **options: Any) -> torch.Tensor:
        return literal_trunk(config, _part(state, "loca."), pixels, **options)

    def cosines(state: State, token: torch.Tensor) -> torch.Tensor:
        def linear(x: torch.Tensor, name: str) -> torch.Tensor:
            return state[f"cluster_head.{name}.weight"] @ x + state[f"cluster_head.{name}.bias"]

        hidden = F.gelu(linear(token, "fc1"), approximate="tanh")
        features = linear(F.gelu(linear(hidden, "fc2"), approximate="tanh"), "fc3")
        features = features / features.pow(2).sum().sqrt()
        return torch.stack([features @ p / p.pow(2).sum().sqrt() for p in state["cluster_head.prototypes.weight"]])

    reference = batch["reference_pixel_values"]
    if config.location_target == "self":
        tokens = trunk(student, reference, use_positions=False)
        seen = tokens[:, visible]
        queries = [(b, cell, token) for b, image in enumerate(tokens) for cell, token in enumerate(image)]
    else:
        if config.use_cluster_loss:
            with torch.no_grad():
                full = trunk(teacher, reference)
                balanced = torch.stack([cosines(teacher, token) for image in full for token in image])
            seen = full[:, visible]
        else:
            seen = trunk(student, reference, kept_tokens=visible)
        queries = []
        options = {"use_positions": config.use_cluster_loss}
        random = trunk(student, batch["random_query_pixel_values"], kept_tokens=kept, **options)
        for b in range(len(reference)):
            for token, cell in zip(random[b], kept, strict=True):
                queries.append((b, batch["random_query_positions"][b, cell].item(), token))
            for pixels, positions in zip(
                batch["focal_query_pixel_values"][b], batch["focal_query_positions"][b], strict=True
            ):
                for token, position in zip(trunk(student, pixels[None], **options)[0], positions.tolist(), strict=True):
                    queries.append((b, position, token))

    logits, location, right = [], [], []
    for b, position, token in queries:
        x = literal_cross_attention(config, _part(student, "cross_attention."), token, seen[b])
        x = literal_norm(config, student, x, "final_norm")
        logits.append(student["position_predictor.weight"] @ x + student["position_predictor.bias"])
        if position >= 0:
            location.append(logits[-1].exp().sum().log() - logits[-1][position])
            right.append(float(logits[-1].argmax() == position))
    found: dict[str, Any] = {"location_loss": sum(location) / max(len(location), 1)}
    found |= {"location_accuracy": sum(right) / max(len(right), 1), "logits": torch.stack(logits)}
    found["loss"] = found["location_loss"]
    if not config.has_cluster_head:
        return found

    balanced = (balanced / config.teacher_temperature).exp()
    balanced = balanced / balanced.sum(1, keepdim=True)
    for _ in range(config.sinkhorn_iterations):
        for k in range(balanced.shape[1]):
            balanced[:, k] /= balanced[:, k].sum()
        for row in balanced:
            row /= row.sum()
    entropies, mean = [], torch.zeros(config.num_prototypes, dtype=torch.float64)
    for b, position, token in queries:
        predicted = (cosines(student, token) / config.student_temperature).exp()
        predicted = predicted / predicted.sum()
        mean = mean + predicted / len(queries)  # of all tokens, inside or not
        if position >= 0:
            entropies.append(-(balanced[b * full.shape[1] + position] * predicted.log()).sum())
    found["cluster_loss"] = sum(entropies) / max(len(entropies), 1)
    found["mean_entropy_loss"] = (mean * mean.log()).sum()
    found["feature_loss"] = found["cluster_loss"] + found["mean_entropy_loss"]
    found["loss"] = found["location_loss"] + found["feature_loss"]
    return found


@pytest.mark.parametrize(
    ("fields", "shapes"),
    [
        ({}, {}),
        ({"reference_selection": "unstructured", "sinkhorn_iterations": 1}, {"num_focal": 0}),
        ({"reference_selection": "first", "num_channels": 1}, {"num_focal": 1, "channels": 1}),
        ({"image_size": [16, 64], "num_channels": 4}, {"reference": (16, 64), "channels": 4}),
        ({"student_temperature": 0.3, "teacher_temperature": 0.2}, {"random": (40, 24), "focal": (8, 24)}),
        ({"visible_reference_ratio": 1.0, "sinkhorn_iterations": 0}, {"batch_size": 1}),
        ({"num_kept_query_tokens": 99, "visible_reference_ratio": 0.01}, {"random": (16, 16)}),
        ({"use_cluster_loss": False}, {"random": (24, 40)}),
        ({"use_cluster_loss": False, "reference_selection": "unstructured"}, {"num_focal": 0, "batch_size": 1}),
        ({"location_target": "self"}, {}),
        ({"location_target": "self", "image_size": [16, 64]}, {"reference": (16, 64)}),
    ],
)
def test_losses_and_gradients_equal_the_formulas_token_by_token(fields: dict[str, Any], shapes: dict[str, Any]) -> None:
    model = _model(num_hidden_layers=2, **fields)
    batch = loca_batch(**{"batch_size": 2, **shapes})
    torch.manual_seed(2)
    visible, kept = (
        model.draw_visible_reference_tokens(),
        model.draw_kept_query_tokens(len(batch["random_query_positions"][0])),
    )
    outputs = model(**batch, kept_query_tokens=kept, visible_reference_tokens=visible)
    outputs.loss.backward()

    state = {name: value.double() for name, value in model.state_dict().items()}
    student = {name: value.requires_grad_() for name, value in state.items() if not name.startswith("teacher.")}
    expected = _slow_forward(model.config, student, _part(state, "teacher."), batch, kept.tolist(), visible.tolist())
    names = ["loss", "location_loss", "location_accuracy"]
    clusters = ["cluster_loss", "mean_entropy_loss", "feature_loss"]
    for name in names + clusters * model.config.has_cluster_head:
        assert outputs[name].item() == pytest.approx(float(torch.as_tensor(expected[name]).detach()), abs=2e-5), name
    if not model.config.has_cluster_head:
        assert all(getattr(outputs, name) is None for name in clusters)
    queries = [outputs.random_query_logits, outputs.focal_query_logits, outputs.reference_logits]
    found = torch.cat([value.flatten(1, -2) for value in queries if value is not None], dim=1).flatten(0, 1)
    torch.testing.assert_close(found.double(), expected["logits"], rtol=0, atol=1e-4)
    gradients = torch.autograd.grad(expected["loss"], list(student.values()), allow_unused=True)
    parameters = dict(model.named_parameters())
    for name, gradient in zip(student, gradients, strict=True):
        if not parameters[name].requires_grad:
            assert name == "loca.embeddings.position_embeddings"
            continue
        size = max(gradient.abs().max().item(), 1e-2)
        torch.testing.assert_close(parameters[name].grad.double(), gradient, rtol=0, atol=2e-4 * size, msg=name)


def test_queries_wholly_outside_give_zero_losses_and_finite_gradients() -> None:
    model, batch = _model(), loca_batch()
    for name in ("random_query_positions", "focal_query_positions"):
        batch[name].fill_(-1)
    outputs = model(**batch)
    assert outputs.location_loss.item() == outputs.cluster_loss.item() == outputs.location_accuracy.item() == 0.0
    assert outputs.loss.item() == outputs.mean_entropy_loss.item() < 0.0
    outputs.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert not model.position_predictor.weight.grad.any()
    assert model.cluster_head.fc1.weight.grad.any(), "the mean entropy is of all tokens, inside or not"


def test_mean_entropy_of_a_cluster_that_no_token_comes_near_has_a_finite_gradient() -> None:
    cosines = torch.tensor([[1.0, -1.0], [1.0, -1.0]], requires_grad=True)
    losses = patch_cluster_losses(cosines, torch.full((2, 2), 0.5), torch.ones(2, dtype=torch.bool), 0.01)
    assert losses[1].item() == 0.0
    sum(losses).backward()
    assert cosines.grad.isfinite().all()


@pytest.mark.parametrize("rows", [None, torch.tensor([3, 0, 0, 2, 6, 1, 1])])
def test_cluster_losses_are_those_of_the_formula(rows: torch.Tensor | None) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 30, generator=generator).requires_grad_()
    assignments = torch.rand(7, 30, generator=generator)
    valid = torch.tensor([1, 1, 0, 1, 1, 0, 1], dtype=torch.bool)
    losses = patch_cluster_losses(logits, assignments, valid, 0.3, rows)
    (gradient,) = torch.autograd.grad(losses[0] + 2 * losses[1], logits)

    exact = logits.detach().double().requires_grad_()
    chosen = assignments.double()[slice(None) if rows is None else rows]
    log_probabilities = (exact / 0.3).log_softmax(dim=1)
    mean = log_probabilities.exp().mean(dim=0)
    cluster = -(chosen * log_probabilities).sum(dim=1)[valid].sum() / (5 + 1e-8)
    entropy = (mean * mean.log()).sum()
    (expected,) = torch.autograd.grad(cluster + 2 * entropy, exact)
    torch.testing.assert_close(torch.stack(losses).double(), torch.stack([cluster, entropy]), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, {"random_query", "focal_query", "random_query_cluster", "focal_query_cluster", "reference_cluster"}),
        ({"use_cluster_loss": False}, {"random_query", "focal_query"}),
        ({"location_target": "self"}, {"reference"}),
    ],
)
def test_every_output_has_its_shape(fields: dict[str, Any], names: set[str]) -> None:
    outputs = _model(**fields)(**loca_batch(3, 2, random=(40, 24), focal=(16, 8)))
    shapes = {
        "random_query": (3, 7, 16),
        "focal_query": (3, 2, 2, 16),
        "random_query_cluster": (3, 7, 20),
        "focal_query_cluster": (3, 2, 2, 20),
        "reference_cluster": (3, 16, 20),
        "reference": (3, 16, 16),
    }
    losses = {"loss", "location_loss", "location_accuracy"}
    if not fields:
        losses |= {"feature_loss", "cluster_loss", "mean_entropy_loss"}
    assert {name for name, value in outputs.items() if value is not None} == losses | {f"{n}_logits" for n in names}
    for name in names:
        assert outputs[f"{name}_logits"].shape == shapes[name], name
    for name in losses:
        assert outputs[name].shape == (), name
        assert outputs[name].dtype == torch.float32, name


@pytest.mark.parametrize("without", ["none", "empty"])
def test_no_focal_queries_are_none_or_an_empty_axis(without: str) -> None:
    model, batch = _model(), loca_batch(num_focal=0)
    if without == "none":
        batch["focal_query_pixel_values"] = batch["focal_query_positions"] = None
    outputs = model(**batch)
    assert outputs.focal_query_logits is None
    assert outputs.focal_query_cluster_logits is None
    assert outputs.loss.isfinite()


def test_losses_under_autocast_are_those_of_the_logits_in_float32() -> None:
    model, batch = _model(0.1), loca_batch(num_focal=0)
    kept = torch.tensor([9, 2, 4, 0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(**batch, kept_query_tokens=kept, visible_reference_tokens=torch.arange(5))
    assert found.random_query_logits.dtype == torch.bfloat16, "autocast was on"
    assert found.random_query_cluster_logits.dtype == found.reference_cluster_logits.dtype == torch.float32
    positions = batch["random_query_positions"][:, kept]
    expected = F.cross_entropy(found.random_query_logits.float().flatten(0, 1), positions.flatten(), ignore_index=-1)
    assert found.location_loss.item() == pytest.approx(expected.item(), abs=1e-6)
    mean = (found.random_query_cluster_logits / 0.1).softmax(-1).flatten(0, 1).mean(0)
    assert found.mean_entropy_loss.item() == pytest.approx((mean * mean.log()).sum().item(), abs=1e-6)


def test_hidden_states_are_of_the_random_querys_kept_tokens() -> None:
    model, batch, kept = _model(), loca_batch(), torch.tensor([9, 2, 4, 0])
    outputs = model(**batch, kept_query_tokens=kept, output_hidden_states=True)
    pixels = batch["random_query_pixel_values"]
    expected = model.loca(pixels, kept_tokens=kept, output_hidden_states=True).hidden_states
    assert len(outputs.hidden_states) == 5
    for found, wanted in zip(outputs.hidden_states, expected, strict=True):
        assert torch.equal(found, wanted)


def _repaint(pixels: torch.Tensor, cells: list[int], columns: int = 4) -> torch.Tensor:
    """Other pixels in these patches."""
    pixels = pixels.clone()
    for cell in cells:
        y, x = cell // columns * 8, cell % columns * 8
        pixels[..., y : y + 8, x : x + 8] = images(8, 8, seed=cell)
    return pixels


def test_hidden_reference_tokens_have_no_influence_where_they_are_dropped_early() -> None:
    batch, visible = loca_batch(), torch.tensor([3, 4, 5])
    hidden = [cell for cell in range(16) if cell not in visible.tolist()]
    given = {"kept_query_tokens": torch.arange(7), "visible_reference_tokens": visible}
    for clusters in (False, True):
        model = _model(use_cluster_loss=clusters)
        found = []
        for cells in ([], hidden, [4]):
            pixels = _repaint(batch["reference_pixel_values"], cells)
            found.append(model(**{**batch, "reference_pixel_values": pixels}, **given).random_query_logits)
        assert torch.equal(found[0], found[1]) == (not clusters), "with the cluster loss they are dropped late"
        assert not torch.equal(found[0], found[2])


def test_own_positions_are_predicted_without_positions_and_from_visible_tokens_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fresh = LOCAForPreTraining(_config(location_target="self"))
    fresh.save_pretrained(tmp_path)
    for model in (fresh, LOCAForPreTraining.from_pretrained(tmp_path)):
        for positions in (model.loca.embeddings.position_embeddings, model.teacher.loca.embeddings.position_embeddings):
            assert not positions.any()
            assert not positions.requires_grad
    pixels = images(4, 3, 32, 32)
    assert fresh(pixels).loss.item() == pytest.approx(math.log(16) + 0.5, abs=0.4), "chance, with logits of variance 1"
    model = randomise(fresh)
    visible = torch.tensor([1, 6, 7])
    logits = model(pixels, visible_reference_tokens=visible).reference_logits
    tokens = model.loca(pixels, use_positions=False).last_hidden_state
    expected = model.position_predictor(model.final_norm(model.cross_attention(tokens, tokens[:, visible])))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)

    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    patches = F.unfold(pixels, 8, stride=8)[..., order]
    moved = model(
        F.fold(patches, (32, 32), 8, stride=8), visible_reference_tokens=order.argsort()[visible]
    ).reference_logits
    torch.testing.assert_close(moved, logits[:, order], rtol=0, atol=2e-5)


@pytest.mark.parametrize("fields", [{}, {"use_cluster_loss": False}, {"location_target": "self"}])
def test_predicted_positions_look_at_the_whole_reference_and_draw_nothing(fields: dict[str, Any]) -> None:
    model = _model(**fields)
    reference, query = images(2, 3, 32, 32), images(2, 3, 16, 40, seed=1)
    state = torch.random.get_rng_state()
    found = model.predict_positions(reference, query)
    assert torch.equal(state, torch.random.get_rng_state())
    assert found.shape == (2, 10, 16)
    assert not found.requires_grad
    if fields.get("location_target") == "self":
        queries = seen = model.loca(query, use_positions=False).last_hidden_state
        assert torch.equal(model.predict_positions(None, query), found)
    else:
        queries = model.loca(query, use_positions=not fields).last_hidden_state
        seen = (model.loca if fields else model.teacher.loca)(reference).last_hidden_state
        everything = torch.arange(16)
        batch = {"random_query_pixel_values": query, "random_query_positions": torch.zeros(2, 10, dtype=torch.long)}
        same = model(
            reference, **batch, kept_query_tokens=torch.arange(10), visible_reference_tokens=everything
        ).random_query_logits
        torch.testing.assert_close(found, same, rtol=0, atol=1e-5)
    expected = model.position_predictor(model.final_norm(model.cross_attention(queries, seen)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
