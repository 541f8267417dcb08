"""The vectorised GTSA objective against the formulas written out, pair by pair and sample by sample."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import roi_align

from hf_geossl import GTSAConfig, GTSAForPreTraining
from hf_geossl.modeling.geometry import overlap_boxes


def _model(**fields: object) -> GTSAForPreTraining:
    torch.manual_seed(0)
    config = GTSAConfig(
        hidden_size=20,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=4,
        projector_hidden_size=12,
        projection_size=10,
        predictor_hidden_size=14,
        rotation_hidden_sizes=(9, 7),
        roi_output_sizes=(5, 3),
        num_matches=(20, 7),
        **fields,
    )
    model = GTSAForPreTraining(config).eval()
    for parameter in model.parameters():  # a teacher unlike the student, and weights that matter
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def _batch(num_global: int, num_local: int, batch_size: int = 3, local: int = 16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_global * 10 + num_local)
    views = num_global + num_local
    low = torch.rand(batch_size, views, 2, generator=generator) * 40
    high = 60 + torch.rand(batch_size, views, 2, generator=generator) * 40
    return {
        "global_pixel_values": torch.randn(batch_size, num_global, 3, 32, 32, generator=generator),
        "local_pixel_values": torch.randn(batch_size, num_local, 3, local, local, generator=generator),
        "crop_boxes": torch.cat([low, high], dim=-1).round(),
        "quarter_turns": torch.randint(0, 4, (batch_size, views), generator=generator),
    }


def _slow_losses(model: GTSAForPreTraining, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Sections 2.2 and 2.5 of the method, literally: loops over pairs and samples, torchvision, torch.rot90."""
    config, boxes, turns = model.config, batch["crop_boxes"], batch["quarter_turns"]
    views = [*batch["global_pixel_values"].unbind(1), *batch["local_pixel_values"].unbind(1)]
    num_global = batch["global_pixel_values"].shape[1]
    sizes = [view.shape[-1] for view in views]
    in_global, in_view = overlap_boxes(boxes, turns, sizes, num_global)

    def maps(trunk: torch.nn.Module, projector: torch.nn.Module, view: torch.Tensor) -> torch.Tensor:
        return projector(trunk(view).last_hidden_state[:, 1:])

    students = [model.predictor(maps(model.gtsa, model.projector, view)) for view in views]
    teachers = [maps(model.teacher.gtsa, model.teacher.projector, view).detach() for view in views[:num_global]]
    crop, correspondence = [], []
    for q in range(num_global):
        for v in range(len(views)):
            if v == q:
                continue
            group = int(v >= num_global)
            k = config.roi_output_sizes[group]
            per_sample = []
            for b in range(len(boxes)):
                pooled = [
                    roi_align(m[b : b + 1], [box[None] / config.patch_size], k, sampling_ratio=-1, aligned=True)[0]
                    for m, box in ((students[v], in_view[b, v, q]), (teachers[q], in_global[b, q, v]))
                ]
                teacher = torch.rot90(pooled[1], int(turns[b, v] - turns[b, q]) % 4, dims=(-2, -1))
                per_sample.append(-F.cosine_similarity(pooled[0], teacher, dim=0).mean())
            crop.append(torch.stack(per_sample).mean())
            terms = []
            for b in range(len(boxes)):
                s, t = students[v][b].flatten(1).T, teachers[q][b].flatten(1).T
                similarity = F.cosine_similarity(s[:, None], t[None], dim=-1)
                for table in (similarity, similarity.T):
                    best = table.amax(dim=1)
                    terms.append(-best.sort(descending=True).values[: config.num_matches[group]].mean())
            correspondence.append(torch.stack(terms).mean())
    rotation = []
    for v, view in enumerate(views):
        logits = model.rotation_head(model.gtsa(view).last_hidden_state[:, 1:].mean(1))
        rotation.append(F.cross_entropy(logits, turns[:, v]))
    return torch.stack(crop).mean(), torch.stack(correspondence).mean(), torch.stack(rotation).mean()


@pytest.mark.parametrize(("num_global", "num_local"), [(2, 3), (1, 2), (2, 0), (3, 1), (3, 0)])
def test_losses_and_gradients_equal_the_formulas(num_global: int, num_local: int) -> None:
    model, batch = _model(), _batch(num_global, num_local)
    outputs = model(**batch)
    outputs.loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    crop, correspondence, rotation = _slow_losses(model, batch)
    total = crop + 0.5 * correspondence + 0.5 * rotation
    total.backward()
    for name, expected in (
        ("crop_loss", crop),
        ("correspondence_loss", correspondence),
        ("rotation_loss", rotation),
        ("loss", total),
    ):
        assert outputs[name].item() == pytest.approx(expected.item(), abs=2e-6), name
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=2e-6, msg=name)


def test_pooling_and_matches_follow_the_group_not_the_size() -> None:
    """Locals as large as globals (the original mixes them up: quirks 8 and 11)."""
    model, batch = _model(), _batch(2, 2, local=32)
    outputs = model(**batch)
    crop, correspondence, _ = _slow_losses(model, batch)
    assert outputs.crop_loss.item() == pytest.approx(crop.item(), abs=2e-6)
    assert outputs.correspondence_loss.item() == pytest.approx(correspondence.item(), abs=2e-6)


def test_more_matches_than_tokens_takes_all_tokens() -> None:
    model, batch = _model(), _batch(2, 2)
    model.config.num_matches = (10_000, 10_000)
    everything = model(**batch).correspondence_loss.item()
    model.config.num_matches = (64, 64)  # 64 tokens in a global view, 16 in a local one
    assert model(**batch).correspondence_loss.item() == everything


def test_correspondence_weight_replaces_the_configurations() -> None:
    model, batch = _model(), _batch(2, 1)
    outputs = model(**batch, correspondence_weight=0.0)
    assert outputs.loss.item() == pytest.approx((outputs.crop_loss + 0.5 * outputs.rotation_loss).item(), abs=1e-6)
    assert outputs.correspondence_loss.item() == model(**batch).correspondence_loss.item()
    assert model(**batch).loss.item() == pytest.approx(
        (outputs.loss + 0.5 * outputs.correspondence_loss).item(), abs=1e-6
    )


def test_turning_the_teacher_the_wrong_way_would_be_seen() -> None:
    """The loss of an image that is its own target is -1 only if boxes and turns are right."""
    model, batch = _model(), _batch(2, 2)
    flipped = {**batch, "quarter_turns": (4 - batch["quarter_turns"]) % 4}
    assert abs(model(**batch).crop_loss.item() - model(**flipped).crop_loss.item()) > 1e-3


def test_degrees_instead_of_quarter_turns_are_refused() -> None:
    model, batch = _model(), _batch(2, 1)
    with pytest.raises(ValueError, match="quarter_turns must be 0, 1, 2 or 3, got 0 to 270; divide degrees by 90"):
        model(**{**batch, "quarter_turns": torch.tensor([[0, 90, 270]] * 3)})


def test_teacher_in_half_precision_is_refused() -> None:
    model = _model().to(torch.bfloat16)
    with pytest.raises(ValueError, match="the teacher must be in float32.*got torch.bfloat16"):
        model.update_teacher(0.996)
