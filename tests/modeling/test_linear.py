"""Linear layers by oneDNN against PyTorch's own, in double precision and as a whole."""

from unittest import mock

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from hf_geossl.modeling import linear as linear_layers
from hf_geossl.modeling.linear import SMALLEST, Linear, linear

needs_one_dnn = pytest.mark.skipif(not linear_layers.ONE_DNN, reason="needs a CPU with AVX-512")
SHAPES = [((4, 97), 96, 288), ((2, 3, 70), 160, 40), ((700,), 40, 160)]


def make(rows, inputs, outputs, dtype=torch.float32, bias=True):
    generator = torch.Generator().manual_seed(rows[-1])
    tensors = [(*rows, inputs), (outputs, inputs), (outputs,)][: 2 + bias]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in tensors]


def gradients(function, tensors, weights):
    out = function(*tensors)
    return [out.detach(), *torch.autograd.grad((out * weights.to(out.dtype)).sum(), tensors)]


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_double_precision(rows, inputs, outputs, bias):
    tensors = make(rows, inputs, outputs, bias=bias)
    assert tensors[0].numel() * outputs >= SMALLEST or rows[0] == 2
    weights = torch.randn(*rows, outputs, generator=torch.Generator().manual_seed(1))
    double = [tensor.detach().double().requires_grad_() for tensor in tensors]
    for ours, exact in zip(gradients(linear, tensors, weights), gradients(F.linear, double, weights), strict=True):
        assert ours.dtype == torch.float32
        assert ours.shape == exact.shape
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))


def test_layer_trains_parts_of_itself_and_takes_views():
    entered, weight, bias = make((4, 97), 96, 288)
    layer = Linear(96, 288)
    layer.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
    layer.weight.requires_grad_(False)
    turned = entered.detach().transpose(0, 1)
    layer(turned).square().sum().backward()
    expected = 2 * F.linear(turned, weight, bias).detach().sum(dim=(0, 1))
    torch.testing.assert_close(layer.bias.grad, expected, rtol=1e-4, atol=1e-3)
    assert layer.weight.grad is None
    with torch.no_grad():
        assert not layer(turned).requires_grad


def test_second_derivatives_are_those_of_double_precision():
    entered, weight, bias = make((4, 97), 96, 288)

    def curvature(function, tensors):
        (first,) = torch.autograd.grad(function(*tensors).pow(3).mean(), tensors[0], create_graph=True)
        return torch.autograd.grad(first.square().sum(), tensors[1])[0]

    double = [tensor.detach().double().requires_grad_() for tensor in (entered, weight, bias)]
    exact = curvature(F.linear, double)
    ours = curvature(linear, [entered, weight, bias]).double()
    torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))


@needs_one_dnn
def test_one_dnn_is_asked_where_it_is_faster_and_nowhere_else():
    asked, original = [], torch.ops.mkldnn._linear_pointwise

    def product(*args):
        asked.append(args[0].shape)
        return original(*args)

    with mock.patch.object(torch.ops.mkldnn, "_linear_pointwise", product):
        tensors = make((4, 97), 96, 288)
        linear(*tensors).sum().backward()
        assert len(asked) == 3  # forward, of what entered, of the weight
        with torch.no_grad():
            linear(*tensors)
        assert len(asked) == 4
        linear(*make((4, 2), 96, 288)).sum().backward()
        linear(*make((4, 97), 96, 288, torch.float64)).sum().backward()
        linear(*make((4, 97), 96, 288, torch.bfloat16)).sum().backward()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert linear(*tensors).dtype == torch.bfloat16
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            linear(*tensors)
        assert counter.get_total_flops() == 2 * 4 * 97 * 96 * 288
        assert len(asked) == 4


def test_same_bits_every_time():
    tensors = make((4, 97), 96, 288)
    weights = torch.ones(4, 97, 288)
    first, second = gradients(linear, tensors, weights), gradients(linear, tensors, weights)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
