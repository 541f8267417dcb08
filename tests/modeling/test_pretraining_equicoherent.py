"""EquiCoherent's pretraining against its formulas, written out image by image: hosts, split, reconstruction, centers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightly.loss import NTXentLoss, VICRegLoss
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from hf_geossl import EquiCoherentForPreTraining, EquiCoherentModel
from hf_geossl.hub.export import export_model
from hf_geossl.modeling.teacher_student import ReconstructionDecoder
from tests.helpers import forked
from tests.helpers.equicoherent_model import make_batch as _batch
from tests.helpers.equicoherent_model import make_config as _config
from tests.helpers.equicoherent_model import make_model as _model
from tests.helpers.methods import METHODS, literal_trunk, randomise, triangle_weights

EQUICOHERENT = METHODS["equicoherent"]


State = dict[str, torch.Tensor]


ARMS: dict[str, dict[str, Any]] = {
    "ibot": {},
    "ibot separate": {"shared_head": False, "norm_last_layer": True},
    "ibot logits": {"split": "logits", "num_prototypes": None},
    "ibot logits separate": {"split": "logits", "num_prototypes": None, "shared_head": False},
    "ibot unmasked": {"recon_unmasked": True},
    "dinov2": {"host": "dinov2"},
    "dinov2 separate": {"host": "dinov2", "shared_head": False},
    "dinov2 sinkhorn": {"host": "dinov2", "centering": "sinkhorn"},
    "dinov2 sinkhorn separate": {"host": "dinov2", "centering": "sinkhorn", "shared_head": False},
    "dino": {"host": "dino"},
    "dino scaled": {"host": "dino", "norm_last_layer": False},
    "vicreg": {"host": "vicreg"},
    "vicreg class": {"host": "vicreg", "pool": "class"},
    "simclr": {"host": "simclr"},
    "simclr class": {"host": "simclr", "pool": "class", "projector_sizes": (18,)},
}


HOSTS = ["ibot", "dinov2", "dino", "vicreg", "simclr"]


def _part(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _literal_decoder(state: State, tokens: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """Section 1.3: linear, then four stages of bilinear upsampling and 3 x 3 convolution, GELU but after the last."""
    x = tokens @ state["linear.weight"].T + state["linear.bias"]  # (B, N, C)
    rows = [x[:, grid[1] * row : grid[1] * row + grid[1]] for row in range(grid[0])]
    x = torch.stack(rows, dim=1)  # (B, rows, columns, C)
    for stage in range(1, 5):
        target = size if stage == 4 else tuple(min(2**stage * g, s) for g, s in zip(grid, size, strict=True))
        down, across = (triangle_weights(old, new) for old, new in zip(x.shape[1:3], target, strict=True))
        x = torch.einsum("ik,jl,bklc->bijc", down, across, x)
        padded = torch.zeros(len(x), x.shape[1] + 2, x.shape[2] + 2, x.shape[3], dtype=x.dtype)
        padded[:, 1:-1, 1:-1] = x
        kernel, bias = (state[f"convolutions.{stage - 1}.{kind}"] for kind in ("weight", "bias"))
        x = bias + sum(
            padded[:, i : i + target[0], j : j + target[1]] @ kernel[:, :, i, j].T for i in range(3) for j in range(3)
        )
        if stage < 4:
            x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    return x.permute(0, 3, 1, 2)


class _Literal:
    """Sections 1.2 to 1.5 of the method."""

    def __init__(self, model: Any, temperature: float | None = None) -> None:
        self.config = model.config
        self.temperature = model.config.teacher_temperature if temperature is None else temperature
        self.state = {name: value.detach().double() for name, value in model.state_dict().items()}
        self.student = {name for name, value in model.named_parameters() if not name.startswith("teacher.")}
        for name in self.student:
            self.state[name].requires_grad_()

    # -- pieces

    def trunk(self, owner: str, pixels: torch.Tensor, masks: torch.Tensor | None = None) -> torch.Tensor:
        return literal_trunk(self.config, _part(self.state, f"{owner}equicoherent."), pixels, bool_masked_pos=masks)

    def patches(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, 1 + self.config.num_register_tokens :]

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        y = x @ self.state[f"{name}.weight"].T
        return y + self.state[f"{name}.bias"] if f"{name}.bias" in self.state else y

    def invariant(self, owner: str, tokens: torch.Tensor) -> torch.Tensor:
        if self.config.split == "logits":
            return tokens
        inside = self.config.patch_features - self.config.equivariant_features
        return self.linear(tokens, f"{owner}split_head")[..., :inside]

    def equivariant(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.config.split == "logits":  # the first outputs are prototypes, the last the decoders'
            return self.outputs("head", tokens)[..., -self.config.equivariant_features :]
        return self.linear(tokens, "split_head")[..., -self.config.equivariant_features :]

    def outputs(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """D -> hidden -> hidden -> bottleneck, unit length, cosines with prototypes times their scale."""
        for index in range(3):
            x = self.linear(x, f"{name}.linears.{index}")
            if index < 2:
                x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
        x = x / x.square().sum(-1, keepdim=True).sqrt()
        rows = self.state[f"{name}.prototypes.weight"]
        scores = x @ (rows / rows.square().sum(1, keepdim=True).sqrt()).T
        if not self.config.norm_last_layer:
            scores = scores * self.state[f"{name}.prototypes.scale"][:, 0]
        return scores

    def scores(self, owner: str, head: str, tokens: torch.Tensor) -> torch.Tensor:
        scores = self.outputs(f"{owner}{head}", self.invariant(owner, tokens))
        if self.config.split == "logits":
            scores = scores[..., : self.config.patch_features - self.config.equivariant_features]
        return scores

    def targets(self, scores: torch.Tensor, center: str) -> torch.Tensor:
        """Probabilities `(tokens, prototypes)` of the teacher."""
        if self.config.centering == "softmax":
            exponentials = ((scores - self.state[center]) / self.temperature).exp()
            return exponentials / exponentials.sum(-1, keepdim=True)
        q = (scores / self.temperature).exp().T
        q = q / q.sum()
        for _ in range(3):
            q = q / (q.sum(1, keepdim=True) * q.shape[0])
            q = q / (q.sum(0, keepdim=True) * q.shape[1])
        return (q * q.shape[1]).T

    @staticmethod
    def cross_entropy(probabilities: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return -(probabilities * (scores / 0.1 - (scores / 0.1).logsumexp(-1, keepdim=True))).sum()

    # -- hosts

    def teacher_host(self, batch: State) -> tuple[torch.Tensor, State]:
        config, views = self.config, batch["global_pixel_values"].unbind(1)
        masks = (
            batch["bool_masked_pos"].unbind(1) if config.host != "dino" and "bool_masked_pos" in batch else (None,) * 2
        )
        batch_size = len(views[0])
        students = [self.trunk("", view, mask) for view, mask in zip(views, masks, strict=True)]
        local = [self.trunk("", view) for view in batch["local_pixel_values"].unbind(1)]  # never masked
        with torch.no_grad():
            teachers = [self.trunk("teacher.", view) for view in views]  # nor is the teacher
            of_class = torch.cat([self.scores("teacher.", "head", tokens[:, 0]) for tokens in teachers])
            targets = self.targets(of_class, "class_center").split(batch_size)
        students_class = [self.scores("", "head", tokens[:, 0]) for tokens in [*students, *local]]
        pairs = [(q, v) for q in range(2) for v in range(len(students_class)) if q != v]
        terms = [self.cross_entropy(targets[q][b], students_class[v][b]) for q, v in pairs for b in range(batch_size)]
        parts = {"class_loss": sum(terms) / len(terms)}
        loss = config.class_loss_weight * parts["class_loss"]
        if config.host != "dino":
            parts["patch_loss"] = self.patch_loss(students, teachers, masks)
            loss = loss + config.patch_loss_weight * parts["patch_loss"]
        if config.host == "dinov2":
            parts["koleo_loss"] = sum(self.koleo(tokens[:, 0]) for tokens in students)
            loss = loss + config.koleo_weight * parts["koleo_loss"]
        probabilities = torch.cat(targets)
        parts["teacher_entropy"] = -(probabilities * probabilities.log()).sum(-1).mean()
        ratio = (probabilities / probabilities.mean(0)).log()
        parts["prediction_diversity"] = (probabilities * ratio).sum(-1).mean()  # mutual information
        return loss, parts

    def patch_loss(self, students: Any, teachers: Any, masks: Any) -> torch.Tensor:
        head = "head" if self.config.shared_head else "patch_head"
        if masks[0] is None:
            return torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            chosen = [self.patches(tokens)[mask] for tokens, mask in zip(teachers, masks, strict=True)]
            targets = self.targets(self.scores("teacher.", head, torch.cat(chosen)), "patch_center")
        targets, terms = list(targets), []
        for tokens, mask in zip(students, masks, strict=True):
            for b in range(len(mask)):
                places = mask[b].nonzero()[:, 0].tolist()
                for place in places:  # 1 / #masked of its image, / #images
                    scores = self.scores("", head, self.patches(tokens)[b, place])
                    terms.append(self.cross_entropy(targets.pop(0), scores) / len(places) / (2 * len(mask)))
        assert not targets
        return sum(terms, torch.zeros((), dtype=torch.float64))

    @staticmethod
    def koleo(features: torch.Tensor) -> torch.Tensor:
        points = [x / x.square().sum().sqrt() for x in features]
        terms = []
        for i, x in enumerate(points):
            others = [y for j, y in enumerate(points) if j != i]
            nearest = max(others, key=lambda y: float((x @ y).detach()))
            terms.append(-((x - nearest).square().sum().sqrt() + 1e-8).log())
        return sum(terms) / len(terms)

    def pair_host(self, batch: State) -> tuple[torch.Tensor, State]:
        config, found = self.config, []
        for view in batch["global_pixel_values"].unbind(1):
            tokens = self.trunk("", view)
            inside = self.invariant("", tokens)  # of every token, then the mean: section 1.2
            x = inside[:, 0] if config.pool == "class" else self.patches(inside).mean(1)
            for index in range(len(config.projector_sizes)):
                x = self.linear(x, f"head.linears.{index}")
                if index < len(config.projector_sizes) - 1:
                    weight, bias = (self.state[f"head.norms.{index}.{kind}"] for kind in ("weight", "bias"))
                    variance = (x - x.mean(0)).square().mean(0)
                    x = ((x - x.mean(0)) / (variance + 1e-5).sqrt() * weight + bias).clamp_min(0)
            found.append(x)
        first, second = found
        n, width = first.shape
        if config.host == "simclr":
            rows = [x / x.square().sum().sqrt() for pair in zip(first, second, strict=True) for x in pair]
            terms = []
            for i, row in enumerate(rows):
                scores = torch.stack([row @ other / 0.1 for j, other in enumerate(rows) if j != i])
                positive = row @ rows[i ^ 1] / 0.1
                terms.append(scores.exp().sum().log() - positive)
            loss = sum(terms) / len(terms)
            assert loss.item() == pytest.approx(NTXentLoss(temperature=0.1)(first, second).item(), rel=1e-9)
            return loss, {"contrast_loss": loss}
        parts = {"invariance_loss": (first - second).square().mean(), "variance_loss": 0.0, "covariance_loss": 0.0}
        for z in found:
            centered = z - z.mean(0)
            deviation = (centered.square().sum(0) / (n - 1) + 1e-4).sqrt()
            parts["variance_loss"] = parts["variance_loss"] + (1 - deviation).clamp_min(0).mean() / 2
            covariance = centered.T @ centered / (n - 1)
            apart = covariance.square().sum() - covariance.diagonal().square().sum()
            parts["covariance_loss"] = parts["covariance_loss"] + apart / width
        weights = (config.invariance_weight, config.variance_weight, config.covariance_weight)
        loss = sum(weight * part for weight, part in zip(weights, parts.values(), strict=True))
        assert loss.item() == pytest.approx(VICRegLoss(*weights)(first, second).item(), rel=1e-9)
        return loss, parts

    # -- the whole

    def reconstruct(self, batch: State) -> tuple[torch.Tensor, torch.Tensor]:
        config, views = self.config, batch["global_pixel_values"]
        masked = config.host in ("ibot", "dinov2") and not config.recon_unmasked and "bool_masked_pos" in batch
        found = []
        for view in range(2):
            tokens = self.trunk("", views[:, view], batch["bool_masked_pos"][:, view] if masked else None)
            found.append(self.equivariant(self.patches(tokens)))
        pairs = torch.cat(found, dim=-1)  # [z1; z2] of each place
        size = tuple(views.shape[-2:])
        grid = tuple(side // config.patch_size for side in size)
        targets = list(batch["intermediate_pixel_values"].unbind(1)) + [views[:, 1]] * config.reconstruct_final
        images, terms = [], []
        for index, target in enumerate(targets):
            decoder = _part(self.state, f"reconstruction.decoders.{index}.")
            images.append(_literal_decoder(decoder, pairs, grid, size))
            terms.append((images[-1] - target).square().mean())
        assert not _part(self.state, f"reconstruction.decoders.{len(targets)}.")
        return sum(terms) / len(targets), torch.stack(images, dim=1)

    def __call__(self, batch: State) -> dict[str, Any]:
        host = self.teacher_host if self.config.host in ("ibot", "dinov2", "dino") else self.pair_host
        host_loss, components = host(batch)
        reconstruction, images = self.reconstruct(batch)
        wanted = [batch["intermediate_pixel_values"]] + [
            batch["global_pixel_values"][:, 1:]
        ] * self.config.reconstruct_final
        components["mean_image_loss"] = torch.cat(wanted, dim=1).double().var(dim=0, correction=0).mean()
        return {
            "loss": host_loss + self.config.reconstruction_weight * reconstruction,
            "host_loss": host_loss,
            "reconstruction_loss": reconstruction,
            "components": components,
            "reconstructions": images,
        }


def _assert_near(found: torch.Tensor, expected: torch.Tensor, name: str, tolerance: float = 2e-5) -> None:
    atol = tolerance * max(expected.abs().max().item(), 1e-2)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=atol, msg=lambda t: f"{name}: {t}")


def _assert_literal(model: Any, batch: State, gradients: bool = True, **kwargs: Any) -> None:
    outputs = model(**batch, **kwargs)
    literal = _Literal(model, kwargs.get("teacher_temperature"))
    expected = literal(batch)
    for name in ("loss", "host_loss", "reconstruction_loss", "reconstructions"):
        _assert_near(outputs[name], expected[name], name)
    assert outputs.components.keys() == expected["components"].keys()
    for name, part in expected["components"].items():
        _assert_near(outputs.components[name], part, name)
    if not gradients:
        return
    model.zero_grad()
    outputs.loss.backward()
    expected["loss"].backward()
    known = [literal.state[name].grad for name in literal.student]
    largest = max(gradient.abs().max().item() for gradient in known if gradient is not None)
    for name, parameter in model.named_parameters():
        if name.startswith("teacher."):
            assert parameter.grad is None, name
            continue
        other = literal.state[name].grad
        if other is None or not other.any():
            assert parameter.grad is None or not parameter.grad.any(), name
            continue
        # a bias before a norm has a gradient of 0, but for what rounding leaves
        scale = max(other.abs().max().item(), 1e-3 * largest)
        torch.testing.assert_close(
            parameter.grad.double() / scale,
            other / scale,
            rtol=0,
            atol=5e-4,
            msg=lambda t, n=name: f"gradient of {n}: {t}",
        )


@pytest.mark.parametrize("arm", ARMS)
def test_losses_reconstructions_and_gradients_equal_the_formulas(arm: str) -> None:
    model = _model(**ARMS[arm])
    _assert_literal(model, _batch(model))


@pytest.mark.parametrize("host", [*HOSTS, "dinov2 sinkhorn"])
def test_every_weight_and_temperature_does_what_it_says(host: str) -> None:
    """Also registers and layer scale, and intermediate images of another number, the last of them the final one."""
    model = _model(
        **ARMS[host],
        num_register_tokens=2,
        layerscale_value=0.5,
        num_intermediate=1,
        reconstruct_final=True,
        reconstruction_weight=0.7,
        class_loss_weight=0.3,
        patch_loss_weight=1.7,
        koleo_weight=0.9,
        invariance_weight=25.0,
        variance_weight=5.0,
        covariance_weight=2.0,
    )
    teacher = {"teacher_temperature": 0.04} if model.config.has_teacher else {}
    _assert_literal(model, _batch(model), **teacher)


@pytest.mark.parametrize("arm", ["ibot", "dinov2", "dino"])
def test_hosts_work_without_local_views_and_without_masks(arm: str) -> None:
    model = _model(**ARMS[arm])
    batch = _batch(model, num_local=0)
    _assert_literal(model, batch, gradients=False)
    without = {name: value for name, value in batch.items() if name != "local_pixel_values"}
    assert model(**without).loss.item() == model(**batch).loss.item()
    if arm != "dino":
        none = {**batch, "bool_masked_pos": torch.zeros_like(batch["bool_masked_pos"])}
        del batch["bool_masked_pos"]
        _assert_literal(model, batch)
        assert model(**batch).components["patch_loss"].item() == 0
        found, expected = model(**none), model(**batch)
        assert found.components["patch_loss"].item() == 0
        assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)


@pytest.mark.parametrize("host", ["dino", "vicreg", "simclr"])
def test_hosts_that_do_not_mask_ignore_masks(host: str) -> None:
    model = _model(host=host)
    batch = _batch(model)
    masked = model(**batch)
    batch["bool_masked_pos"] = torch.ones(1, 1)
    assert model(**batch).loss.item() == masked.loss.item()


@pytest.mark.parametrize("host", ["ibot", "dinov2"])
def test_patch_loss_counts_images_without_a_mask_as_0(host: str) -> None:
    """Both hosts' formulas: the mean over masked images, times their share. Half masked halves it, whichever host."""
    model = _model(host=host)
    batch = _batch(model, 4, num_local=0)
    batch["bool_masked_pos"][:, 0] = False
    batch["bool_masked_pos"][:, 1] = False
    batch["bool_masked_pos"][:, 1, [1, 4, 5]] = True
    half = model(**batch).components["patch_loss"]
    literal = _Literal(model)
    with torch.no_grad():
        teacher, student = (
            literal.patches(literal.trunk(owner, batch["global_pixel_values"][:, 1], mask))[:, [1, 4, 5]]
            for owner, mask in (("teacher.", None), ("", batch["bool_masked_pos"][:, 1]))
        )
        targets = literal.targets(literal.scores("teacher.", "head", teacher), "patch_center")
        over_masked_images = literal.cross_entropy(targets, literal.scores("", "head", student)) / (4 * 3)
    assert half.item() == pytest.approx(over_masked_images.item() / 2, rel=1e-5)


