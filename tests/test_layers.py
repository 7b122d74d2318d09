"""The paper's equations, as `layers` writes them, against plain loops and definitions; `test_fast` has the rest."""
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ikmlib.layers import (
    GRADIENTS,
    IKMConv2d,
    attending,
    contextual_attention,
    modulated_conv2d,
    pooled_mask,
)

torch.manual_seed(0)
shapes = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.integers(5, 14), st.integers(5, 14),
                   st.integers(1, 5), st.integers(1, 2))   # B, Ci, Co, H, W, k, dilation


def reference_attention(x, k, transform="sigmoid", tau=0.0, strict=False):
    """Eqs. 9-11 cell by cell, with Python loops."""
    b, c, h, w = x.shape
    a = torch.empty(b, c, k, k, dtype=x.dtype)
    for i in range(b):
        for j in range(c):
            for u in range(k):
                for v in range(k):
                    cell = x[i, j, h * u // k:-(-h * (u + 1) // k), w * v // k:-(-w * (v + 1) // k)]
                    a[i, j, u, v] = ((cell > tau) if strict else (cell >= tau)).to(x.dtype).mean()
            share = torch.softmax(a[i, j].flatten(), 0).reshape(k, k)
            a[i, j] = {"sigmoid": 1 + torch.sigmoid(k * k * share - 1), "softmax": k * k * share,
                       "residual": 1 + share - 1 / k**2}[transform]
    return a


def plain_loop(x, weight, attention, padding, dilation):
    return torch.cat([F.conv2d(x[b:b + 1], weight * attention[b], padding=padding, dilation=dilation)
                      for b in range(len(x))])


@pytest.mark.parametrize("transform", ["sigmoid", "softmax", "residual"])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("size", [(6, 6), (7, 10), (3, 5)])
def test_attention_is_its_definition(transform, strict, size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    x[0, 0] = x[0, 0].relu()   # zeros: where strict and not strict differ
    expected = reference_attention(x, 3, transform, 0.0, strict)
    torch.testing.assert_close(contextual_attention(x, 3, strict=strict, transform=transform), expected)


def test_attention_of_relu_outputs_is_constant_unless_strict():
    x = torch.randn(4, 8, 12, 12).relu()
    assert torch.equal(contextual_attention(x, 3), torch.full((4, 8, 3, 3), 1.5))
    assert contextual_attention(x, 3, strict=True).std() > 0.001


def test_range_of_the_released_attention():
    """Extremes of 1 + sigmoid(9 softmax(p) - 1) for k = 3, [1.353, 1.783]: one cell of nine full, or all but one."""
    one = torch.zeros(1, 1, 9, 9) - 1
    one[..., :3, :3] = 1
    a = torch.stack([contextual_attention(one, 3), contextual_attention(-one, 3)])
    assert a.max().item() == pytest.approx(1 + 1 / (1 + math.exp(1 - 9 * math.e / (math.e + 8))), abs=1e-6)
    assert round(a.max().item(), 3) == 1.783 and round(a.min().item(), 3) == 1.353


def test_thresholds_are_of_each_channel_of_each_image():
    x = torch.randn(3, 4, 9, 9) + 5
    x[1] *= 3
    for tau, level in (("mean", x.mean((2, 3))), ("median", x.flatten(2).median(-1).values)):
        expected = F.adaptive_avg_pool2d((x >= level[..., None, None]).float(), 3)
        torch.testing.assert_close(pooled_mask(x, 3, tau=tau), expected)


def test_signals_have_attention_too():
    x = torch.tensor([[[1.0, 1, 1, -1, -1, -1, 1, -1, 1]]])
    torch.testing.assert_close(pooled_mask(x, 3), torch.tensor([[[1.0, 0, 2 / 3]]]))
    assert contextual_attention(x, 3).shape == (1, 1, 3)


@settings(max_examples=40, deadline=None)
@given(shapes, st.booleans())
def test_layer_equals_a_loop_over_images(shape, bias):
    b, ci, co, h, w, k, dilation = shape
    padding = dilation * k // 2
    layer = IKMConv2d(ci, co, k, padding=padding, dilation=dilation, bias=bias).double()
    layer.fast = False
    x = torch.randn(b, ci, h, w, dtype=torch.float64)
    if min(h, w) + 2 * padding < dilation * (k - 1) + 1:
        return
    expected = plain_loop(x, layer.weight, reference_attention(x, k), padding, dilation)
    expected = expected + layer.bias[:, None, None] if bias else expected
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(x[0]), expected[0])


@settings(max_examples=30, deadline=None)
@given(shapes)
def test_each_gradient_rule_is_its_definition(shape):
    b, ci, co, h, w, k, dilation = shape
    padding = dilation * k // 2
    if min(h, w) + 2 * padding < dilation * (k - 1) + 1:
        return
    x = torch.randn(b, ci, h, w, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(co, ci, k, k, dtype=torch.float64)
    attention = contextual_attention(x, k)
    kernels = [(weight * a).requires_grad_() for a in attention]
    outputs = torch.cat([F.conv2d(x[i:i + 1], kernels[i], padding=padding, dilation=dilation) for i in range(b)])
    out_gradient = torch.randn_like(outputs)
    dx, *dw = torch.autograd.grad(outputs, [x, *kernels], out_gradient)

    def gradients(rule):
        w = weight.clone().requires_grad_()
        y = modulated_conv2d(x, w, attention, padding=padding, dilation=dilation, gradient=rule)
        return y, *torch.autograd.grad(y, [x, w], out_gradient)

    y, gx, gw = gradients("iso")         # Algorithm 1: the mean of the images' gradients, without the chain-rule factor
    torch.testing.assert_close((y, gx, gw), (outputs, dx, sum(dw) / b))
    y, gx, gw = gradients("autograd")    # the exact derivative
    torch.testing.assert_close((y, gx, gw), (outputs, dx, sum(a * g for a, g in zip(attention, dw, strict=True))))
    w = weight.clone().requires_grad_()  # general optimisation: one kernel, modulated by the mean attention
    expected = F.conv2d(x, w * attention.mean(0), padding=padding, dilation=dilation)
    torch.testing.assert_close(gradients("go"), (expected, *torch.autograd.grad(expected, [x, w], out_gradient)))


@pytest.mark.parametrize("fast", [True, False])
def test_bias_gradient_is_exact(fast):
    layer = IKMConv2d(2, 3, 3, padding=1)
    layer.fast = fast
    layer(torch.randn(4, 2, 6, 6)).sum().backward()
    torch.testing.assert_close(layer.bias.grad, torch.full((3,), 4 * 36.0))


@pytest.mark.parametrize("rule", GRADIENTS)
def test_drop_in_for_conv2d(rule):
    plain, layer = nn.Conv2d(3, 4, 3, padding=1), IKMConv2d(3, 4, 3, padding=1, gradient=rule)
    layer.load_state_dict(plain.state_dict())
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    x = torch.randn(2, 3, 8, 8)
    copy = x.clone()
    layer(x).sum().backward()
    assert torch.equal(x, copy) and all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    assert layer(x[:0]).shape == (0, 4, 8, 8)


@pytest.mark.parametrize("fast", [True, False])
def test_images_do_not_see_each_other_except_in_go(fast):
    x = torch.randn(3, 2, 8, 8)
    for rule, alike in (("iso", True), ("autograd", True), ("go", False)):
        layer = IKMConv2d(2, 2, 3, padding=1, gradient=rule)
        layer.fast = fast
        assert torch.allclose(layer(x)[1], layer(x[1:2])[0], atol=1e-6) == alike


@pytest.mark.parametrize("option", [dict(gradient="sgd"), dict(transform="tanh"), dict(tau="mode"), dict(tau=None),
                                    dict(context="other"), dict(strict="yes"), dict(padding="same")])
def test_wrong_options_are_named(option):
    with pytest.raises(ValueError, match=str(next(iter(option.values())))):
        IKMConv2d(2, 2, 3, **option)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("rule", GRADIENTS)
def test_a_layer_takes_the_attention_that_it_is_given(fast, rule):
    """One for each image, one for all of them, or a number; and another kernel, of other numbers of channels."""
    layer, x = IKMConv2d(3, 2, 3, padding=1, bias=False, gradient=rule).double(), torch.randn(4, 3, 8, 8).double()
    layer.fast = fast
    given, weight = 1 + torch.rand(4, 3, 3, 3).double(), torch.randn(5, 3, 3, 3).double()
    of_all = given.mean(0, keepdim=True)
    for w, options in ((layer.weight, {}), (weight, {"weight": weight})):
        each = plain_loop(x, w, of_all.expand(4, 3, 3, 3) if rule == "go" else given, 1, 1)
        torch.testing.assert_close(layer(x, attention=given, **options), each)
        torch.testing.assert_close(layer(x[0], attention=given[:1], **options), plain_loop(x[:1], w, given, 1, 1)[0])
        torch.testing.assert_close(layer(x, attention=of_all, **options), F.conv2d(x, w * of_all[0], padding=1))
        torch.testing.assert_close(layer(x, attention=1.2, **options), F.conv2d(x, w * 1.2, padding=1))
    for wrong in (given[:2], given[:, :1], given[..., :2], given[0]):
        with pytest.raises(ValueError, match=r"of shape \(4, 3, 3, 3\) or \(1, 3, 3, 3\), not"):
            layer(x, attention=wrong)


@pytest.mark.parametrize("tau", [0.0, "mean", "median"])
def test_on_a_gpu_channels_last_input_is_pooled_as_a_contiguous_copy(monkeypatch, tau):
    pooled, plain = [], F.adaptive_avg_pool2d
    x = torch.randn(2, 4, 7, 9).contiguous(memory_format=torch.channels_last)
    expected = pooled_mask(x, 3, tau=tau)
    monkeypatch.setattr(F, "adaptive_avg_pool2d", lambda x, size: pooled.append((size, x)) or plain(x, size))
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    assert torch.equal(pooled_mask(x, 3, tau=tau), expected)
    assert [mask.is_contiguous() for size, mask in pooled if size == 3] == [True]


@pytest.mark.parametrize("fast", [True, False])
def test_attention_can_be_watched_while_it_is_replaced(fast):
    layer, x, seen = IKMConv2d(3, 2, 3, padding=1), torch.randn(2, 3, 8, 8), []
    layer.fast = fast
    plain = layer(x)
    with attending(layer, lambda layer, own: 1.0):
        replaced = layer(x)
        with attending(layer, lambda layer, own: seen.append(own())):   # it returns None: nothing changes
            assert torch.equal(layer(x), replaced) and seen == [1.0]
        assert torch.equal(layer(x), replaced)
    assert torch.equal(layer(x), plain) and not torch.equal(plain, replaced)
    with attending(layer, lambda layer, own: seen.append(own())):
        layer(x)
        layer(x[0])   # without a batch
    assert torch.equal(seen[1], contextual_attention(x, 3)) and torch.equal(seen[2], contextual_attention(x[:1], 3))
