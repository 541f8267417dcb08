"""LOCA against numbers of the authors' program (JAX), within the tolerances that separate right from wrong."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_geossl import LOCAForPreTraining
from hf_geossl.modeling.objectives import sinkhorn
from hf_geossl.modeling.positions import resample_positions
from tests.helpers import forked
from tests.helpers.golden import SHARED
from tests.helpers.loca_golden import golden_batch, golden_config, golden_model, load_golden, part, to_flax, to_torch
from tests.helpers.loca_run import small_config
from tests.helpers.methods import loca_batch

Golden = tuple[dict[str, torch.Tensor], dict[str, Any]]
needs_full_set = pytest.mark.skipif(
    not (SHARED / "loca" / "golden.safetensors").is_file(), reason="the full golden set is not beside the checkout"
)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_golden()


@pytest.fixture(scope="module")
def forward(golden: Golden) -> tuple[LOCAForPreTraining, Any]:
    model = golden_model(golden)
    tensors = golden[0]
    outputs = model(
        **golden_batch(golden),
        kept_query_tokens=tensors["idx/query0_kept"],
        visible_reference_tokens=tensors["idx/reference_kept"],
    )
    outputs.loss.backward()
    return model, outputs


def _images(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return tensors[name].permute(0, 3, 1, 2).contiguous()


def _query_major(values: torch.Tensor) -> torch.Tensor:
    return values.transpose(0, 1).flatten(0, 1)


def test_tokens_of_every_view(golden: Golden) -> None:
    tensors, model = golden[0], golden_model(golden)
    teacher = model.teacher
    with torch.no_grad():
        reference = model.loca(_images(tensors, "in/reference")).last_hidden_state
        own = teacher.loca(_images(tensors, "in/reference")).last_hidden_state
        found = {
            "out/reference_full/patches_repr": reference,
            "out/reference_full/cluster_logits": model.cluster_head(reference).flatten(0, 1),
            "out/reference_full/position_logits": model._predict(reference, reference),
            "out/teacher/patches_repr_kept": own[:, tensors["idx/reference_kept"].long()],
            "out/teacher/cluster_logits": teacher.cluster_head(own).flatten(0, 1),
            "out/queries_self/patches_repr": model.loca(_images(tensors, "in/queries")).last_hidden_state,
            "out/queries_nope_first/patches_repr": model.loca(
                _images(tensors, "in/queries")[:1], use_positions=False
            ).last_hidden_state,
            "out/large/patches_repr": model.loca(_images(tensors, "in/large")).last_hidden_state,
        }
    for name, value in found.items():
        torch.testing.assert_close(
            value, tensors[name], rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@needs_full_set
def test_every_intermediate_point(golden: Golden) -> None:
    tensors, model = golden[0], golden_model(golden)
    with torch.no_grad():
        encoded = model.loca.encoder(model.loca.embeddings(_images(tensors, "in/reference")), output_hidden_states=True)
        tokens = model.loca.layernorm(encoded.last_hidden_state)
        crossed = model.cross_attention(tokens, tokens)
        found = {
            "ToTokenSequence_0": encoded.hidden_states[0],
            "encoderblock_0": encoded.hidden_states[1],
            "encoderblock_1": encoded.hidden_states[2],
            "encoder_norm": tokens,
            "cross_attention_block": crossed,
            "final_norm": model.final_norm(crossed),
        }
    for name, value in found.items():
        torch.testing.assert_close(value, tensors[f"mid/reference_full/{name}"], rtol=0, atol=1e-5)


def test_logits_and_losses(golden: Golden, forward: Any) -> None:
    (tensors, numbers), (_, outputs) = golden, forward
    found = {
        "out/query0/position_logits": outputs.random_query_logits,
        "out/queries/position_logits": _query_major(outputs.focal_query_logits),
        "out/query0/cluster_logits": outputs.random_query_cluster_logits.flatten(0, 1),
        "out/queries/cluster_logits": _query_major(outputs.focal_query_cluster_logits).flatten(0, 1),
        "out/teacher/cluster_logits": outputs.reference_cluster_logits.flatten(0, 1),
    }
    for name, value in found.items():
        torch.testing.assert_close(value, tensors[name], rtol=0, atol=1e-5)
    losses = {
        "loss_loc": outputs.location_loss,
        "loss_ce": outputs.cluster_loss,
        "loss_memax": outputs.mean_entropy_loss,
        "loss_feature": outputs.feature_loss,
        "loss_total": outputs.loss,
    }
    for name, value in losses.items():
        assert value.item() == pytest.approx(numbers["losses"][name], abs=3e-6), name
    counts = numbers["metrics"]
    assert outputs.location_accuracy.item() == pytest.approx(counts["n_correct"] / counts["n_valid"], rel=1e-6)


def test_gradients(golden: Golden, forward: Any) -> None:
    (tensors, numbers), (model, _) = golden, forward
    gradients = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    total = torch.stack([gradient.double().norm() for gradient in gradients.values()]).norm()
    assert total.item() == pytest.approx(numbers["grad_global_norm"], rel=1e-6)
    found = to_flax(gradients)
    assert found.keys() == numbers["grad_norms"].keys()
    for name, value in found.items():
        if name.endswith("key/bias"):  # its true gradient is 0
            continue
        assert value.norm().item() == pytest.approx(numbers["grad_norms"][name], rel=1e-4, abs=1e-7), name
        if f"grads/{name}" in tensors:
            expected = tensors[f"grads/{name}"].reshape(value.shape)
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("selection", ["unstructured", "first"])
def test_other_visible_tokens(golden: Golden, selection: str) -> None:
    numbers, model = golden[1][f"variant_ref_{selection}"], golden_model(golden)
    outputs = model(
        **golden_batch(golden),
        kept_query_tokens=torch.tensor(numbers["query0_kept"]),
        visible_reference_tokens=torch.tensor(numbers["reference_kept"]),
    )
    outputs.loss.backward()
    gradients = [value.grad.double().norm() for value in model.parameters() if value.grad is not None]
    assert outputs.loss.item() == pytest.approx(numbers["total_loss"], abs=3e-6)
    assert outputs.location_loss.item() == pytest.approx(numbers["loss_loc"], abs=3e-6)
    assert torch.stack(gradients).norm().item() == pytest.approx(numbers["grad_global_norm"], rel=1e-6)


def test_without_cluster_loss(golden: Golden) -> None:
    numbers, model = golden[1]["variant_no_cluster"], golden_model(golden, use_cluster_loss=False)
    outputs = model(
        **golden_batch(golden),
        kept_query_tokens=torch.tensor(numbers["query0_kept"]),
        visible_reference_tokens=torch.tensor(numbers["reference_kept"]),
    )
    outputs.loss.backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    assert outputs.loss.item() == pytest.approx(numbers["total_loss"], abs=3e-6)
    assert outputs.feature_loss is outputs.cluster_loss is outputs.mean_entropy_loss is None
    total = torch.stack([value.double().norm() for value in gradients.values()]).norm()
    assert total.item() == pytest.approx(numbers["grad_global_norm"], rel=1e-6)
    found = to_flax(gradients)
    assert found.keys() == numbers["grad_norms"].keys()
    for name, value in found.items():
        if not name.endswith("key/bias"):
            assert value.norm().item() == pytest.approx(numbers["grad_norms"][name], rel=1e-4, abs=1e-7), name
    if "variant_no_cluster/query0_position_logits" in golden[0]:
        expected = golden[0]["variant_no_cluster/query0_position_logits"]
        torch.testing.assert_close(outputs.random_query_logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_weight_of_the_location_loss(golden: Golden, weight: float) -> None:
    losses, model = golden[1]["losses"], golden_model(golden, location_weight=weight)
    outputs = model(
        **golden_batch(golden),
        kept_query_tokens=golden[0]["idx/query0_kept"],
        visible_reference_tokens=golden[0]["idx/reference_kept"],
    )
    assert outputs.location_loss.item() == pytest.approx(losses["loss_loc"], abs=3e-6)
    expected = losses["loss_total"] + (weight - 1) * losses["loss_loc"]
    assert outputs.loss.item() == pytest.approx(expected, abs=3e-6)


@pytest.mark.parametrize("size", [(6, 6), (10, 18), (14, 14), (20, 20), (28, 28), (32, 32)])
def test_position_resampling(golden: Golden, size: tuple[int, int]) -> None:
    expected = golden[0][f"resize/out_{size[0]}x{size[1]}"][0]
    found = resample_positions(golden[0]["resize/in_14"][0], *size, mode="bilinear")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_sinkhorn_in_one_process(golden: Golden) -> None:
    tensors = golden[0]
    for name, start, iterations in (("sinkhorn/out", "sinkhorn/in", 3), ("sinkhorn/out_1iter", "sinkhorn/in", 1)):
        torch.testing.assert_close(sinkhorn(tensors[start], iterations), tensors[name], rtol=1e-5, atol=1e-7)
    found = sinkhorn(tensors["loss/sinkhorn_in"], 3)
    torch.testing.assert_close(found, tensors["loss/sinkhorn_out"], rtol=1e-5, atol=1e-7)


_TWO_PROCESSES = """
import os, sys
import torch
from safetensors.torch import load_file, save_file
from hf_geossl.modeling.objectives import patch_cluster_losses, sinkhorn

