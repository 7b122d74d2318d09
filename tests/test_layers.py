"""The paper's equations against plain loops and definitions."""
import math
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ikmlib import layers
from ikmlib.layers import (
    GRADIENTS,
    IKMConv2d,
    attending,
    contextual_attention,
    modulated_conv2d,
    pooled_mask,
)

torch.manual_seed(0)
SMALL = (0, layers.SMALL)   # a convolution an image; one grouped convolution for all
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


class ReleasedIso(torch.autograd.Function):
    """Algorithm 1 as the paper writes it: a grouped convolution with B kernels, whose gradients are averaged."""

    @staticmethod
    def forward(ctx, x, weight, attention, *geometry):
        ctx.save_for_backward(x, weight, attention)
        ctx.geometry = geometry
        return ReleasedIso.grouped(x, attention[:, None] * weight, *geometry)

    @staticmethod
    def grouped(x, kernels, stride, padding, dilation):
        y = F.conv2d(x.flatten(0, 1)[None], kernels.flatten(0, 1), None, stride, padding, dilation, groups=len(x))
        return y.unflatten(1, (len(x), -1))[0]

    @staticmethod
    def backward(ctx, grad):
        x, weight, attention = ctx.saved_tensors
        with torch.enable_grad():
            x, kernels = x.detach().requires_grad_(), (attention[:, None] * weight).detach().requires_grad_()
            y = ReleasedIso.grouped(x, kernels, *ctx.geometry)
        gx, gk = torch.autograd.grad(y, (x, kernels), grad)
        return gx, gk.mean(0), *[None] * 4


def reference_conv(x, weight, attention, bias, rule, stride=1, padding=0, dilation=1):
    """The grouped convolution of the paper, for every gradient rule."""
    if rule == "iso":
        y = ReleasedIso.apply(x, weight, attention, stride, padding, dilation)
    elif rule == "go":
        y = F.conv2d(x, weight * attention.mean(0), None, stride, padding, dilation)
    else:
        y = ReleasedIso.grouped(x, attention[:, None] * weight, stride, padding, dilation)
    return y if bias is None else y + bias[:, None, None]


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
@given(shapes, st.booleans(), st.booleans(), st.sampled_from(SMALL))
def test_layer_equals_a_loop_over_images(shape, bias, channels_last, small):
    b, ci, co, h, w, k, dilation = shape
    padding = dilation * k // 2
    layer = IKMConv2d(ci, co, k, padding=padding, dilation=dilation, bias=bias).double()
    x = torch.randn(b, ci, h, w, dtype=torch.float64)
    if min(h, w) + 2 * padding < dilation * (k - 1) + 1:
        return
    expected = plain_loop(x, layer.weight, reference_attention(x, k), padding, dilation)
    expected = expected + layer.bias[:, None, None] if bias else expected
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    with mock.patch.object(layers, "SMALL", small):
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


settings_of_cag = st.fixed_dictionaries({
    "tau": st.sampled_from([0.0, -0.5, 0.3, "mean", "median"]), "strict": st.booleans(),
    "transform": st.sampled_from(["sigmoid", "softmax", "residual"])})


@settings(max_examples=150, deadline=None)
@given(shapes, st.integers(1, 2), st.sampled_from(GRADIENTS), settings_of_cag, st.booleans(), st.booleans(),
       st.sampled_from(["plain", "after_relu"]), st.sampled_from([torch.float32, torch.float64]),
       st.sampled_from(SMALL))
