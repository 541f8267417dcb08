"""ONNX files of both exporters give, in onnxruntime, what the models give, for other batches and sizes than the example's."""

import io
from typing import Any

import numpy as np
import pytest
import torch

import hf_geossl
from tests.helpers.methods import METHODS, images
from tests.helpers.task_folders import TRUNK

onnxruntime = pytest.importorskip("onnxruntime", reason="comes with the extra `test`, as onnx and onnxscript do")
pytest.importorskip("onnxscript")

OPTIONS = {"num_register_tokens": 2, "layerscale_value": 0.3, "num_labels": 3, "num_hidden_layers": 1}
ROTARY = {"position_embedding_type": "rope", "gated_mlp": True, "key_bias": False, "hidden_act": "silu"}
# one patch alone, the position table's own size, and sizes on both sides of it
INPUTS = [(1, 8, 8), (2, 32, 32), (3, 40, 24), (1, 16, 88)]
KINDS = ["Model", "Backbone", "ForImageClassification", "ForSemanticSegmentation"]
AXES = {0: "batch", 2: "height", 3: "width"}


def assert_same_for_every_input(exported: bytes, model: Any) -> None:
    """Each output within 1e-4 of the model's largest value, in its own shape."""
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == ["pixel_values"]
    for batch_size, *size in INPUTS:
        pixels = images(batch_size, 3, *size, seed=batch_size)
        with torch.no_grad():
            outputs = model(pixels).to_tuple()
        expected = [one for value in outputs for one in (value if isinstance(value, tuple) else (value,))]
        found = session.run(None, {"pixel_values": pixels.numpy()})
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.shape == tuple(theirs.shape)
            scale = max(1.0, theirs.abs().max().item())
            np.testing.assert_allclose(ours / scale, theirs.numpy() / scale, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("trunk", [{}, ROTARY], ids=["own", "rotary"])
def test_a_traced_file_with_nothing_free_is_that_of_the_example(trunk: dict[str, Any]) -> None:
    """What torch.onnx.export does where nobody asks for more; of a constant number of patches it once made float64."""
    model = METHODS["loca"].model("ForSemanticSegmentation", **OPTIONS, **trunk)
    file, pixels = io.BytesIO(), images(2, 3, 40, 24, seed=1)
    torch.onnx.export(model, (images(2, 3, 40, 24),), file, dynamo=False, input_names=["pixel_values"])
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = model(pixels).logits
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"pixel_values": pixels.numpy()})[0]), expected)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_traced_detector_serves_each_image_of_its_size_and_refuses_others() -> None:
    """In each image is another number of objects, in one none: the file must not keep the number of the example's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        model = hf_geossl.GTSAForObjectDetection(hf_geossl.GTSAConfig(**TRUNK, num_labels=3)).eval()
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.06)
    model.decoder.roi_heads.score_thresh = 0.9
    file, example = io.BytesIO(), images(1, 3, 32, 40)
    traced = torch.jit.trace(model, example, strict=False)
    free = {"pixel_values": {2: "height", 3: "width"}}
    settings: dict[str, Any] = {"dynamo": False, "input_names": ["pixel_values"], "opset_version": 18}
    torch.onnx.export(model, (example,), file, dynamic_axes=free, **settings)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    numbers = []
    for seed in range(6):
        pixels = images(1, 3, 32, 40, seed=seed) * seed
        with torch.no_grad():
            expected, same = model(pixels), traced(pixels)
        logits, boxes = (torch.from_numpy(one) for one in session.run(None, {"pixel_values": pixels.numpy()}))
        numbers.append(logits.shape[1])
        known = slice(0, logits.shape[1])  # where nothing is found the model has one row that says so, the file none
        torch.testing.assert_close(logits.softmax(-1), expected.logits[:, known].softmax(-1), atol=1e-4, rtol=0)
        torch.testing.assert_close(boxes, expected.pred_boxes[:, known], atol=1e-4, rtol=0)
        torch.testing.assert_close(same["pred_boxes"], expected.pred_boxes[:, known])
    assert numbers[0] == 0
    assert len(set(numbers)) >= 4
    with pytest.raises(Exception, match="invalid expand shape"):
        session.run(None, {"pixel_values": images(1, 3, 40, 32).numpy()})


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::UserWarning")
@pytest.mark.parametrize("trunk", [{}, ROTARY], ids=["own", "rotary"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_a_traced_file_serves_every_batch_and_size(name: str, kind: str, trunk: dict[str, Any]) -> None:
    model = METHODS[name].model(kind, **OPTIONS, **trunk)
    file = io.BytesIO()
    torch.onnx.export(
        model, (images(2, 3, 40, 24),), file, dynamo=False, input_names=["pixel_values"],
        dynamic_axes={"pixel_values": AXES}, opset_version=18,
    )  # fmt: skip
    assert_same_for_every_input(file.getvalue(), model)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("kind", "decoder"),
    [("SemanticSegmentation", "upernet"), ("DepthEstimation", "linear"), ("DepthEstimation", "dpt")],
)
def test_a_traced_file_of_a_dense_head_serves_every_batch_and_size(kind: str, decoder: str) -> None:
    model = METHODS["gtsa"].model(f"For{kind}", 0.05, **OPTIONS, decoder_type=decoder)
    file = io.BytesIO()
    torch.onnx.export(
        model, (images(2, 3, 40, 24),), file, dynamo=False, input_names=["pixel_values"],
        dynamic_axes={"pixel_values": AXES}, opset_version=18,
    )  # fmt: skip
    assert_same_for_every_input(file.getvalue(), model)


@pytest.mark.parametrize(
    ("name", "kind", "trunk"), [("gtsa", "ForSemanticSegmentation", {}), ("equicoherent", "Model", ROTARY)]
)
def test_a_file_of_the_exported_program_serves_every_batch_and_size(
    name: str, kind: str, trunk: dict[str, Any]
) -> None:
    model = METHODS[name].model(kind, **OPTIONS, **trunk)
    free = torch.export.Dim.DYNAMIC
    program = torch.onnx.export(
        model, (images(2, 3, 40, 24),), dynamo=True, dynamic_shapes={"pixel_values": dict.fromkeys(AXES, free)}
    )
    assert_same_for_every_input(program.model_proto.SerializeToString(), model)
