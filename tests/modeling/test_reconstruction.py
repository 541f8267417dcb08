"""GTSA and LOCA with EquiCoherent's reconstruction beside their own losses."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoModel, set_seed

from hf_geossl import GTSATrainer, LOCATrainer
from hf_geossl.cli.describe import shared_settings
from hf_geossl.cli.pretrain_arguments import parse_pretrain
from hf_geossl.cli.pretrain_model import make_config
from hf_geossl.hub.export import export_model
from hf_geossl.views.transformation_path import TransformationPath
from tests.helpers import gtsa_run, loca_run
from tests.helpers.methods import METHODS, Method, randomise

RUNS: dict[str, Any] = {"gtsa": gtsa_run, "loca": loca_run}
TRAINERS: dict[str, Any] = {"gtsa": GTSATrainer, "loca": LOCATrainer}
OWN_LOSSES = {
    "gtsa": ("crop_loss", "correspondence_loss", "rotation_loss"),
    "loca": ("location_loss", "cluster_loss", "mean_entropy_loss"),
}
LOCA_DRAWS = {"kept_query_tokens": torch.tensor([9, 2, 14, 5]), "visible_reference_tokens": torch.tensor([3, 4, 5])}
FIELDS = ("reconstruction", "num_intermediate", "reconstruct_final", "reconstruction_weight")
FIELDS += ("equivariant_features", "decoder_hidden_size")


@pytest.fixture(params=["gtsa", "loca"])
def method(request: pytest.FixtureRequest) -> Method:
    return METHODS[request.param]


def _batch(method: Method, num_intermediate: int = 2, **fields: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(23)
    return {
        **method.batch(**fields),
        "transformed_pixel_values": torch.randn(3, 3, 32, 32, generator=generator),
        "intermediate_pixel_values": torch.randn(3, num_intermediate, 3, 32, 32, generator=generator),
        **(LOCA_DRAWS if method.prefix == "loca" else {}),
    }


def _without(batch: dict[str, Any]) -> dict[str, Any]:
    """What the method itself needs."""
    return {name: value for name, value in batch.items() if not name.startswith(("transformed", "intermediate"))}


def _model(method: Method, **fields: Any) -> Any:
    """Random weights; student and teacher differ."""
    model = method.model("ForPreTraining", **{"reconstruction": "se2", **fields})
    randomise(model.teacher, seed=5)
    return model


def _crops(method: Method, views: Any, count: int = 3) -> dict[str, torch.Tensor]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 48, 40, 3), dtype=np.uint8)
    return views.collate([views(image, seed=seed) for seed, image in enumerate(pixels)])


# ---- the loss


def _by_hand(method: Method, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The reconstruction loss from the weights: image by image, decoder by decoder, token by token."""
    config, task, trunk = model.config, model.reconstruction, method.trunk(model)
    second = trunk(batch["transformed_pixel_values"]).last_hidden_state
    if method.prefix == "gtsa":
        first = trunk(batch["global_pixel_values"][:, 0]).last_hidden_state[:, 1:]
        second = second[:, 1:]
    else:
        kept = batch["kept_query_tokens"]
        seen = trunk(
            batch["random_query_pixel_values"], kept_tokens=kept, use_positions=config.use_cluster_loss
        ).last_hidden_state
        first = torch.stack(
            [seen[:, kept.tolist().index(n)] if n in kept else torch.zeros_like(seen[:, 0]) for n in range(16)], dim=1
        )
    targets = [*batch["intermediate_pixel_values"].unbind(1)]
    if config.reconstruct_final:
        targets.append(batch["transformed_pixel_values"])
    losses = []
    for decoder, target in zip(task.decoders, targets, strict=True):
        for image in range(3):
            z1, z2 = (F.linear(view[image], task.projection.weight, task.projection.bias) for view in (first, second))
            decoded = decoder(torch.cat([z1, z2], dim=-1)[None], (4, 4), (32, 32))[0]
            losses.append((decoded - target[image]).pow(2).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    "fields",
    [{}, {"reconstruct_final": True, "num_intermediate": 1}, {"reconstruct_final": True, "num_intermediate": 0}],
    ids=["two between", "one between and the end", "the end alone"],
)
def test_loss_is_the_methods_and_the_weighted_error_of_what_the_student_makes_of_both_views(
    method: Method, fields: dict[str, Any]
) -> None:
    """In value and gradient."""
    model = _model(method, reconstruction_weight=0.7, **fields).train()
    batch = _batch(method, model.config.num_intermediate)
    outputs = model(**batch)
    plain = copy.deepcopy(model)
    plain.reconstruction = None
    own = plain(**_without(batch))
    assert own.reconstruction_loss is None
    for name in OWN_LOSSES[method.prefix]:
        assert torch.equal(outputs[name], own[name])
    expected = _by_hand(method, model, batch)
    torch.testing.assert_close(outputs.reconstruction_loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(outputs.loss, own.loss + 0.7 * expected, rtol=1e-5, atol=1e-6)
    targets = batch["intermediate_pixel_values"]
    if model.config.reconstruct_final:
        targets = torch.cat([targets, batch["transformed_pixel_values"][:, None]], dim=1)
    torch.testing.assert_close(outputs.mean_image_loss, (targets - targets.mean(dim=0)).pow(2).mean())
    assert outputs.reconstructions.shape == (3, model.config.num_decoders, 3, 32, 32)

    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(outputs.reconstruction_loss, list(trained.values()), allow_unused=True)
    wanted = torch.autograd.grad(expected, list(trained.values()), allow_unused=True)
    reached = {name for name, gradient in zip(trained, found, strict=True) if gradient is not None}
    assert reached == {n for n in trained if n.startswith((f"{method.prefix}.", "reconstruction."))}
    for gradient, other in zip(found, wanted, strict=True):
        if gradient is not None:
            torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-5)


