"""EquiCoherent's models: the class token stands for an image."""

import torch

from tests.helpers.methods import METHODS, images

METHOD = METHODS["equicoherent"]


def test_the_pooled_output_is_the_normalised_class_token() -> None:
    model = METHOD.model("Model", num_register_tokens=2)
    outputs = model(images(2, 3, 40, 24))
    assert outputs.last_hidden_state.shape == (2, 1 + 2 + 15, 32)
    assert torch.equal(outputs.pooler_output, outputs.last_hidden_state[:, 0])


def test_classification_is_of_the_class_token_alone() -> None:
    model, pixels = METHOD.model("ForImageClassification", num_labels=3), images(2, 3, 32, 32)
    token = model.equicoherent(pixels).last_hidden_state[:, 0].double()
    centred = token - token.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + model.config.layer_norm_eps).sqrt()
    normed = normed * model.norm.weight.double() + model.norm.bias.double()
    expected = normed @ model.classifier.weight.double().T + model.classifier.bias.double()
    torch.testing.assert_close(model(pixels).logits.double(), expected, rtol=0, atol=1e-5)
