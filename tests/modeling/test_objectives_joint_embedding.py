"""The losses of EquiCoherent's hosts against lightly and against their formulas, in value and gradient.

The formulas are written out slowly and in float64. Where lightly's definition is another one, the test says so.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss, NTXentLoss, VICRegLoss
from safetensors.torch import load_file, save_file

from hf_geossl.modeling import objectives as hosts
from hf_geossl.modeling.modeling_equicoherent import indices_of
from hf_geossl.modeling.objectives import sinkhorn
from tests.helpers import forked

TEACHER_TEMPERATURE, STUDENT_TEMPERATURE = 0.04, 0.1
VIEWS, GLOBALS, BATCH, PROTOTYPES = 5, 2, 6, 11
Loss = Callable[..., torch.Tensor]


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _value_and_gradients(loss: Loss, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    value = loss(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)


def _assert_same_loss(ours: Loss, theirs: Loss, *inputs: torch.Tensor, rtol: float = 1e-5) -> None:
    """Theirs is computed in float64."""
    found = _value_and_gradients(ours, *inputs)
    expected = _value_and_gradients(theirs, *(tensor.double() for tensor in inputs))
    for name, mine, other in zip(["value", *["gradient"] * len(inputs)], found, expected, strict=True):
        assert mine.dtype == torch.float32
        assert other.abs().max() > 1e-3, f"{name}: nothing to compare"
        scale = other.abs().max().item()
        torch.testing.assert_close(
            mine, other.float(), rtol=rtol, atol=rtol * scale, msg=lambda t, name=name: f"{name}: {t}"
        )


def _cross_entropy(probabilities: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """CE(P_t, P_s) = -sum P_t log P_s of single tokens, as the spec writes it."""
    scores = (logits / STUDENT_TEMPERATURE).exp()
    return -(probabilities * (scores / scores.sum()).log()).sum()


def _masks() -> torch.Tensor:
    """2 views x 4 images x 9 patches: images without a mask, with one masked patch, with all."""
    masks = torch.rand(8, 9, generator=torch.Generator().manual_seed(1)) < 0.4
    masks[1], masks[2], masks[6], masks[7] = False, True, False, False
    masks[3] = torch.arange(9) == 5
    return masks


def test_teacher_softmax_is_the_formula() -> None:
    logits, center = _normal(2, BATCH, PROTOTYPES), _normal(1, PROTOTYPES, seed=1)
    exponentials = ((logits.double() - center.double()) / 0.5).exp()
    expected = (exponentials / exponentials.sum(-1, keepdim=True)).float()
    for shape in (center, center[0]):
        found = hosts.center_and_sharpen(logits.requires_grad_(), shape, 0.5)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        assert not found.requires_grad


def test_class_token_loss_and_center_are_lightlys() -> None:
    """lightly takes logits and keeps the center; one forward of it is our three functions."""
    teacher, center = _normal(GLOBALS, BATCH, PROTOTYPES, seed=1) * 0.1, _normal(1, PROTOTYPES, seed=2) * 0.1

    def ours(student: torch.Tensor) -> torch.Tensor:
        probabilities = hosts.center_and_sharpen(teacher, center, TEACHER_TEMPERATURE)
        return hosts.dino_loss(student, probabilities, STUDENT_TEMPERATURE)

    oracle = DINOLoss(PROTOTYPES, teacher_temp=TEACHER_TEMPERATURE, student_temp=STUDENT_TEMPERATURE).double()

    def theirs(student: torch.Tensor) -> torch.Tensor:
        oracle.center.copy_(center)
        return oracle(list(teacher.double()), list(student))

    _assert_same_loss(ours, theirs, _normal(VIEWS, BATCH, PROTOTYPES))
    found = hosts.ema_center(center, teacher.mean(dim=(0, 1)), 0.9)
    torch.testing.assert_close(found, oracle.center.float()[0], rtol=1e-5, atol=1e-7)
    assert found.shape == (1, PROTOTYPES)


def test_class_token_loss_is_dinov2s() -> None:
    """DINOv2: the pairs of global views and those with a local view, each divided by (2 + 2 n_local)."""
    probabilities = _normal(GLOBALS, BATCH, PROTOTYPES, seed=1).softmax(-1)
    num_local = VIEWS - GLOBALS

    def literal(student: torch.Tensor) -> torch.Tensor:
        def pair(teacher: int, view: int) -> torch.Tensor:
            targets = probabilities[teacher].double()
            rows = [_cross_entropy(p, s) for p, s in zip(targets, student[view], strict=True)]
            return torch.stack(rows).mean()

        of_globals = (pair(0, 1) + pair(1, 0)) / (2 + 2 * num_local)
        of_locals = sum(pair(q, v) for q in (0, 1) for v in range(2, VIEWS)) / (2 + 2 * num_local)
        return of_globals + of_locals

    ours = partial(hosts.dino_loss, teacher_probabilities=probabilities, student_temperature=STUDENT_TEMPERATURE)
    _assert_same_loss(ours, literal, _normal(VIEWS, BATCH, PROTOTYPES))


def test_class_token_loss_needs_two_views() -> None:
    with pytest.raises(ValueError, match="at least 2 in all, got 1"):
        hosts.dino_loss(torch.zeros(1, 2, 3), torch.ones(1, 2, 3) / 3, 0.1)


def test_patch_token_loss_is_ibots_and_dinov2s() -> None:
    """
    Given the same masks both hosts' formulas are one number, gradients included. It counts images without a mask as 0,
    so it is the mean over the images that have one, times their share: half where half are masked (both hosts do that).

    lightly moves its center by the masked patches only, as DINOv2 does, where iBOT takes all: here it stands at 0, and
    which patches move ours is for the caller of `ema_center` to say.
    """
    masks, probabilities = _masks(), _normal(8, 9, PROTOTYPES, seed=1).softmax(-1)

    def ours(student: torch.Tensor) -> torch.Tensor:
        weights = hosts.masked_patch_weights(masks, indices_of(masks))
        return hosts.ibot_patch_loss(student[masks], probabilities[masks], weights, STUDENT_TEMPERATURE)

    def patches(student: torch.Tensor, image: int) -> list[torch.Tensor]:
        places = masks[image].nonzero()[:, 0].tolist()
        return [_cross_entropy(probabilities[image, n].double(), student[image, n]) for n in places]

    def ibot(student: torch.Tensor) -> torch.Tensor:
        views = []
        for images in (range(4), range(4, 8)):
            per_image = [sum(patches(student, i)) / max(1, int(masks[i].sum())) for i in images]
            views.append(sum(per_image) / 4)
        return torch.as_tensor(sum(views) / 2)

    def dinov2(student: torch.Tensor) -> torch.Tensor:
        terms = [(1 / int(masks[i].sum())) * ce for i in range(8) for ce in patches(student, i)]
        return torch.stack(terms).sum() / 8

    def of_masked_images(student: torch.Tensor) -> torch.Tensor:
        means = [torch.stack(patches(student, i)).mean() for i in range(8) if masks[i].any()]
        return torch.stack(means).mean() * len(means) / 8

    def lightly(student: torch.Tensor) -> torch.Tensor:
        oracle = IBOTPatchLoss(PROTOTYPES, teacher_temp=1.0, student_temp=STUDENT_TEMPERATURE).double()
        return oracle(probabilities[masks].double().log(), student[masks], masks.view(8, 3, 3))

    assert (~masks).all(dim=1).sum() == 3
    for theirs in (ibot, dinov2, of_masked_images, lightly):
        _assert_same_loss(ours, theirs, _normal(8, 9, PROTOTYPES))


def test_patch_token_loss_without_masks_is_zero() -> None:
    weights = hosts.masked_patch_weights(torch.zeros(4, 9, dtype=torch.bool), torch.zeros(0, dtype=torch.int64))
    student = torch.zeros(0, PROTOTYPES, requires_grad=True)
    loss = hosts.ibot_patch_loss(student, torch.zeros(0, PROTOTYPES), weights, STUDENT_TEMPERATURE)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert weights.dtype == torch.float32


def test_koleo_loss_is_the_formula_and_lightlys() -> None:
    """lightly also adds 1e-8 to each coordinate of the difference, as DINOv2's code does: far below float32."""

    def literal(features: torch.Tensor) -> torch.Tensor:
        points = [x / x.square().sum().sqrt() for x in features]
        terms = []
        for i, x in enumerate(points):
            others = [y for j, y in enumerate(points) if j != i]
            nearest = max(others, key=lambda y: float((x @ y).detach()))
            terms.append(((x - nearest).square().sum().sqrt() + 1e-8).log())
        return -torch.stack(terms).mean()

    for theirs in (literal, KoLeoLoss()):
        _assert_same_loss(hosts.koleo_loss, theirs, _normal(9, 4))