def test_loca_without_clusters_gives_the_transformed_view_positions_and_the_query_none() -> None:
    method = METHODS["loca"]
    model = _model(method, use_cluster_loss=False)
    batch = _batch(method)
    outputs = model(**batch)
    torch.testing.assert_close(outputs.reconstruction_loss, _by_hand(method, model, batch), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(outputs.loss, outputs.location_loss + outputs.reconstruction_loss)


def test_gtsa_with_one_global_view_reconstructs_too() -> None:
    method = METHODS["gtsa"]
    model, batch = _model(method), _batch(method, num_global=1)
    torch.testing.assert_close(model(**batch).reconstruction_loss, _by_hand(method, model, batch), rtol=1e-5, atol=1e-6)


def test_every_trained_weight_gets_a_gradient_and_the_teacher_none(method: Method) -> None:
    model = method.kind("ForPreTraining")(method.config(reconstruction="color")).train()
    model(**_batch(method)).loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.reconstruction.parameters() if p.ndim > 1)


def test_gradient_reaches_the_pixels_of_both_views_and_no_other(method: Method) -> None:
    model, batch = _model(method), _batch(method)
    pixels = {name: value.requires_grad_() for name, value in batch.items() if name.endswith("pixel_values")}
    loss = model(**batch).reconstruction_loss
    gradients = dict(zip(pixels, torch.autograd.grad(loss, list(pixels.values()), allow_unused=True), strict=True))
    first = "global_pixel_values" if method.prefix == "gtsa" else "random_query_pixel_values"
    assert gradients["transformed_pixel_values"].abs().sum() > 0
    reached = {name for name, value in gradients.items() if value is not None and value.abs().sum() > 0}
    assert reached == {first, "transformed_pixel_values", "intermediate_pixel_values"}  # the last are the targets
    if method.prefix == "gtsa":
        assert gradients[first][:, 0].abs().sum() > 0
        assert gradients[first][:, 1:].abs().sum() == 0


# ---- off