@pytest.mark.parametrize("arm", [arm for arm in ARMS if "logits" not in arm])
def test_each_loss_trains_its_own_rows_of_the_split(arm: str) -> None:
    model = _model(**ARMS[arm])
    inside = 24 - 8
    outputs = model(**_batch(model))
    outputs.host_loss.backward(retain_graph=True)
    weight, bias = model.split_head.weight, model.split_head.bias
    for parameter in (weight, bias):
        assert torch.equal(parameter.grad[inside:], torch.zeros_like(parameter.grad[inside:]))
    # a bias before batch norm moves every image alike and has no gradient to speak of
    assert weight.grad[:inside].abs().amax(1).min() > 0
    host = [p.grad.clone() for p in model.head.parameters()]
    assert all(g.isfinite().all() for g in host)
    assert all(p.grad is None for p in model.reconstruction.parameters())
    model.zero_grad()
    outputs.reconstruction_loss.backward()
    for parameter in (weight, bias):
        assert torch.equal(parameter.grad[:inside], torch.zeros_like(parameter.grad[:inside]))
    assert weight.grad[inside:].abs().amax(1).min() > 0
    assert all(p.grad is None for p in model.head.parameters())
    assert all(p.grad.abs().max() > 0 for p in model.reconstruction.parameters())


