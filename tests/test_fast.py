"""The rearranged forms against the literal ones of `layers` and `models`: outputs and all gradients, in float64."""
import contextlib
import copy
import math
from dataclasses import replace
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from ikmlib import fast
from ikmlib.convert import convert
from ikmlib.layers import GRADIENTS, TRANSFORMS, IKMConv2d, attending
from ikmlib.models import ARCHITECTURES, Architecture, DenseUnit, SRNetwork

torch.manual_seed(0)
SMALL = st.sampled_from((0, fast.SMALL))   # a convolution an image; one grouped convolution for all
MEMORY = st.sampled_from((torch.contiguous_format, torch.channels_last))
OPTIONS = st.fixed_dictionaries({
    "gradient": st.sampled_from(GRADIENTS), "tau": st.sampled_from([0.0, -0.5, 0.3, "mean", "median"]),
    "strict": st.booleans(), "transform": st.sampled_from(TRANSFORMS),
    "context": st.sampled_from(["own", "own", "constant", "shuffled"])})
ARCHITECTURE_OPTIONS = st.tuples(OPTIONS, st.fixed_dictionaries({
    "attention": st.sampled_from(["ikm", "ikm", "ikm", "none", "ca", "sa"]), "kernel": st.sampled_from([1, 3, 5]),
    "dilation": st.integers(1, 2), "gain": st.sampled_from([1.0, 1.5])})).map(lambda both: both[0] | both[1])


def as_written(module: nn.Module) -> nn.Module:
    """A copy that is computed as the paper writes it."""
    literal = copy.deepcopy(module)
    for each in literal.modules():
        each.fast = False
    return literal


def assert_the_same(module: nn.Module, x: torch.Tensor) -> None:
    """Outputs and gradients of input and parameters, to the rounding of a few thousand additions."""
    x.requires_grad_()
    literal = as_written(module)
    found, expected = module(x), literal(x)
    grad = torch.randn_like(expected)
    close = dict(rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(found, expected, **close)
    torch.testing.assert_close(torch.autograd.grad(found, [x, *module.parameters()], grad),
                               torch.autograd.grad(expected, [x, *literal.parameters()], grad), **close)
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected, **close)


@settings(max_examples=100, deadline=None)
@given(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.integers(5, 14), st.integers(5, 14)),
       st.integers(1, 5), st.integers(1, 2), st.integers(1, 2), OPTIONS, st.booleans(), MEMORY, SMALL)
def test_layer(shape, k, dilation, stride, options, bias, memory, small):
    b, ci, co, h, w = shape
    layer = IKMConv2d(ci, co, k, stride=stride, padding=dilation * (k - 1) // 2 + 1, dilation=dilation, bias=bias,
                      **options).double()
    x = torch.randn(b, ci, h, w, dtype=torch.float64)
    with mock.patch.object(fast, "SMALL", small):
        assert_the_same(layer.to(memory_format=memory), x.contiguous(memory_format=memory))