def test_koleo_loss_of_equal_features_is_finite() -> None:
    value, gradient = _value_and_gradients(hosts.koleo_loss, torch.ones(3, 4))
    assert value.item() == pytest.approx(-math.log(1e-8))
    assert gradient.isfinite().all()


def test_vicreg_loss_is_lightlys() -> None:
    """Embeddings small enough that deviations fall on both sides of 1. lightly's epsilon is the same 1e-4."""
    first = _normal(10, 7) * torch.linspace(0.3, 1.6, 7)
    second = first + 0.3 * _normal(10, 7, seed=1)
    for weights in ((25.0, 25.0, 1.0), (10.0, 10.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        _assert_same_loss(lambda a, b, w=weights: hosts.vicreg_loss(a, b, *w)[0], VICRegLoss(*weights), first, second)
    loss, *components = hosts.vicreg_loss(first, second, 10.0, 10.0, 1.0)
    units = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    expected = [VICRegLoss(*unit)(first, second).item() for unit in units]
    assert [component.item() for component in components] == pytest.approx(expected, rel=1e-5)
    assert loss.item() == pytest.approx(10 * expected[0] + 10 * expected[1] + expected[2], rel=1e-5)


def test_nt_xent_loss_is_lightlys() -> None:
    """lightly orders candidates another way (all first views, then all second ones); the sums are the same."""
    _assert_same_loss(
        partial(hosts.nt_xent_loss, temperature=0.1), NTXentLoss(temperature=0.1), _normal(7, 5), _normal(7, 5, seed=1)
    )


def test_nt_xent_loss_of_one_image_is_ln_1() -> None:
    first = _normal(1, 4).requires_grad_()
    loss = hosts.nt_xent_loss(first, _normal(1, 4, seed=1), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert first.grad is not None
    assert first.grad.abs().max() < 1e-6


@pytest.mark.parametrize("loss", [hosts.koleo_loss, lambda x: hosts.vicreg_loss(x, x, 25.0, 25.0, 1.0)])
def test_losses_between_images_need_two(loss: Loss) -> None:
    with pytest.raises(ValueError, match="at least 2 images.*got 1"):
        loss(_normal(1, 4))


def _literal_sinkhorn(logits: torch.Tensor, temperature: float, iterations: int) -> torch.Tensor:
    """DINOv2's steps on the tokens of all processes, in float64."""
    scores = (logits.double() / temperature).exp().T
    num_prototypes, num_tokens = scores.shape
    scores = scores / scores.sum()
    for _ in range(iterations):
        scores = scores / (scores.sum(dim=1, keepdim=True) * num_prototypes)
        scores = scores / (scores.sum(dim=0, keepdim=True) * num_tokens)
    return (num_tokens * scores).T.float()


@pytest.mark.parametrize("iterations", [1, 3])
def test_teacher_sinkhorn_is_dinov2s_and_locas(iterations: int) -> None:
    logits = _normal(13, PROTOTYPES).clamp(-1, 1).requires_grad_()
    found = hosts.sinkhorn_knopp(logits, TEACHER_TEMPERATURE, iterations)
    expected = _literal_sinkhorn(logits.detach(), TEACHER_TEMPERATURE, iterations)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-8)
    of_loca = sinkhorn(((logits.detach() - 1) / TEACHER_TEMPERATURE).exp(), iterations)
    torch.testing.assert_close(found, of_loca, rtol=2e-5, atol=1e-8)
    assert not found.requires_grad


def test_teacher_sinkhorn_of_nothing() -> None:
    assert hosts.sinkhorn_knopp(torch.zeros(0, PROTOTYPES), TEACHER_TEMPERATURE, 3).shape == (0, PROTOTYPES)
    with pytest.raises(ValueError, match="iterations must be 1 or more, got 0"):
        hosts.sinkhorn_knopp(torch.zeros(2, PROTOTYPES), TEACHER_TEMPERATURE, 0)


def test_teacher_sinkhorn_keeps_tokens_and_prototypes_far_below_the_others() -> None:
    """A token and a prototype whose exponentials vanish beside the others' still get what the formula gives them."""
    logits = _normal(8, PROTOTYPES) * 0.2
    logits[3] -= 10  # exp(-10 / .04) is 0 in float32, 2.7e-109 in float64
    logits[:, 2] -= 12
    found = hosts.sinkhorn_knopp(logits, TEACHER_TEMPERATURE, 3)
    expected = _literal_sinkhorn(logits, TEACHER_TEMPERATURE, 3)
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-6)


def test_prediction_diversity_is_mutual_information() -> None:
    """The mean Kullback-Leibler divergence of predictions from their mean: the same by another formula."""
    probabilities = (_normal(9, PROTOTYPES) * 2).softmax(-1)
    wide = probabilities.double()
    expected = (wide * (wide / wide.mean(dim=0)).log()).sum(-1).mean().item()
    assert hosts.prediction_diversity(probabilities).item() == pytest.approx(expected, rel=1e-5)
    assert hosts.prediction_diversity(torch.eye(7)).item() == pytest.approx(math.log(7), rel=1e-6)
    assert hosts.prediction_diversity(torch.eye(7)[[2, 2, 2]]).item() == pytest.approx(0, abs=1e-6)


LOSSES_OF_TWO: dict[str, Loss] = {
    "class": lambda a, b: hosts.dino_loss(a.view(2, 4, 6), hosts.center_and_sharpen(b.view(2, 4, 6), b[0], 0.1), 0.1),
    "class sinkhorn": lambda a, b: hosts.dino_loss(a.view(2, 4, 6), hosts.sinkhorn_knopp(b, 0.1, 3).view(2, 4, 6), 0.1),
    "patch": lambda a, b: hosts.ibot_patch_loss(a, hosts.center_and_sharpen(b, b[:1], 0.1), b[:, 0].abs(), 0.1),
    "koleo": lambda a, b: hosts.koleo_loss(torch.cat([a, torch.full_like(a[:, :1], 16)], dim=1)),  # close together
    "vicreg": lambda a, b: hosts.vicreg_loss(a, b, 10.0, 10.0, 1.0)[0],
    "nt_xent": lambda a, b: hosts.nt_xent_loss(a, b, 0.1),
    "center": lambda a, b: hosts.ema_center(a[:1], b[0], 0.9).sum(),
    "diversity": lambda a, b: hosts.prediction_diversity(a.abs() / 8),
}


@pytest.mark.parametrize("name", LOSSES_OF_TWO)
def test_losses_are_float32_under_bf16_autocast(name: str) -> None:
    """Half-precision inputs cost their own rounding and nothing more: the loss is, bit for bit, that of their values."""
    first, second = _normal(8, 6).bfloat16(), _normal(8, 6, seed=1).bfloat16()
    expected = LOSSES_OF_TWO[name](first.float(), second.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = LOSSES_OF_TWO[name](first, second)
    assert found.dtype == torch.float32
    assert found.item() == expected.item()


@pytest.mark.parametrize("name", ["class", "class sinkhorn", "patch", "koleo", "vicreg", "nt_xent"])
def test_extreme_inputs_stay_finite(name: str) -> None:
    """Scores of +-1e4, divided by temperatures."""
    first = torch.where(_normal(8, 6) > 0, 1e4, -1e4)
    second = torch.where(_normal(8, 6, seed=1) > 0, 1e4, -1e4)
    value, *gradients = _value_and_gradients(lambda a: LOSSES_OF_TWO[name](a, second), first)
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)
    for temperature in (TEACHER_TEMPERATURE, 1.0):
        found = hosts.sinkhorn_knopp(second, temperature, 3)
        torch.testing.assert_close(found.sum(dim=-1), torch.ones(8))


_TWO_PROCESSES = """
import sys
import torch
from safetensors.torch import load_file, save_file
from hf_geossl.modeling import objectives as hosts

torch.distributed.init_process_group("gloo")
rank, folder = torch.distributed.get_rank(), sys.argv[1]
given = load_file(f"{folder}/given.safetensors")
images = slice(4 * rank, 4 * rank + 4)
first, second, masks, teacher = (given[name][images] for name in ("first", "second", "masks", "teacher"))
patches, of_patches = given["patches"][images][masks], given["teacher_patches"][images][masks]
losses = {
    "vicreg": lambda w: hosts.vicreg_loss(first @ w, second @ w, 10.0, 10.0, 1.0)[0],
    "vicreg of one image": lambda w: hosts.vicreg_loss(first[:1] @ w, second[:1] @ w, 10.0, 10.0, 1.0)[0],
    "nt_xent": lambda w: hosts.nt_xent_loss(first @ w, second @ w, 0.1),
    "nt_xent of one image": lambda w: hosts.nt_xent_loss(first[:1] @ w, second[:1] @ w, 0.1),
    "class": lambda w: hosts.dino_loss(torch.stack([first, second]) @ w, torch.stack([teacher, teacher]), 0.1),
    "patch": lambda w: hosts.ibot_patch_loss(patches @ w, of_patches, hosts.masked_patch_weights(masks, masks.flatten().nonzero().flatten()), 0.1),
}
found = {"gathered": hosts.gather_with_gradient(first.T.contiguous().T)}
for name, loss in losses.items():
    weight = given["weight"].clone().requires_grad_()
    value = loss(weight)
    value.backward()
    mean = torch.cat([value.detach()[None], weight.grad.flatten()])
    torch.distributed.all_reduce(mean)  # as DistributedDataParallel: the mean over processes
    found[name] = mean / 2
for name, tokens in {"5 and 8": [slice(0, 5), slice(5, 13)], "0 and 13": [slice(0, 0), slice(0, 13)]}.items():
    found[f"sinkhorn {name}"] = hosts.sinkhorn_knopp(given["logits"][tokens[rank]], 0.04, 3)
found["sinkhorn of nothing"] = hosts.sinkhorn_knopp(given["logits"][:0], 0.04, 3)
save_file(found, f"{folder}/found_{rank}.safetensors")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    """Values and gradients, averaged over two real processes, against one process; Sinkhorn with uneven tokens."""
    given = {name: _normal(8, 5, seed=i) * 0.5 for i, name in enumerate(["first", "second"])}
    given |= {"weight": _normal(5, 7, seed=2) * 0.5, "teacher": _normal(8, 7, seed=3).softmax(-1), "masks": _masks()}
    given |= {"patches": _normal(8, 9, 5, seed=4), "teacher_patches": _normal(8, 9, 7, seed=5).softmax(-1)}
    given["logits"] = _normal(13, 7, seed=6).clamp(-1, 1)
    save_file(given, tmp_path / "given.safetensors")
    forked.run(_TWO_PROCESSES, str(tmp_path), output=tmp_path / "output.txt", world_size=2)
    found = [load_file(tmp_path / f"found_{rank}.safetensors") for rank in (0, 1)]

    first, second, masks, teacher = (given[name] for name in ("first", "second", "masks", "teacher"))
    patches, of_patches, ends = given["patches"][masks], given["teacher_patches"][masks], [0, 4]
    losses: dict[str, Loss] = {
        "vicreg": lambda w: hosts.vicreg_loss(first @ w, second @ w, 10.0, 10.0, 1.0)[0],
        "vicreg of one image": lambda w: hosts.vicreg_loss(first[ends] @ w, second[ends] @ w, 10.0, 10.0, 1.0)[0],
        "nt_xent": lambda w: hosts.nt_xent_loss(first @ w, second @ w, 0.1),
        "nt_xent of one image": lambda w: hosts.nt_xent_loss(first[ends] @ w, second[ends] @ w, 0.1),
        "class": lambda w: hosts.dino_loss(torch.stack([first, second]) @ w, torch.stack([teacher, teacher]), 0.1),
        "patch": lambda w: hosts.ibot_patch_loss(
            patches @ w, of_patches, hosts.masked_patch_weights(masks, indices_of(masks)), 0.1
        ),
    }
    for name, loss in losses.items():
        value, gradient = _value_and_gradients(loss, given["weight"])
        expected = torch.cat([value[None], gradient.flatten()])
        for rank in (0, 1):
            torch.testing.assert_close(
                found[rank][name], expected, rtol=1e-5, atol=1e-5, msg=lambda t, name=name: f"{name}: {t}"
            )
    expected = _literal_sinkhorn(given["logits"], TEACHER_TEMPERATURE, 3)
    for split in ("5 and 8", "0 and 13"):
        together = torch.cat([found[rank][f"sinkhorn {split}"] for rank in (0, 1)])
        torch.testing.assert_close(together, expected, rtol=2e-5, atol=1e-8)
    for rank in (0, 1):
        assert found[rank]["sinkhorn of nothing"].shape == (0, 7)
        assert torch.equal(found[rank]["gathered"], first)