def test_logits_split_gives_the_first_outputs_to_the_host_and_the_last_to_decoders() -> None:
    model = _model(**ARMS["ibot logits"])
    assert model.head.prototypes.weight.shape == (24, 12)
    assert not hasattr(model, "split_head")
    assert model.class_center.shape == model.patch_center.shape == (1, 16)
    outputs = model(**_batch(model))
    outputs.host_loss.backward(retain_graph=True)
    rows = model.head.prototypes.weight
    assert torch.equal(rows.grad[16:], torch.zeros(8, 12))
    assert rows.grad[:16].abs().amax(1).min() > 0
    model.zero_grad()
    outputs.reconstruction_loss.backward()
    assert torch.equal(rows.grad[:16], torch.zeros(16, 12))
    assert rows.grad[16:].abs().amax(1).min() > 0


@pytest.mark.parametrize(
    ("patch", "size", "stages"),
    [
        (16, (64, 32), [(8, 4), (16, 8), (32, 16), (64, 32)]),
        (14, (28, 42), [(4, 6), (8, 12), (16, 24), (28, 42)]),
        (8, (16, 40), [(4, 10), (8, 20), (16, 40), (16, 40)]),
        (4, (8, 12), [(4, 6), (8, 12), (8, 12), (8, 12)]),
        (10, (20, 30), [(4, 6), (8, 12), (16, 24), (20, 30)]),
    ],
)
def test_decoder_equals_the_formula(patch: int, size: tuple[int, int], stages: list[tuple[int, int]]) -> None:
    decoder = randomise(ReconstructionDecoder(10, 16, 3), 0.3)
    assert [tuple(c.weight.shape) for c in decoder.convolutions] == [
        (8, 16, 3, 3),
        (4, 8, 3, 3),
        (2, 4, 3, 3),
        (3, 2, 3, 3),
    ]
    grid = (size[0] // patch, size[1] // patch)
    tokens = torch.randn(2, grid[0] * grid[1], 10, generator=torch.Generator().manual_seed(0))
    seen: list[tuple[int, ...]] = []
    for convolution in decoder.convolutions:
        convolution.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape[-2:])))
    found = decoder(tokens, grid, size)
    assert seen == stages
    state = {name: value.double() for name, value in decoder.state_dict().items()}
    _assert_near(found, _literal_decoder(state, tokens.double(), grid, size), "image", 1e-5)