torch.distributed.init_process_group("gloo")
rank, folder = torch.distributed.get_rank(), sys.argv[1]
given = load_file(f"{folder}/given.safetensors")
weight = given["weight"].requires_grad_()
logits = given["features"].chunk(2)[rank] @ weight
valid = torch.ones(len(logits), dtype=torch.bool)
cluster, entropy = patch_cluster_losses(logits, given["assignments"].chunk(2)[rank], valid, 0.1)
(cluster + entropy).backward()
torch.distributed.all_reduce(weight.grad)  # as DistributedDataParallel: the mean over processes
save_file(
    {
        "sinkhorn": sinkhorn(given["values"].chunk(2)[rank].contiguous(), 3),
        "gradient": weight.grad / 2,
        "entropy": entropy.detach(),
    },
    f"{folder}/found_{rank}.safetensors",
)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def test_sinkhorn_and_mean_entropy_over_two_processes(golden: Golden, tmp_path: Path) -> None:
    """Two processes give what one gives on all their tokens, gradients included."""
    from safetensors.torch import load_file, save_file

    from hf_geossl.modeling.objectives import patch_cluster_losses

    generator = torch.Generator().manual_seed(0)
    features, weight = torch.randn(12, 5, generator=generator), torch.randn(5, 7, generator=generator)
    assignments = torch.rand(12, 7, generator=generator).softmax(-1)
    given = {"values": golden[0]["sinkhorn/in"], "features": features, "weight": weight, "assignments": assignments}
    save_file(given, tmp_path / "given.safetensors")
    forked.run(_TWO_PROCESSES, str(tmp_path), output=tmp_path / "output.txt", world_size=2)
    found = [load_file(tmp_path / f"found_{rank}.safetensors") for rank in (0, 1)]

    expected = golden[0]["sinkhorn/out_two_replicas"]
    torch.testing.assert_close(torch.stack([f["sinkhorn"] for f in found]), expected, rtol=1e-5, atol=1e-6)
    weight = weight.clone().requires_grad_()
    valid = torch.ones(12, dtype=torch.bool)
    cluster, entropy = patch_cluster_losses(features @ weight, assignments, valid, 0.1)
    (cluster + entropy).backward()
    for rank in (0, 1):
        torch.testing.assert_close(found[rank]["entropy"], entropy.detach(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found[rank]["gradient"], weight.grad, rtol=1e-5, atol=1e-6)


def test_initial_statistics(golden: Golden) -> None:
    """Means, deviations and largest values of a fresh model, within what their numbers of elements allow."""
    torch.manual_seed(0)
    model = LOCAForPreTraining(golden_config(golden[1]["config"]))
    trained = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    for name, value in to_flax(trained).items():
        expected, count = golden[1]["init_stats"][name], value.numel()
        if expected["std"] == 0.0:
            assert (value == expected["mean"]).all(), name
            continue
        # two samples of `count` numbers: deviations differ by std / sqrt(count) (times 1 for normal, less for uniform)
        noise = 5 * expected["std"] / count**0.5
        assert value.std(correction=0).item() == pytest.approx(expected["std"], abs=noise), name
        assert value.mean().item() == pytest.approx(expected["mean"], abs=2 * noise), name
        if "kernel" in name and "prototypes" not in name:  # uniform or cut off: the largest of many is the bound
            assert value.abs().max().item() == pytest.approx(expected["absmax"], rel=0.1), name
    prototypes = model.cluster_head.prototypes.weight
    torch.testing.assert_close(prototypes.norm(dim=1), torch.ones(len(prototypes)))
    for name, value in to_torch(part(golden[0], "params")).items():
        assert trained[name].shape == value.shape


def test_three_steps_as_the_trainer_takes_them(golden: Golden, tmp_path: Path) -> None:
    """The trainer's own optimizer groups and clipping, and the teacher, with the golden learning rate and momentum."""
    from hf_geossl import LOCATrainer, LOCATrainingArguments, LOCAViews

    tensors, numbers = golden
    model = golden_model(golden)
    args = LOCATrainingArguments(
        output_dir=str(tmp_path), max_steps=3, optim="adamw_torch", picture=False, use_cpu=True, report_to="none"
    )
    settings = numbers["config"]
    views = LOCAViews(settings["ref"], settings["focal"], settings["n_foc"], settings["patch"])
    data = [{"image": torch.zeros(4, 4, 3, dtype=torch.uint8)}]
    trainer = LOCATrainer(model, args, train_dataset=data, views=views)
    optimizer = trainer.create_optimizer()
    for index, step in enumerate(numbers["steps"]):
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        for group in optimizer.param_groups:
            group["lr"] = step["lr"]
        outputs = model(
            **golden_batch(golden),
            kept_query_tokens=torch.tensor(step["query0_kept"]),
            visible_reference_tokens=torch.tensor(step["reference_kept"]),
        )
        assert outputs.loss.item() == pytest.approx(step["total_loss"], abs=3e-6), index
        assert outputs.feature_loss.item() == pytest.approx(step["feature_loss"], abs=3e-6), index
        optimizer.zero_grad()
        outputs.loss.backward()
        norm = trainer._clip_grad_norm(model).item()
        if index == 0:
            assert norm == pytest.approx(numbers["grad_global_norm"], rel=1e-6)
        optimizer.step()
        model.update_teacher(step["momentum"])

        student = to_flax({name: value.detach() for name, value in model.named_parameters()})
        teacher = to_flax({name: value.detach() for name, value in model.teacher.named_parameters()})
        changes = to_flax({name: value.detach() - before[name] for name, value in model.named_parameters()})
        for name in student:
            if name.endswith("key/bias"):  # its true gradient is 0: Adam makes noise of it
                continue
            assert student[name].double().norm().item() == pytest.approx(step["param_norms"][name], rel=2e-6, abs=1e-6)
            assert teacher[name].double().norm().item() == pytest.approx(step["ema_norms"][name], rel=2e-6, abs=1e-6)
            change = changes[name].double().norm().item()
            assert change == pytest.approx(step["update_norms"][name], rel=2e-3), (index, name)
            if index or f"params_after/{name}" not in tensors:
                continue
            decayed_bias = name.endswith(("query/bias", "value/bias"))
            expected = tensors[f"params_after/{name}"].reshape(student[name].shape)
            torch.testing.assert_close(student[name], expected, rtol=0, atol=1e-6 if decayed_bias else 5e-5)
            expected = tensors[f"ema_after/{name}"].reshape(teacher[name].shape)
            torch.testing.assert_close(teacher[name], expected, rtol=0, atol=2e-6)


def test_shipped_numbers_are_the_authors() -> None:
    """What ships with the tests is a part of the full set, unchanged."""
    from safetensors.torch import load_file

    from tests.helpers.golden import SHIPPED

    full = SHARED / "loca"
    if not (full / "golden.safetensors").is_file():
        pytest.skip("the full golden set is not beside the checkout")
    for name in ("golden.json", "geometry.json", "photometric.json", "photometric.safetensors"):
        assert (SHIPPED / "loca" / name).read_bytes() == (full / name).read_bytes()
    tensors = load_file(full / "golden.safetensors")
    for name, value in load_file(SHIPPED / "loca" / "golden.safetensors").items():
        assert torch.equal(value, tensors[name]), name


def test_class_token_and_registers_take_part_in_attention_alone() -> None:
    """Positions and clusters are those of patches, and every weight of the trunk gets a gradient, as DDP asks for."""
    torch.manual_seed(0)
    model = LOCAForPreTraining(small_config(use_class_token=True, num_register_tokens=2, drop_path_rate=0.0)).train()
    outputs = model(**loca_batch(2))
    assert outputs.random_query_logits.shape == (2, 6, 16)
    assert outputs.reference_cluster_logits.shape == (2, 16, 16)
    patches = model.teacher.loca(loca_batch(2)["reference_pixel_values"]).last_hidden_state[:, 3:]
    torch.testing.assert_close(outputs.reference_cluster_logits, model.teacher.cluster_head(patches))
    outputs.loss.backward()
    assert [name for name, value in model.loca.named_parameters() if value.grad is None] == []