@pytest.mark.parametrize("fields", [{"reconstruction_weight": 0}, {"num_intermediate": 0}], ids=["weight", "K"])
def test_without_it_nothing_changes(method: Method, fields: dict[str, Any]) -> None:
    """Weights, own losses and random numbers; stochastic depth and LOCA's tokens are drawn from the global generator."""

    def made(**fields: Any) -> tuple[Any, torch.Tensor]:
        torch.manual_seed(3)
        model = method.kind("ForPreTraining")(method.config(drop_path_rate=0.4, **fields)).train()
        return model, torch.get_rng_state()

    def step(model: Any, batch: dict[str, Any]) -> tuple[Any, torch.Tensor]:
        torch.manual_seed(4)
        return model(**batch), torch.get_rng_state()

    own_batch = method.batch()
    (plain, drawn), (off, off_drawn), (on, _) = made(), made(reconstruction="se2", **fields), made(reconstruction="se2")
    assert torch.equal(drawn, off_drawn)
    assert list(plain.state_dict()) == list(off.state_dict())
    assert not any("reconstruction" in name for name in plain.state_dict())
    added = {name for name in on.state_dict() if name not in plain.state_dict()}
    assert added
    assert all(name.startswith("reconstruction.") for name in added)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, off.state_dict()[name])
        assert torch.equal(value, on.state_dict()[name]), name

    (expected, drawn), (found, off_drawn) = step(plain, own_batch), step(off, own_batch)
    assert torch.equal(drawn, off_drawn)
    assert torch.equal(expected.loss, found.loss)
    assert not {"reconstruction_loss", "mean_image_loss", "reconstructions"} & set(expected)
    beside, _ = step(on, {**own_batch, **{k: v for k, v in _batch(method).items() if k.startswith(("tr", "int"))}})
    assert all(torch.equal(beside[name], expected[name]) for name in OWN_LOSSES[method.prefix])


def test_views_draw_the_path_last_and_transform_the_view_as_the_model_sees_it(method: Method) -> None:
    run = RUNS[method.prefix]
    plain, views = run.small_views(), run.small_views(reconstruction="rotation", num_intermediate=3)
    batch = _crops(method, views)
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    expected, found = (v.augment(batch, g) for v, g in zip((plain, views), generators, strict=True))
    for name, value in expected.items():
        assert torch.equal(value, found.pop(name))
    path = TransformationPath("rotation", 3)
    source = expected["global_pixel_values"][:, 1] if method.prefix == "gtsa" else expected["reference_pixel_values"]
    ends, between = path.render(source, path.draw(3, generators[0]), views.mean, views.std)
    assert torch.equal(found.pop("transformed_pixel_values"), ends)
    assert torch.equal(found.pop("intermediate_pixel_values"), between)
    assert found == {}
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    assert set(views.normalize(batch)) == set(plain.normalize(batch)) == set(expected)
    which = {"gtsa": "the second global", "loca": "the reference"}[method.prefix]
    assert views.describe() == f"{plain.describe()}, {which} once more, {path.describe()}"


def test_views_with_one_global_transform_it() -> None:
    views = gtsa_run.small_views(num_global=1, num_local=0, reconstruction="blur")
    generator = torch.Generator().manual_seed(5)
    found = views.augment(_crops(METHODS["gtsa"], views), generator)
    drawn = torch.Generator().manual_seed(5)
    source = gtsa_run.small_views(num_global=1, num_local=0).augment(_crops(METHODS["gtsa"], views), drawn)
    path = TransformationPath("blur")
    ends, _ = path.render(source["global_pixel_values"][:, 0], path.draw(3, drawn), views.mean, views.std)
    assert torch.equal(found["transformed_pixel_values"], ends)
    assert "the first global once more" in views.describe()