def test_decoder_is_of_the_papers_size() -> None:
    """About 1.4 million parameters and 0.95 GMAC with 2 x 2048 channels of 14 x 14 tokens and C0 = 256."""
    with torch.device("meta"):
        decoder = ReconstructionDecoder(2 * 2048, 256, 3)
        linear = 4096 * 256 + 256
        convolutions = sum(9 * a * b + b for a, b in [(256, 128), (128, 64), (64, 32), (32, 3)])
        count = sum(p.numel() for p in decoder.parameters())
        assert count == linear + convolutions
        assert count == pytest.approx(1.4e6, rel=0.03)
        with FlopCounterMode(display=False) as counter:
            assert decoder(torch.empty(1, 196, 4096), (14, 14), (224, 224)).shape == (1, 3, 224, 224)
    assert counter.get_total_flops() / 2 == pytest.approx(0.95e9, rel=0.02)


@pytest.mark.parametrize("patch", [14, 16])
def test_whole_forward_with_other_patches(patch: int) -> None:
    model = _model(patch_size=patch, image_size=2 * patch)
    _assert_literal(model, _other(model, patch), gradients=False)


def _other(model: Any, patch: int) -> State:
    batch = _batch(model, size=(2 * patch, 3 * patch))
    batch["local_pixel_values"] = torch.randn(3, 1, 3, patch, patch, generator=torch.Generator().manual_seed(1))
    batch["bool_masked_pos"] = batch["bool_masked_pos"][..., :6].clone()
    return batch


