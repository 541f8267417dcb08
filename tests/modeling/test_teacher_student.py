"""The teacher moves by the formula, in float32, and never by the forward pass."""

from pathlib import Path

import pytest
import torch

from hf_geossl.hub.export import export_model
from tests.helpers.methods import (
    METHODS,
    Method,
    randomise,
)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return METHODS[request.param]


def test_continuing_from_an_exported_trunk_starts_the_teacher_as_the_student(method: Method, tmp_path: Path) -> None:
    model = method.model("ForPreTraining", std=1.0)
    for seed, (weights, trunk) in enumerate(
        (("teacher", method.trunk(model.teacher)), ("student", method.trunk(model)))
    ):
        randomise(trunk, std=1.0, seed=seed)
        export_model(model, tmp_path / weights, weights=weights)
        again = type(model).from_pretrained(tmp_path / weights)
        for name, value in method.trunk(again).state_dict().items():
            if name != "embeddings.mask_token":  # pretraining's own, not exported
                assert torch.equal(value, trunk.state_dict()[name]), name
        for teacher, student in zip(*again.teacher_pairs(), strict=True):
            assert torch.equal(teacher, student)
            assert teacher.data_ptr() != student.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_teacher_moves_by_the_formula_in_float32(method: Method, dtype: torch.dtype, tmp_path: Path) -> None:
    model = method.model("ForPreTraining")
    randomise(model.teacher, seed=5)
    model.save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path, dtype=dtype)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.update_teacher(0.996)
    for name, value in model.state_dict().items():
        if not name.startswith("teacher."):
            assert torch.equal(value, state[name]), name
            assert value.dtype == (torch.float32 if name in method.centers else dtype)
            continue
        student = state[name.removeprefix("teacher.")].double()
        expected = 0.996 * state[name].double() + 0.004 * student
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-7, msg=name)
    model.update_teacher(1.0)
    model.update_teacher(0.0)
    for teacher, student in zip(*model.teacher_pairs(), strict=True):
        assert torch.equal(teacher, student.float())
    model.update_teacher(1.0)
    for teacher, student in zip(*model.teacher_pairs(), strict=True):
        assert torch.equal(teacher, student.float())


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan"), float("inf")])
def test_teacher_momentum_outside_0_to_1_is_refused(method: Method, momentum: float) -> None:
    model = method.kind("ForPreTraining")(method.config(num_hidden_layers=1))
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\]"):
        model.update_teacher(momentum)


def test_forward_changes_nothing_and_only_the_student_is_trained_all_of_it(method: Method) -> None:
    model = method.model("ForPreTraining", drop_path_rate=0.2).train()
    randomise(model.teacher, seed=5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert tuple(name for name, _ in model.named_buffers()) == method.centers
    for _ in range(2):
        model(**method.batch()).loss.backward()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, parameter in model.named_parameters():
        if name.startswith("teacher."):
            assert parameter.grad is None, name
            assert not parameter.requires_grad, name
        else:
            assert parameter.grad is not None, f"{name} is not trained"


def test_losses_stay_float32_under_autocast_and_in_a_half_precision_student(method: Method, tmp_path: Path) -> None:
    model, batch = method.model("ForPreTraining", std=0.1), method.batch()
    model.save_pretrained(tmp_path)
    half = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)  # the teacher stays in float32
    found = {}
    for name, one, autocast in (("float32", model, False), ("autocast", model, True), ("half", half, False)):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            found[name] = one(**batch)
    names = [name for name, value in found["float32"].items() if name.endswith("loss") and value is not None]
    assert len(names) > 2
    for kind in ("autocast", "half"):
        for name in names:
            assert found[kind][name].dtype == torch.float32, name
            assert found[kind][name].item() == pytest.approx(found["float32"][name].item(), abs=0.03), name
    found["half"].loss.backward()
    assert all(p.grad.isfinite().all() for p in half.parameters() if p.requires_grad)


def test_hidden_states_of_pretraining_come_from_the_student(method: Method) -> None:
    model, batch = method.model("ForPreTraining"), method.batch()
    outputs = model(**batch, output_hidden_states=True)
    last = method.trunk(model).layernorm(outputs.hidden_states[-1])
    assert len(outputs.hidden_states) == 5
    assert last.grad_fn is not None
    assert model(**batch).hidden_states is None