def test_outputs_and_all_gradients_are_the_grouped_convolutions(shape, stride, rule, cag, bias, channels_last, call,
                                                                dtype, small):
    """Sums of at most 5 x 25 x 4 x 196 products of normal numbers in another order: 1e-4 in float32 (unit roundoff
    6e-8 times the root of their number, times their size), 1e-12 in float64."""
    b, ci, co, h, w, k, dilation = shape
    geometry = dict(stride=stride, padding=dilation * (k - 1) // 2 + 1, dilation=dilation)
    layer = IKMConv2d(ci, co, k, bias=bias, gradient=rule, **geometry, **cag).to(dtype)
    x = torch.randn(b, ci, h, w, dtype=dtype)
    x = (x.relu() if call == "after_relu" else x)
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format).requires_grad_()
    given_to = {"plain": {}, "after_relu": {"after_relu": True}}[call]
    with torch.no_grad(), mock.patch.object(layers, "SMALL", small):
        y_without_gradients = layer(x, **given_to)
    reference = reference_conv(x, layer.weight, contextual_attention(x, k, **cag), layer.bias, rule, **geometry)
    learn = [x, *layer.parameters()]
    grad = torch.randn_like(reference)
    tolerance = dict(rtol=1e-4, atol=1e-4) if dtype == torch.float32 else dict(rtol=1e-11, atol=1e-12)
    with mock.patch.object(layers, "SMALL", small):
        y = layer(x, **given_to)
        gradients = torch.autograd.grad(y, learn, grad)
    for found in (y, y_without_gradients):
        torch.testing.assert_close(found, reference, **tolerance)
    torch.testing.assert_close(gradients, torch.autograd.grad(reference, learn, grad), **tolerance)


def test_the_constant_after_a_relu_is_taken_without_a_look_only_where_it_is_one():
    x = torch.randn(2, 3, 9, 9).relu()
    for cag, constant in (({}, 1.5), ({"tau": -1}, 1.5), ({"transform": "softmax"}, 1.0),
                          ({"transform": "residual"}, 1.0), ({"strict": True}, None), ({"tau": 0.1}, None),
                          ({"tau": "mean"}, None)):
        layer = IKMConv2d(3, 2, 3, **cag)
        found = layer.attend(x, after_relu=True)
        assert isinstance(found, float) == (constant is not None)
        expected = contextual_attention(x, 3, **cag)
        torch.testing.assert_close(torch.as_tensor(found).expand(2, 3, 3, 3), expected)
        assert torch.equal(layer.attend(x), expected)


def test_a_nan_spreads_as_far_as_the_kernel_and_only_in_its_image():
    x = torch.randn(2, 3, 9, 9).relu()
    x[0, 1, 4, 4] = math.nan
    layer = IKMConv2d(3, 2, 3, padding=1)
    expected = torch.zeros(2, 2, 9, 9, dtype=torch.bool)
    expected[0, :, 3:6, 3:6] = True
    for after_relu in (False, True):
        assert torch.equal(layer(x, after_relu=after_relu).isnan(), expected)


def test_bias_gradient_is_exact():
    layer = IKMConv2d(2, 3, 3, padding=1)
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


def test_images_do_not_see_each_other_except_in_go():
    x = torch.randn(3, 2, 8, 8)
    for rule, alike in (("iso", True), ("autograd", True), ("go", False)):
        layer = IKMConv2d(2, 2, 3, padding=1, gradient=rule)
        assert torch.allclose(layer(x)[1], layer(x[1:2])[0], atol=1e-6) == alike


@pytest.mark.parametrize("option", [dict(gradient="sgd"), dict(transform="tanh"), dict(tau="mode"),
                                    dict(padding="same")])
def test_wrong_options_are_named(option):
    with pytest.raises(ValueError, match=str(next(iter(option.values())))):
        IKMConv2d(2, 2, 3, **option)


def test_attention_can_be_watched_while_it_is_replaced():
    layer, x, seen = IKMConv2d(3, 2, 3, padding=1), torch.randn(2, 3, 8, 8), []
    plain = layer(x)
    with attending(layer, lambda layer, own: 1.0):
        replaced = layer(x)
        with attending(layer, lambda layer, own: seen.append(own()) or seen[-1]):
            assert torch.equal(layer(x), replaced) and seen == [1.0]
        assert torch.equal(layer(x), replaced)
    assert torch.equal(layer(x), plain) and not torch.equal(plain, replaced)