def test_decoders_see_the_first_view_then_the_second_and_aim_at_the_images_in_order() -> None:
    model = _model(num_intermediate=3, reconstruct_final=True, host="dino")
    batch = _batch(model)
    outputs = model(**batch)
    assert outputs.reconstructions.shape == (3, 4, 3, 32, 24)
    targets = [*batch["intermediate_pixel_values"].unbind(1), batch["global_pixel_values"][:, 1]]
    errors = [(outputs.reconstructions[:, k] - target).square().mean().item() for k, target in enumerate(targets)]
    assert outputs.reconstruction_loss.item() == pytest.approx(sum(errors) / 4, rel=1e-5)
    with torch.no_grad():  # a decoder that no longer sees the second view
        model.reconstruction.decoders[1].linear.weight[:, 8:] = 0
    before = model(**batch).reconstructions
    batch["global_pixel_values"] = batch["global_pixel_values"].clone()
    batch["global_pixel_values"][:, 1] += 1
    after = model(**batch).reconstructions
    assert torch.equal(before[:, 1], after[:, 1])
    assert (before[:, 0] - after[:, 0]).abs().max() > 1e-2


HOST_ARMS: dict[str, dict[str, Any]] = {
    "plain host": {"transformation": None},
    "host + g": {"reconstruction_weight": 0.0},
    "K = 0": {"num_intermediate": 0},
}


TASK_ARMS: dict[str, dict[str, Any]] = {
    "task": {},
    "K = 1": {"num_intermediate": 1},
    "K = 3 and final": {"num_intermediate": 3, "reconstruct_final": True},
    "only final": {"num_intermediate": 0, "reconstruct_final": True},
    "small weight": {"reconstruction_weight": 1e-3},
}


@pytest.mark.parametrize("host", ["ibot", "dinov2", "dino", "vicreg", "simclr", "ibot logits"])
def test_arms_of_a_comparison_share_every_weight_and_the_hosts_loss_bit_for_bit(host: str) -> None:
    """Built from one seed and run in training mode, with stochastic depth; only decoders differ."""
    states, losses, rest = {}, {}, {}
    for arm, fields in {**HOST_ARMS, **TASK_ARMS}.items():
        torch.manual_seed(3)
        model = EquiCoherentForPreTraining(_config(**ARMS[host], **fields, drop_path_rate=0.5)).train()
        batch = _batch(model)
        if arm in HOST_ARMS:
            assert model.reconstruction is None
            assert not [name for name in model.state_dict() if "decoder" in name or "reconstruction" in name]
            if arm == "plain host":
                del batch["intermediate_pixel_values"]
        states[arm] = {n: v for n, v in model.state_dict().items() if not n.startswith("reconstruction.")}
        decoders = {n.split(".")[2] for n in model.state_dict() if n.startswith("reconstruction.")}
        assert len(decoders) == model.config.num_decoders
        torch.manual_seed(4)
        outputs = model(**batch)
        losses[arm] = outputs.host_loss
        assert (outputs.reconstruction_loss is None) == (outputs.reconstructions is None) == (arm in HOST_ARMS)
        if arm in HOST_ARMS:
            assert outputs.loss.item() == outputs.host_loss.item()
        else:
            weight = model.config.reconstruction_weight
            expected = outputs.host_loss.item() + weight * outputs.reconstruction_loss.item()
            assert outputs.loss.item() == pytest.approx(expected, rel=1e-6)
        rest[arm] = model
    for arm, state in states.items():
        assert state.keys() == states["plain host"].keys(), arm
        for name, value in state.items():
            assert torch.equal(value, states["plain host"][name]), f"{arm}: {name}"
        assert losses[arm].item() == losses["plain host"].item(), arm
    # and what the host alone would do to them
    for arm in HOST_ARMS:
        losses[arm].backward()
    for name, parameter in rest["plain host"].named_parameters():
        for arm in HOST_ARMS:
            other = rest[arm].get_parameter(name).grad
            assert (other is None) == (parameter.grad is None), f"{arm}: {name}"
            assert other is None or torch.equal(other, parameter.grad), f"{arm}: {name}"


