"""The plain programs that a step is timed against compute what ours compute, and the command prints what it measured."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from benchmarks.step import (
    METHODS,
    PARTS,
    VARIANTS,
    Step,
    main,
    make_batch,
    make_model,
    make_plain,
    memory_of,
    parser,
    resident,
)

TINY = [
    *("--hidden_size", "48", "--num_hidden_layers", "2", "--num_attention_heads", "3", "--global_size", "64"),
    *("--local_size", "32", "--num_local", "3", "--batch_size", "3", "--drop_path_rate", "0", "--repeats", "1"),
]


def _tiny(method: str) -> Namespace:
    return parser().parse_args(["--method", method, *TINY])


@pytest.mark.parametrize("method", METHODS)
def test_the_plain_step_has_our_losses_and_gradients(method: str) -> None:
    args = _tiny(method)
    batch, model = make_batch(args), make_model(args)
    for parameter in model.parameters():  # a teacher unlike the student
        with torch.no_grad():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    plain = make_plain(args, model)
    torch.manual_seed(1)  # LOCA draws tokens
    ours = model(**batch)
    ours.loss.backward()
    torch.manual_seed(1)
    theirs = plain(**METHODS[method].plain.prepare(batch))
    theirs["loss"].backward()
    found = {**ours, **(ours.get("components") or {})}
    assert len(theirs) > 3
    for name, value in theirs.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-5), name
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    trained = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, gradient in gradients.items() if gradient is not None} == set(trained)
    for name, gradient in trained.items():
        assert (gradient - gradients[name]).norm() <= 1e-4 * gradient.norm() + 1e-7, name


@pytest.mark.parametrize("method", METHODS)
def test_the_plain_step_moves_weights_and_teacher_as_ours(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clipping, moving average and centers; SGD in the place of AdamW, to which a gradient's size would not matter."""
    monkeypatch.setattr("benchmarks.step.MOMENTUM", 0.5)
    args = _tiny(method)
    batch = make_batch(args)
    moved = []
    for variant in ("baseline", "ours"):
        step = Step(variant, args, batch)
        before = {name: value.clone() for name, value in step.model.state_dict().items()}
        step.optimizer, step.max_norm = torch.optim.SGD(step.trained, lr=2.0), 0.05
        for seed in range(2):
            torch.manual_seed(seed)
            step()
        moved.append({name: value - before[name] for name, value in step.model.state_dict().items()})
    assert moved[0].keys() == moved[1].keys()
    for name, value in moved[0].items():
        assert (value - moved[1][name]).norm() <= 1e-3 * value.norm() + 3e-6, name
    assert sum(value.norm() > 1e-4 for value in moved[0].values()) > 0.8 * len(moved[0])


@pytest.mark.parametrize("method", ["gtsa", "loca"])  # loca's line has a comparison of its own
def test_the_command_prints_one_line_of_what_it_measured(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "profile.png"
    more = ["--scaling", "--profile", str(picture)] if method == "gtsa" else []
    main(["--method", method, *TINY, "--json", "--no_memory", *more])
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    for name in (*VARIANTS, "ratio", "bf16_ratio", "moving_average", "moving_average_share", "operations"):
        assert result[name] > 0, name
    # one round: there is nothing to take a median of
    assert result["ratio"] == pytest.approx(result["baseline"] / result["ours"], rel=0.02)
    assert result["bf16_ratio"] == pytest.approx(result["baseline"] / result["bf16"], rel=0.02)
    assert ("ours_to_plain_gtsa" in result) == (method == "loca")
    if method == "gtsa":
        assert set(result["profile"]) == set(VARIANTS)
        for parts in result["profile"].values():
            assert tuple(parts) == PARTS
            assert min(parts.values()) > 0
        assert picture.read_bytes()[:4] == b"\x89PNG"
        assert list(result["seconds_an_image_by_batch_size"]) == ["2", "4", "8", "16"]


def test_memory_is_that_of_a_process_of_its_own() -> None:
    """What this process holds does not count."""
    held = torch.ones(2**28)  # 1 GiB
    found = memory_of("bf16", TINY)
    assert 100 < found["libraries"] <= found["before"] < found["peak"] < found["before"] + 500
    assert found["peak"] < resident("VmHWM") - 500 or held.sum() < 0
