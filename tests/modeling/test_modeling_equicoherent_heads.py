"""EquiCoherent's split and hosts' heads, and checks of the views."""

import pytest
import torch
from torch import nn

from hf_geossl import EquiCoherentForPreTraining
from hf_geossl.modeling.modeling_equicoherent import PrototypeHead, SplitHead
from hf_geossl.modeling.teacher_student import GlobalBatchNorm
from tests.helpers.equicoherent_model import make_batch as _batch
from tests.helpers.equicoherent_model import make_config as _config
from tests.helpers.equicoherent_model import make_model as _model
from tests.helpers.methods import METHODS

EQUICOHERENT = METHODS["equicoherent"]


State = dict[str, torch.Tensor]


def test_split_head_is_one_linear_layer_whose_last_channels_are_equivariant() -> None:
    torch.manual_seed(0)
    split, tokens = SplitHead(5, 7, 3), torch.randn(2, 4, 5)
    whole = tokens @ split.weight.T + split.bias
    torch.testing.assert_close(split(tokens), whole[..., :4])
    torch.testing.assert_close(split(tokens, equivariant=True), whole[..., 4:])


def test_a_normalised_last_layer_keeps_prototypes_at_unit_length() -> None:
    features = torch.randn(40, 32, generator=torch.Generator().manual_seed(2))
    for normalized in (True, False):
        torch.manual_seed(0)
        model = EquiCoherentForPreTraining(_config(norm_last_layer=normalized, patch_features=40))
        head = model.head
        assert isinstance(head, PrototypeHead)
        features = torch.randn(40, 32, generator=torch.Generator().manual_seed(2))
        scores = head(features)
        assert scores.abs().max() <= 1 + 1e-6
        torch.testing.assert_close(head.bottleneck(features).norm(dim=-1), torch.ones(40))
        with torch.no_grad():
            head.prototypes.weight *= 3
        torch.testing.assert_close(head(features), scores)  # their length does not matter
        names = [name for name, _ in head.named_parameters() if "prototypes" in name]
        if normalized:
            assert names == ["prototypes.weight"]
            kept = scores
        else:
            assert sorted(names) == ["prototypes.scale", "prototypes.weight"]
            assert torch.equal(head.prototypes.scale, torch.ones(20, 1))
            torch.testing.assert_close(scores, kept)  # from the same seed: only that the scale can move
            with torch.no_grad():
                head.prototypes.scale[3] = 5.0
            torch.testing.assert_close(head(features)[:, 3], 5 * scores[:, 3])


def _drop(batch: State, name: str) -> State:
    return {key: value for key, value in batch.items() if key != name}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"global_pixel_values": (3, 3, 3, 32, 24)}, r"global_pixel_values .*\(batch, 2, .* got \(3, 3, 3, 32, 24\)"),
        ({"global_pixel_values": (3, 1, 3, 32, 24)}, r"global_pixel_values .* got \(3, 1, 3, 32, 24\)"),
        ({"global_pixel_values": (6, 3, 32, 24)}, r"global_pixel_values .* got \(6, 3, 32, 24\)"),
        ({"local_pixel_values": (2, 2, 3, 16, 16)}, r"local_pixel_values .*\(3, views, .* got \(2, 2, 3, 16, 16\)"),
        ({"local_pixel_values": (3, 3, 16, 16)}, r"local_pixel_values .*\(3, views, .* got \(3, 3, 16, 16\)"),
        ({"bool_masked_pos": (3, 2, 11)}, r"bool_masked_pos .*\(3, 2, 12\), got \(3, 2, 11\)"),
        ({"bool_masked_pos": (6, 12)}, r"bool_masked_pos .*\(3, 2, 12\), got \(6, 2, 12\)"),
        ({"intermediate_pixel_values": (3, 3, 3, 32, 24)}, r"intermediate_pixel_values .*got \(3, 3, 3, 32, 24\)"),
        ({"intermediate_pixel_values": (2, 2, 3, 32, 24)}, r"intermediate_pixel_values .*got \(2, 2, 3, 32, 24\)"),
        ({"intermediate_pixel_values": (3, 2, 32, 24)}, r"intermediate_pixel_values .*got \(3, 2, 32, 24\)"),
        ({"intermediate_pixel_values": (3, 2, 1, 32, 24)}, r"intermediate_pixel_values .*got \(3, 2, 1, 32, 24\)"),
        ({"intermediate_pixel_values": (3, 2, 3, 16, 24)}, r"intermediate_pixel_values .*got \(3, 2, 3, 16, 24\)"),
    ],
)
@pytest.mark.parametrize("final", [False, True])
def test_batches_that_do_not_fit_are_refused_by_name(
    change: dict[str, tuple[int, ...]], told: str, final: bool
) -> None:
    """Each says what came, what was expected, and what to do."""
    model = _model(reconstruct_final=final)
    batch = _batch(model)
    for name, shape in change.items():
        batch[name] = torch.zeros(shape, dtype=batch[name].dtype)
    with pytest.raises(ValueError, match=told) as caught:
        model(**batch)
    assert ";" in str(caught.value), f"how to mend it is missing: {caught.value}"


@pytest.mark.parametrize("host", ["vicreg", "simclr"])
def test_local_views_of_hosts_of_pairs_are_refused_by_name(host: str) -> None:
    model = _model(host=host)
    batch = _batch(model)
    batch["local_pixel_values"] = torch.zeros(3, 2, 3, 16, 16)
    told = rf"host '{host}' .* got local_pixel_values of shape \(3, 2, 3, 16, 16\), make them with num_local=0"
    with pytest.raises(ValueError, match=told):
        model(**batch)
    batch["local_pixel_values"] = torch.zeros(3, 0, 3, 16, 16)
    assert model(**batch).loss.item() == model(**_drop(batch, "local_pixel_values")).loss.item()


@pytest.mark.parametrize("training", [True, False])
def test_of_one_image_simclr_has_nothing_to_tell_it_from(training: bool) -> None:
    """Its contrast is ln 1, and what is reconstructed is learned all the same."""
    model = _model(host="simclr").train(training)
    outputs = model(**_batch(model, 1))
    assert outputs.host_loss.item() == 0
    outputs.loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert any(bool(gradient.any()) for gradient in gradients)


@pytest.mark.parametrize("host", ["dinov2", "vicreg"])
@pytest.mark.parametrize("training", [True, False])
def test_one_image_is_too_few_for_losses_between_images(host: str, training: bool) -> None:
    model = _model(host=host).train(training)
    with pytest.raises(
        ValueError, match=f"global_pixel_values must hold at least 2 images for the host '{host}'.* got 1;"
    ):
        model(**_batch(model, 1))


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_torchs_in_training_mode_always(training: bool) -> None:
    """Channels small enough that the epsilon matters."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = GlobalBatchNorm(6).train(training), nn.BatchNorm1d(6).double().train()
    features = torch.randn(9, 6, generator=generator) * torch.tensor([3.0, 1.0, 0.1, 0.01, 1e-3, 1e-4]) + 2
    pull = torch.randn(9, 6, generator=generator)
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.copy_(torch.randn(6, generator=generator))
            other.copy_(mine)
    given, double = features.clone().requires_grad_(), features.double().requires_grad_()
    found, expected = ours(given), theirs(double)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-4)
    (found * pull).sum().backward()
    (expected * pull.double()).sum().backward()
    scale = double.grad.abs().amax(0)
    torch.testing.assert_close(given.grad.double() / scale, double.grad / scale, rtol=0, atol=2e-3)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.double(), other.grad, rtol=0, atol=1e-3)
    assert not list(ours.buffers())