def _scores_of(model: Any, batch: State, name: str) -> torch.Tensor:
    """The teacher's scores that move a center, `(tokens, prototypes)`, from the formulas."""
    literal = _Literal(model)
    views = batch["global_pixel_values"]
    with torch.no_grad():
        tokens = torch.cat([literal.trunk("teacher.", views[:, view]) for view in range(2)])
        if name == "class_center":
            return literal.scores("teacher.", "head", tokens[:, 0])
        patches = literal.patches(tokens)
        if model.config.host == "dinov2":
            patches = patches[torch.cat([batch["bool_masked_pos"][:, view] for view in range(2)])]
        head = "head" if model.config.shared_head else "patch_head"
        return literal.scores("teacher.", head, patches).reshape(-1, model.config.num_prototypes)


@pytest.mark.parametrize("arm", ["ibot", "ibot separate", "ibot logits", "dinov2", "dinov2 separate", "dino"])
def test_centers_move_once_by_the_mean_over_accumulated_batches(arm: str) -> None:
    """iBOT's patch center by all patches of both views, DINOv2's by the masked ones; batches weigh by their size."""
    model = _model(**ARMS[arm], center_momentum=0.8).train()
    names = [name for name, _ in model.named_buffers(recurse=False)]
    assert names == (["class_center"] if arm == "dino" else ["class_center", "patch_center"])
    batches = [_batch(model, 2), _batch(model, 5, seed=12), _batch(model, 2)]
    before = {name: getattr(model, name).clone() for name in names}
    for batch in batches:
        model(**batch).loss.backward()
        for name in names:
            assert torch.equal(getattr(model, name), before[name]), f"{name} moved in forward"
    expected = {}
    for name in names:
        seen = [_scores_of(model, batch, name) for batch in batches]
        expected[name] = 0.8 * before[name] + 0.2 * torch.cat(seen).mean(0, keepdim=True)
    pointers = {name: getattr(model, name).data_ptr() for name in names}
    model.update_centers()
    for name in names:
        _assert_near(getattr(model, name), expected[name], name, 1e-5)
        assert getattr(model, name).data_ptr() == pointers[name]
        assert (getattr(model, name) - before[name]).abs().max() > 1e-2
    moved = {name: getattr(model, name).clone() for name in names}
    model.update_centers()  # nothing has been seen since
    for name in names:
        assert torch.equal(getattr(model, name), moved[name]), name


@pytest.mark.parametrize("arm", ["ibot", "dinov2", "dino"])
def test_nothing_is_gathered_in_eval_mode_or_of_steps_that_did_not_come_about(arm: str) -> None:
    model = _model(**ARMS[arm])
    before = {name: value.clone() for name, value in model.named_buffers(recurse=False)}
    batch = _batch(model)
    model(**batch)
    model.train().update_centers()
    model(**batch)
    model.reset_accumulated()
    model.update_centers()
    for name, value in before.items():
        assert torch.equal(getattr(model, name), value), name


@pytest.mark.parametrize("arm", ["ibot", "dinov2", "dinov2 separate"])
def test_a_step_without_masked_patches(arm: str) -> None:
    """No token of DINOv2's patch center is seen, so it stays; iBOT's is about all patches, masked or not."""
    model = _model(**ARMS[arm]).train()
    batch = _batch(model)
    batch["bool_masked_pos"] = torch.zeros_like(batch["bool_masked_pos"])
    before, before_class = model.patch_center.clone(), model.class_center.clone()
    model(**batch).loss.backward()
    seen = _scores_of(model, batch, "patch_center")
    model.update_centers()
    assert not torch.equal(model.class_center, before_class)
    if arm == "ibot":
        _assert_near(model.patch_center, 0.9 * before + 0.1 * seen.mean(0, keepdim=True), "patch_center", 1e-5)
        moved = model.patch_center.clone()
        model.patch_center.copy_(before)
        model(**_drop(batch, "bool_masked_pos"))
        model.update_centers()
        assert torch.equal(model.patch_center, moved), "no masks are masks of nothing"
    else:
        assert len(seen) == 0
        assert torch.equal(model.patch_center, before)
    # one masked batch among accumulated ones is all that counts
    if arm != "ibot":
        masked = _batch(model)
        model(**batch)
        model(**masked)
        expected = 0.9 * before + 0.1 * _scores_of(model, masked, "patch_center").mean(0, keepdim=True)
        model.update_centers()
        _assert_near(model.patch_center, expected, "patch_center", 1e-5)