# ---- configuration, folders, command line


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"reconstruction": "shear"}, "reconstruction must be one of se2, .*blur or None, got 'shear'"),
        ({"num_intermediate": -1}, "num_intermediate must be 0 or more, got -1"),
        ({"reconstruction_weight": -0.5}, "reconstruction_weight must be 0 or more, got -0.5"),
        ({"reconstruction_weight": math.nan}, "reconstruction_weight must be 0 or more, got nan"),
        ({"reconstruction_weight": math.inf}, "reconstruction_weight must be 0 or more, got inf"),
        ({"equivariant_features": 0}, "equivariant_features must be at least 1, or None for its default, got 0"),
        ({"decoder_hidden_size": 0}, "decoder_hidden_size must be at least 1, or None for its default, got 0"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(method: Method, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(Exception, match=told):
        method.config(**fields)


def test_loca_on_single_images_has_no_second_view_to_reconstruct_with() -> None:
    with pytest.raises(Exception, match=r"two views.*location_target='self'.*reconstruction='se2', set it to None"):
        METHODS["loca"].config(location_target="self", reconstruction="se2")
    METHODS["loca"].config(location_target="self", reconstruction="se2", reconstruction_weight=0)


def test_sizes_of_the_decoders_follow_the_trunk_unless_given(method: Method) -> None:
    def sizes(**fields: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        with torch.device("meta"):
            task = method.kind("ForPreTraining")(method.config(reconstruction="se2", **fields)).reconstruction
        return tuple(task.projection.weight.shape), tuple(task.decoders[0].linear.weight.shape)

    assert sizes() == ((8, 32), (16, 16))
    assert sizes(hidden_size=1024, num_attention_heads=16) == ((256, 1024), (256, 512))
    assert sizes(equivariant_features=5, decoder_hidden_size=12) == ((5, 32), (12, 10))


def test_defaults_are_off(method: Method) -> None:
    config = type(method.config())()
    assert [getattr(config, name) for name in FIELDS] == [None, 2, False, 1.0, None, None]
    assert config.num_decoders == 0


def test_folders_keep_it_exports_drop_it_and_older_ones_take_it_up(method: Method, tmp_path: Path) -> None:
    fields = {"reconstruction": "se2", "num_intermediate": 1, "reconstruct_final": True, "reconstruction_weight": 0.3}
    fields |= {"equivariant_features": 6, "decoder_hidden_size": 10}
    model = _model(method, **fields)
    model.save_pretrained(tmp_path / "whole")
    again = method.kind("ForPreTraining").from_pretrained(tmp_path / "whole")
    assert [getattr(again.config, name) for name in FIELDS] == list(fields.values())
    batch = _batch(method, 1)
    assert torch.equal(again(**batch).reconstructions, model(**batch).reconstructions)

    export_model(model, tmp_path / "exported")
    exported, told = AutoModel.from_pretrained(tmp_path / "exported", output_loading_info=True)
    assert not any("reconstruction" in name for name in exported.state_dict())
    assert not told["unexpected_keys"]
    assert not told["missing_keys"]

    plain = _model(method, reconstruction=None)
    plain.save_pretrained(tmp_path / "older")
    later = method.kind("ForPreTraining").from_pretrained(tmp_path / "older", reconstruction="blur")
    assert later.config.num_decoders == 2
    assert all(torch.equal(value, later.state_dict()[name]) for name, value in plain.state_dict().items())
    assert all(p.requires_grad and torch.isfinite(p).all() for p in later.reconstruction.parameters())
    assert torch.isfinite(later(**_batch(method)).loss)


def test_command_line_gives_it_to_model_and_views(method: Method) -> None:
    recipe = {"gtsa": "quickstart", "loca": "loca_quickstart"}[method.prefix]
    given = ["--reconstruction", "se2", "--num_intermediate", "3", "--reconstruction_weight", "0.5"]
    parsed = parse_pretrain([recipe, *given])
    model = make_config(parsed)
    assert (model.reconstruction, model.num_intermediate, model.reconstruction_weight) == ("se2", 3, 0.5)
    assert "equivariant_features" not in parsed.model
    assert {"reconstruction", "num_intermediate"} <= set(shared_settings(parsed.method))
    assert "num_intermediate" not in parsed.views


# ---- errors


def test_missing_and_misshapen_images_are_named(method: Method) -> None:
    model, batch = _model(method), _batch(method)
    for transformed, got in ((None, "None"), (batch["transformed_pixel_values"][..., :24], r"\(3, 3, 32, 24\)")):
        told = rf"transformed_pixel_values must have shape \(3, 3, 32, 32\).*got {got}; .*reconstruction='se2'"
        with pytest.raises(ValueError, match=told):
            model(**{**batch, "transformed_pixel_values": transformed})
    with pytest.raises(ValueError, match="intermediate_pixel_values must hold 2 images an image, got None"):
        model(**{**batch, "intermediate_pixel_values": None})
    with pytest.raises(ValueError, match=r"intermediate_pixel_values .*\(3, 2, 3, 32, 32\).*got \(3, 1, 3, 32, 32\)"):
        model(**{**batch, "intermediate_pixel_values": batch["intermediate_pixel_values"][:, :1]})


def test_views_refuse_unknown_words(method: Method) -> None:
    for fields, told in (
        ({"reconstruction": "shear"}, "transformation must be one of .*, got 'shear'"),
        ({"reconstruction": ""}, "transformation must be one of .*, got ''"),
        ({"reconstruction": "se2", "num_intermediate": -1}, "num_intermediate must be 0 or more, got -1"),
    ):
        with pytest.raises(ValueError, match=told):
            RUNS[method.prefix].small_views(**fields)


def test_trainer_refuses_views_that_are_not_the_models(method: Method) -> None:
    run, trainer = RUNS[method.prefix], TRAINERS[method.prefix]
    for ours, theirs, told in (
        ({}, {"reconstruction": "se2"}, "reconstruction of the views must be the model's, 'se2', got None"),
        ({"reconstruction": "se2"}, {}, "reconstruction of the views must be the model's, None, got 'se2'"),
        (
            {"reconstruction": "se2", "num_intermediate": 1},
            {"reconstruction": "se2"},
            "num_intermediate of the views must be the model's, 2, got 1",
        ),
    ):
        model = method.kind("ForPreTraining")(run.small_config(**theirs))
        with pytest.raises(ValueError, match=told):
            trainer(model, run.small_arguments("unused"), train_dataset=[], views=run.small_views(**ours))
    without = method.kind("ForPreTraining")(run.small_config(reconstruction="se2", reconstruction_weight=0))
    for ours in ({}, {"reconstruction": "se2"}):  # the command line gives the views the model's word
        object.__new__(trainer).check_views(without, run.small_views(**ours))


def test_trainers_own_views_are_the_models(method: Method) -> None:
    blank = object.__new__(TRAINERS[method.prefix])  # what the views depend on is the model alone
    for fields, expected in (
        ({"reconstruction": "blur", "num_intermediate": 1}, ("blur", 1)),
        ({"reconstruction": "blur", "reconstruction_weight": 0}, (None, 2)),
        ({}, (None, 2)),
    ):
        with torch.device("meta"):
            model = method.kind("ForPreTraining")(method.config(**fields))
        views = blank.default_views(model)
        assert (views.reconstruction, views.num_intermediate) == expected
    assert blank.default_views(None).reconstruction is None


# ---- training


def test_it_trains(method: Method, tmp_path: Path) -> None:
    """The error falls clearly below that of the mean image, which no look at the views is needed for; the rest lives."""
    run, own = RUNS[method.prefix], OWN_LOSSES[method.prefix]
    coarse = np.random.default_rng(0).integers(0, 256, (16, 3, 3, 3), dtype=np.uint8)
    images = [{"image": np.array(Image.fromarray(grid).resize((40, 40), Image.Resampling.BICUBIC))} for grid in coarse]
    set_seed(0)
    fewer = {"num_local": 1} if method.prefix == "gtsa" else {"num_focal": 1}
    trainer = TRAINERS[method.prefix](
        model=method.kind("ForPreTraining")(run.small_config(reconstruction="se2")),
        args=run.small_arguments(
            tmp_path, max_steps=60, per_device_train_batch_size=16, warmup_steps=5, logging_steps=1, save_strategy="no"
        ),
        train_dataset=images,
        views=run.small_views(reconstruction="se2", **fewer),
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    shares = [entry["reconstruction_loss"] / entry["mean_image_loss"] for entry in logs]
    assert len(shares) == 60
    assert np.mean(shares[:3]) > 1
    assert np.mean(shares[-10:]) < 0.8
    assert all(math.isfinite(entry[name]) for entry in logs for name in own)
    assert np.mean([entry[own[0]] for entry in logs[-10:]]) < np.mean([entry[own[0]] for entry in logs[:3]])