@settings(max_examples=60, deadline=None)
@given(ARCHITECTURE_OPTIONS, st.integers(0, 4), st.integers(1, 3), st.integers(5, 12), st.integers(5, 12), SMALL)
def test_dense_unit(options, depth, b, h, w, small):
    unit = DenseUnit(Architecture(channels=8, growth=4, **options), depth).double()
    with mock.patch.object(fast, "SMALL", small):
        assert_the_same(unit, torch.randn(b, 8, h, w, dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(ARCHITECTURE_OPTIONS, st.sampled_from(["rb", "db", "rdb", "uhdb"]), st.sampled_from([(2, 1), (1, 2, 1)]),
       MEMORY)
def test_network(options, block, depths, memory):
    """`fast=False` is one switch for the whole network, which changes neither names nor initial weights."""
    arch = Architecture(block, blocks=1, depths=depths, channels=4, growth=4, **options)
    torch.manual_seed(1)
    network = SRNetwork(arch, 2).double()
    torch.manual_seed(1)
    literal = SRNetwork(arch, 2, fast=False).double()
    assert list(network.state_dict()) == list(literal.state_dict())
    x = torch.rand(2, 3, 7, 9, dtype=torch.float64)
    torch.testing.assert_close(network(x), literal(x), rtol=1e-10, atol=1e-11)
    with mock.patch.object(fast, "dense_unit", None), mock.patch.object(fast, "modulated_conv2d", None):
        literal(x)   # does without them
    assert_the_same(network.to(memory_format=memory), x.contiguous(memory_format=memory))


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_on_a_gpu_images_of_any_size_are_groups_in_their_own_memory_format(monkeypatch, memory):
    x = torch.randn(3, 4, 36, 40, dtype=torch.float64).contiguous(memory_format=memory)
    layer = IKMConv2d(4, 5, 3, padding=1).double().to(memory_format=memory)
    expected, calls, plain = layer(x), [], F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda x, *a, **kw: calls.append((x, kw["groups"])) or plain(x, *a, **kw))
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    y = layer(x)
    (images, groups), = calls
    assert groups == 3 and images.is_contiguous(memory_format=memory) and y.is_contiguous(memory_format=memory)
    torch.testing.assert_close(y, expected)


def test_a_known_attention_costs_one_multiplication_and_one_division_an_update():
    layer, x = IKMConv2d(3, 2, 3, bias=False), torch.randn(2, 3, 9, 9)
    with torch.autograd.profiler.profile() as profile:
        y = layer(x, attention=1.5)
        y.backward(torch.ones_like(y))
    names = [event.name for event in profile.function_events]
    assert [names.count(f"aten::{name}") for name in ("mul", "div", "add", "sub")] == [1, 1, 0, 0]


def test_a_unit_whose_layers_differ_is_computed_as_written():
    unit = DenseUnit(Architecture(channels=8, growth=4, attention="none"), 3).double()
    convert(unit, ["convs.0", "convs.2"], strict=True)
    assert_the_same(unit, torch.randn(2, 8, 8, 8, dtype=torch.float64))


@pytest.mark.parametrize(("options", "constant"), [
    ({}, 1.5), ({"tau": -1}, 1.5), ({"transform": "softmax"}, 1.0), ({"transform": "residual"}, 1.0),
    ({"strict": True}, None), ({"tau": 0.1}, None), ({"tau": "mean"}, None)])
def test_attention_after_a_relu_is_known_only_where_it_is_constant(options, constant):
    layer, x = IKMConv2d(3, 2, 3, **options), torch.randn(2, 3, 9, 9).relu()
    assert fast.after_relu(layer) == ({"attention": constant} if constant else {})
    assert fast.after_relu(nn.Conv2d(3, 2, 3)) == {}
    if constant:
        torch.testing.assert_close(layer.attention(x), torch.full((2, 3, 3, 3), constant))


def test_a_nan_spreads_as_far_as_the_kernel_and_only_in_its_image():
    x = torch.randn(2, 3, 9, 9).relu()
    x[0, 1, 4, 4] = math.nan
    layer = IKMConv2d(3, 2, 3, padding=1)
    expected = torch.zeros(2, 2, 9, 9, dtype=torch.bool)
    expected[0, :, 3:6, 3:6] = True
    for form in (layer, as_written(layer)):
        for known in ({}, fast.after_relu(layer)):
            assert torch.equal(form(x, **known).isnan(), expected)


@pytest.mark.parametrize(("small", "of_input"), [(0, [(1, 1)] * 3), (64, [(1, 3)])])
def test_a_dense_unit_convolves_with_a_kernel_an_image_only_its_input(monkeypatch, small, of_input):
    """(images, groups) of the released form's convolutions: those of the unit's input are an image's own, an image at
    a time or a group an image; then come the features', one for all images, and the transition."""
    calls, plain = [], F.conv2d

    def recorded(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        calls.append((len(x), groups))
        return plain(x, weight, bias, stride, padding, dilation, groups)

    monkeypatch.setattr(fast, "SMALL", small)
    monkeypatch.setattr(F, "conv2d", recorded)
    DenseUnit(Architecture(channels=8, growth=4), 5)(torch.randn(3, 8, 8, 8))
    assert calls == of_input + [(3, 1)] * 4 + [(3, 1)]


@pytest.mark.parametrize("form", [lambda unit: unit, as_written])
def test_every_layer_of_a_dense_unit_is_asked_where_attention_is_replaced(form):
    """Also those whose attention is known beforehand: with 1 in its place the unit is the vanilla one."""
    unit, vanilla = (DenseUnit(Architecture(channels=8, growth=4, attention=a), 3).double() for a in ("ikm", "none"))
    vanilla.load_state_dict(unit.state_dict())
    unit, x, asked = form(unit), torch.randn(3, 8, 8, 8, dtype=torch.float64), []
    before = unit(x)
    with attending(unit, lambda layer, own: asked.append((layer, own())) or 1.0):
        torch.testing.assert_close(unit(x), vanilla(x))
    assert [layer for layer, _ in asked] == list(unit.convs)
    if unit.fast:
        assert [own for _, own in asked[1:]] == [1.5, 1.5]
    else:
        assert [own.shape for _, own in asked] == [(3, channels, 3, 3) for channels in (8, 12, 16)]
    assert torch.equal(unit(x), before)


def test_attention_of_one_image_is_replaced_in_both_forms():
    """As the controls at test time do. Of units with one layer, whose attention is that of the unit's input."""
    network = SRNetwork(replace(ARCHITECTURES["uhdb"], depths=(1, 1), channels=8, growth=4), 2).double()
    given, x = 1 + torch.rand(1, 8, 3, 3, dtype=torch.float64), torch.rand(1, 3, 6, 7, dtype=torch.float64)
    results = []
    for form in (network, as_written(network)):
        with attending(form, lambda layer, own: given):
            results.append(form(x))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-11)


@pytest.fixture
def cuda_graphs(monkeypatch):
    """Stands in for torch.cuda's streams and graphs, on a machine without them: what is called, in order. A capture
    fails at its end where `failing` is in the list."""
    calls = []

    class Graph:
        def replay(self):
            calls.append("replay")

    @contextlib.contextmanager
    def graph(graph, capture_error_mode):
        calls.append("capture")
        yield
        if "failing" in calls:
            raise RuntimeError("operation not permitted when stream is capturing")

    main = mock.MagicMock()
    for name, stub in {"Stream": mock.MagicMock, "CUDAGraph": Graph, "graph": graph,
                       "current_stream": lambda: main, "set_stream": lambda stream: calls.append(stream is main),
                       "stream": lambda stream: contextlib.nullcontext()}.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    return calls


def test_the_fourth_call_is_captured_and_later_ones_replay_it(cuda_graphs):
    captured = fast.Captured(lambda x: cuda_graphs.append("call") or 2 * x)
    found = [captured(torch.tensor([float(i)])) for i in range(6)]
    assert cuda_graphs == ["call"] * 3 + ["capture", "call"] + ["replay"] * 3
    assert [y.item() for y in found[:4]] == [0, 2, 4, 6]
    assert captured.input.item() == 5   # the graph computes from this tensor, in place of a new one


def test_where_capture_fails_a_warning_says_so_and_calls_stay_plain(cuda_graphs):
    captured = fast.Captured(lambda x: 2 * x)
    for i in range(3):
        captured(torch.tensor([float(i)]))
    cuda_graphs.append("failing")
    with pytest.warns(UserWarning, match="cannot be captured as a CUDA graph.*not permitted") as warned:
        found = [captured(torch.tensor([float(i)])).item() for i in range(3, 7)]
    assert found == [6, 8, 10, 12] and len(warned) == 1
    assert cuda_graphs == ["failing", "capture", True]   # tried once; the main stream is current again


@pytest.mark.parametrize("attention", ["none", "ikm"])
def test_hooks_of_every_convolution_are_called_and_pruned_networks_train(attention):
    """Counters and pruning work by hooks, which one convolution in place of several must not skip."""
    network = SRNetwork(replace(ARCHITECTURES["uhdb"], attention=attention), 2)
    convs, called = [module for module in network.modules() if isinstance(module, nn.Conv2d)], []
    handles = [conv.register_forward_hook(lambda module, *_: called.append(module)) for conv in convs]
    x = torch.rand(2, 3, 12, 12)
    network(x)
    assert sorted(map(id, called)) == sorted(map(id, convs))
    for handle in handles:
        handle.remove()
    for conv in convs:
        prune.l1_unstructured(conv, "weight", 0.2)
    optimiser = torch.optim.SGD(network.parameters(), 0.01)
    for _ in range(2):
        optimiser.zero_grad()
        network(x).square().mean().backward()
        optimiser.step()
    fast_one = network(x)
    for module in network.modules():
        module.fast = False
    torch.testing.assert_close(fast_one, network(x), rtol=0, atol=1e-5)


def test_an_unknown_gradient_rule_is_refused():
    with pytest.raises(ValueError, match="gradient rule"):
        fast.modulated_conv2d(torch.rand(2, 3, 8, 8), torch.rand(4, 3, 3, 3), 1.5, gradient="sgd")