def test_sinkhorn_vicreg_and_simclr_have_no_centers() -> None:
    for arm in ("dinov2 sinkhorn", "vicreg", "simclr"):
        model = _model(**ARMS[arm]).train()
        assert not list(model.named_buffers(recurse=False))
        model(**_batch(model)).loss.backward()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model.update_centers()
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name])


@pytest.mark.parametrize("arm", ["ibot separate", "ibot logits", "dinov2 sinkhorn", "dino", "vicreg"])
def test_everything_is_saved_and_loaded_bit_for_bit_and_an_export_leaves_it_out(arm: str, tmp_path: Path) -> None:
    model = _model(**ARMS[arm])
    model.save_pretrained(tmp_path / "whole")
    again = EquiCoherentForPreTraining.from_pretrained(tmp_path / "whole").eval()
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    batch = _batch(model)
    assert again(**batch).loss.item() == model(**batch).loss.item()
    export_model(model, tmp_path / "trunk", weights="teacher" if model.teacher is not None else "student")
    saved = load_file(tmp_path / "trunk" / "model.safetensors")
    assert saved.keys() == EquiCoherentModel(model.config).state_dict().keys()
    owner = model if model.teacher is None else model.teacher
    assert all(torch.equal(saved[name], value) for name, value in owner.equicoherent.state_dict().items())
    assert type(AutoModel.from_pretrained(tmp_path / "trunk")).__name__ == "EquiCoherentModel"


def test_after_step_moves_centers_and_teacher() -> None:
    model = _model().train()
    batch = _batch(model)
    model(**batch)
    expected = {
        name: 0.9 * getattr(model, name) + 0.1 * _scores_of(model, batch, name).mean(0, keepdim=True)
        for name in ("class_center", "patch_center")
    }
    for name, student in model.named_parameters():
        if not name.startswith(("teacher.", "reconstruction.")) and not name.endswith("mask_token"):
            teacher = model.teacher.get_parameter(name)
            expected[f"teacher.{name}"] = 0.75 * teacher.detach().double() + 0.25 * student.detach().double()
    assert len(expected) == 2 + len(list(model.teacher.parameters()))
    model.on_optimizer_step(0.75)
    state = model.state_dict()
    for name, value in expected.items():
        _assert_near(state[name], value, name, 1e-5)


@pytest.mark.parametrize("host", ["vicreg", "simclr"])
def test_a_host_without_teacher_refuses_to_update_it(host: str) -> None:
    model = _model(host=host)
    with pytest.raises(ValueError, match=f"host '{host}' has no teacher to update; ibot, dinov2 and dino have one"):
        model.update_teacher(0.9)
    model.on_optimizer_step(0.9)  # what a trainer calls does without


def _drop(batch: State, name: str) -> State:
    return {key: value for key, value in batch.items() if key != name}


def test_masks_must_be_bool() -> None:
    model = _model()
    batch = _batch(model)
    batch["bool_masked_pos"] = batch["bool_masked_pos"].float()
    with pytest.raises(ValueError, match="bool_masked_pos must be bool .* got torch.float32"):
        model(**batch)


@pytest.mark.parametrize("host", HOSTS)
def test_missing_intermediate_images_are_refused_by_name(host: str) -> None:
    model = _model(host=host)
    told = "intermediate_pixel_values must hold 2 images an image, got None; .* set reconstruction_weight=0"
    with pytest.raises(ValueError, match=told):
        model(**_drop(_batch(model), "intermediate_pixel_values"))
    model = _model(host=host, num_intermediate=0, reconstruct_final=True)  # needs none
    batch = _batch(model)
    found, expected = model(**_drop(batch, "intermediate_pixel_values")), model(**batch)
    assert found.reconstruction_loss.item() == expected.reconstruction_loss.item()


@pytest.mark.parametrize("host", ["ibot", "dino"])
def test_one_image_is_enough_for_the_others(host: str) -> None:
    model = _model(host=host)
    _assert_literal(model, _batch(model, 1), gradients=False)


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.inf, math.nan])
@pytest.mark.parametrize("host", ["ibot", "dinov2 sinkhorn", "dino"])
def test_a_temperature_that_is_not_above_0_is_refused(host: str, temperature: float) -> None:
    model = _model(**ARMS[host])
    with pytest.raises(ValueError, match=f"teacher_temperature must be above 0, got {temperature}; .* 0.07"):
        model(**_batch(model), teacher_temperature=temperature)


@pytest.mark.parametrize("momentum", [-0.1, 1.5, float("nan")])
def test_momentum_outside_0_to_1_is_refused(momentum: float) -> None:
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\]"):
        _model().update_teacher(momentum)


@pytest.mark.parametrize("arm", ARMS)
def test_bf16_autocast_leaves_losses_in_float32_and_near(arm: str) -> None:
    model = _model(0.05, **ARMS[arm]).train()
    batch = _batch(model, 8)
    expected = model(**batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(**batch)
    found.loss.backward()
    for name in ("loss", "host_loss", "reconstruction_loss"):
        assert found[name].dtype == torch.float32, name
        assert found[name].item() == pytest.approx(expected[name].item(), rel=0.03), name
    for name, part in found.components.items():
        assert part.dtype == torch.float32, name
        assert part.item() == pytest.approx(expected.components[name].item(), rel=0.1, abs=0.02), name
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.dtype == torch.float32, name
            assert parameter.grad.isfinite().all(), name
    for name, _ in model.named_buffers(recurse=False):
        assert all(total.dtype == torch.float32 for total in model._accumulated[name]), name


_TWO_PROCESSES = """
import sys
import torch
from safetensors.torch import load_file, save_file
from hf_geossl import EquiCoherentForPreTraining

torch.distributed.init_process_group("gloo")
rank, folder, arms = torch.distributed.get_rank(), sys.argv[1], sys.argv[2:]
for arm in arms:
    model = EquiCoherentForPreTraining.from_pretrained(f"{folder}/{arm}").train()
    batch = load_file(f"{folder}/{arm}.safetensors")
    outputs = model(**{name: value[2 * rank : 2 * rank + 2] for name, value in batch.items()})
    outputs.loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found |= {"the loss": outputs.loss.detach()}
    found |= {f"the {name}": part.detach() for name, part in outputs.components.items()}
    for name in sorted(found):  # as DistributedDataParallel: the mean over processes
        torch.distributed.all_reduce(found[name])
        found[name] /= 2
    model.update_centers()
    found |= dict(model.named_buffers(recurse=False))
    save_file(found, f"{folder}/{arm}_{rank}.safetensors")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    """
    Losses and gradients averaged over two real processes, and centers, against one process with the joined batch. All
    masked patches are the first process's. KoLeo looks for neighbours within a process, so it is compared elsewhere.
    """
    arms = {name.replace(" ", "_"): name for name in ("ibot", "dinov2", "dinov2 sinkhorn separate", "vicreg", "simclr")}
    models, batches = {}, {}
    for arm, name in arms.items():
        model = _model(0.4, **ARMS[name], koleo_weight=0.0)
        model.save_pretrained(tmp_path / arm)
        models[arm], batches[arm] = model.train(), _batch(model, 4)
        batches[arm]["bool_masked_pos"][2:] = False
        save_file(batches[arm], tmp_path / f"{arm}.safetensors")
    forked.run(_TWO_PROCESSES, str(tmp_path), *arms, output=tmp_path / "output.txt", world_size=2)
    for arm, model in models.items():
        outputs = model(**batches[arm])
        outputs.loss.backward()
        before = {name: center.clone() for name, center in model.named_buffers(recurse=False)}
        model.update_centers()
        expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        expected |= {"the loss": outputs.loss.detach(), **dict(model.named_buffers(recurse=False))}
        different = ("koleo_loss", "prediction_diversity", "mean_image_loss")  # these are each process's own
        expected |= {f"the {n}": part.detach() for n, part in outputs.components.items() if n not in different}
        for rank in (0, 1):
            found = load_file(tmp_path / f"{arm}_{rank}.safetensors")
            for name, value in expected.items():
                _assert_near(found[name], value.double(), f"{arm}, {name}", 2e-4)
            for name, center in before.items():
                assert (found[name] - center).abs().max() > 1e-3, name


@pytest.mark.parametrize("host", HOSTS)
def test_heads_and_decoders_start_as_specified(host: str) -> None:
    """Linear layers: a normal of .02 cut off, biases 0; convolutions as torch's; prototypes' scales and norms 1."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 96, "patch_features": 96, "head_hidden_size": 80, "head_bottleneck_size": 64}
    model = EquiCoherentForPreTraining(_config(**sizes, host=host, num_prototypes=90, projector_sizes=(90, 80)))
    kinds = set()
    for name, value in model.named_parameters():
        if name.startswith(("teacher.", "equicoherent.")):
            continue
        owner, _, last = name.rpartition(".")
        if "convolutions" in owner:
            kind, fan_in = "convolution", model.get_submodule(owner).weight[0].numel()
            assert value.abs().max() <= fan_in**-0.5, name
            if last == "weight":
                assert value.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.15), name
        elif last == "scale" or "norms" in owner:
            kind = "ones"
            assert torch.equal(value, torch.full_like(value, float(last != "bias"))), name
        elif last == "bias":
            kind = "bias"
            assert not value.any(), name
        else:
            kind = "linear"
            assert value.std().item() == pytest.approx(0.02, rel=4 / (2 * value.numel()) ** 0.5), name
            assert abs(value.mean().item()) < 4 * 0.02 / value.numel() ** 0.5, name
        kinds.add(kind)
    assert kinds == {"convolution", "bias", "linear"} | (set() if host == "dino" else {"ones"})
    for name, center in model.named_buffers(recurse=False):
        assert torch.equal(center, torch.zeros(1, 90)), name
    if model.teacher is not None:
        assert all(torch.equal(p, model.get_parameter(n)) for n, p in model.teacher.named_parameters())
        assert {name for name, _ in model.teacher.named_children()} == {"equicoherent", "split_head", "head"}


def test_a_fresh_model_predicts_evenly() -> None:
    """Class loss at ln K of a host that has learned nothing."""
    torch.manual_seed(0)
    model = EquiCoherentForPreTraining(_config(host="dino", num_prototypes=200, teacher_temperature=100.0))
    model.config.student_temperature = 100.0
    assert model(**_batch(model)).components["class_loss"].item() == pytest.approx(math.log(200), rel=1e-3)


@pytest.mark.parametrize("host", HOSTS)
def test_a_student_in_half_precision_has_nearly_the_same_losses(host: str, tmp_path: Path) -> None:
    model = _model(0.1, host=host)
    model.save_pretrained(tmp_path)
    half = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    batch = _batch(model)
    full, halved = model(**batch), half(**batch)
    assert halved.loss.dtype == torch.float32
    assert halved.host_loss.item() == pytest.approx(full.host_loss.item(), rel=0.03)
    assert halved.reconstruction_loss.item() == pytest.approx(full.reconstruction_loss.item(), rel=0.03)
