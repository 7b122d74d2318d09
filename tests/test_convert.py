"""IKM in networks that are not ours: what changes, what does not, and whether PyTorch's tools still work."""
import copy
import importlib.util
import itertools
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ikmlib.convert import convert, obstacle, revert
from ikmlib.layers import IKMConv2d
from ikmlib.networks import build_model

X = torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=2, dilation=2), nn.ReLU(), nn.BatchNorm2d(8),
                         nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, stride=2, bias=False), nn.Conv2d(8, 4, 1)),
                         nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 6, (1, 3)))


def test_default_converts_what_can_be_and_revert_undoes_it():
    net, plain = network(), network()
    torch.manual_seed(7)
    assert convert(net) == ("0", "3.0", "5")
    state = torch.random.get_rng_state()
    torch.manual_seed(7)
    assert torch.equal(torch.random.get_rng_state(), state)   # no random numbers drawn
    assert [type(m) is IKMConv2d for m in (net[0], net[3][0], net[3][1], net[4], net[5])] == [True, True, *[False] * 2,
                                                                                             True]
    assert net.state_dict().keys() == plain.state_dict().keys()
    assert not torch.allclose(net(X), plain(X))
    assert revert(net) == ("0", "3.0", "5")
    assert all(type(a) is type(b) for a, b in zip(net.modules(), network().modules(), strict=True))
    assert torch.equal(net(X), plain(X))
    assert not {"gradient", "tau", "strict", "transform"} & vars(net[0]).keys()


def test_converted_network_is_the_one_built_modulated():
    torch.manual_seed(0)
    built = build_model("db", attention="ikm")
    torch.manual_seed(0)
    converted = build_model("db", attention="none")
    assert len(convert(converted, "blocks.*")) == 30
    x = torch.rand(2, 3, 9, 8)
    assert torch.equal(built(x), converted(x))


def test_a_layer_stays_the_same_object():
    net, calls = network().to(torch.float64, memory_format=torch.channels_last), []
    conv = net[3][0]
    conv.weight.requires_grad_(False)
    conv.eval().register_forward_hook(lambda *_: calls.append(1))
    shared = nn.ModuleDict({"a": net, "b": conv})
    weight, strides = conv.weight, conv.weight.stride()
    assert convert(shared, "b") == ("a.3.0",)     # any of its names will do
    assert shared["b"] is shared["a"][3][0] is conv and conv.weight is weight and type(net[0]) is nn.Conv2d
    assert weight.stride() == strides and weight.dtype == torch.float64 and not weight.requires_grad
    assert not conv.training and net.training
    net(X.double())
    assert calls == [1]
    assert type(copy.deepcopy(net)[3][0]) is IKMConv2d


def test_where():
    assert convert(network(), ["3.*", "5"]) == ("3.0", "5")
    root = nn.Conv2d(3, 3, 3)
    assert convert(root, strict=True, tau="mean", gradient="go", transform="softmax") == ("",)
    assert "gradient=go, tau=mean, strict=True, softmax" in repr(root)


class OwnForward(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize(("layer", "reason"), [
    (nn.Conv2d(4, 4, 3, groups=4), "4 groups"), (nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), "'reflect'"),
    (nn.Conv2d(3, 3, 1), "1 x 1"), (nn.Conv2d(3, 3, 3, padding="same"), "'same', not a number"),
    (nn.Conv1d(3, 3, 3), "Conv1d"), (nn.ConvTranspose2d(3, 3, 3), "ConvTranspose2d"),
    (nn.LazyConv2d(3, 3), "LazyConv2d"), (OwnForward(3, 3, 3), "OwnForward"),
    (nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3)), "Parametrized"),
    (nn.ReLU(), "ReLU")])
def test_what_cannot_be_converted_is_left_alone_or_an_error_when_named(layer, reason):
    net, before = nn.Sequential(layer, nn.Conv2d(3, 3, 3)), type(layer)
    assert convert(net) == ("1",) and type(net[0]) is before
    assert reason in obstacle(layer)
    with pytest.raises(ValueError, match=f"'0' cannot be converted.*{reason}"):
        convert(net, "0")
    with pytest.raises(ValueError, match="cannot be converted: no layer can be"):
        convert(net[:1])


@pytest.mark.parametrize("where", ["0", "*"])
def test_a_second_convert_is_refused_whatever_its_options(where):
    net = network()
    convert(net, context="constant")
    for options in ({}, {"context": "constant"}):
        with pytest.raises(ValueError, match="already modulated: 0"):
            convert(net, where, **options)
    assert net[0].context == "constant"
    revert(net)
    convert(net, where)
    assert net[0].context == "own"


def test_a_second_convert_of_other_layers_is_fine():
    net = network()
    assert convert(net, "3.*", strict=True) + convert(net, ["0", "5"]) == ("3.0", "0", "5")
    assert [net[0].strict, net[3][0].strict, net[5].strict] == [False, True, False]
    with pytest.raises(ValueError, match="nothing to convert: no layer is named"):
        convert(network(), [])


def test_revert_refuses_parametrised_layers_and_says_what_to_do():
    net, plain = network(), network()
    convert(net)
    nn.utils.parametrizations.weight_norm(net[5])
    with pytest.raises(ValueError, match="'5' cannot be reverted: it is ParametrizedIKMConv2d.*remove_param"):
        revert(net)
    with pytest.raises(ValueError, match="already modulated: 5"):
        convert(net, "5")
    assert type(net[0]) is IKMConv2d   # nothing was changed
    nn.utils.parametrize.remove_parametrizations(net[5], "weight")
    assert revert(net) == ("0", "3.0", "5")
    torch.testing.assert_close(net(X), plain(X))


@pytest.mark.parametrize(("where", "options", "message"), [
    ("head", {}, "'head' cannot be converted: it is none of 0, 3.0, 5"), (["3.*", "4*"], {}, "4*"),
    ("*", {"tau": "mode"}, "mode"), ("*", {"transform": "tanh"}, "tanh")])
def test_mistakes_change_nothing(where, options, message):
    net = network()
    with pytest.raises(ValueError, match=message.replace("*", r"\*")):
        convert(net, where, **options)
    assert revert(net) == ()


# --- PyTorch's tools ------------------------------------------------------------------------------------------------


def small(gradient: str = "iso") -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 4, 3, padding=1, stride=2))
    convert(net, gradient=gradient)
    return net


def gradients(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    net(x).float().square().mean().backward()
    return [p.grad for p in net.parameters()]


@pytest.mark.parametrize("gradient", ["iso", "go", "autograd"])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_compiles_without_a_graph_break(gradient, memory):
    torch._dynamo.reset()
    x, net = X.contiguous(memory_format=memory), small(gradient).to(memory_format=memory)
    compiled = torch.compile(copy.deepcopy(net), backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(gradients(compiled, x), gradients(net, x), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-7)   # a bias's sum may run in another order


@pytest.mark.slow
def test_compiles_with_inductor():
    torch._dynamo.reset()
    try:
        ours = gradients(torch.compile(small(), fullgraph=True), X)
    except torch._inductor.exc.InductorError as error:
        pytest.skip(f"no compiler here: {error}")
    for a, b in zip(ours, gradients(small(), X), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("gradient", ["iso", "go"])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_exports_with_any_batch_height_and_width(gradient, memory):
    net, axes = small(gradient), dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    exported = torch.export.export(net, (X.contiguous(memory_format=memory),), dynamic_shapes=(axes,)).module()
    for shape in ((2, 3, 12, 10), (5, 3, 17, 11), (1, 3, 5, 4), (3, 3, 40, 50)):
        x = torch.randn(shape).contiguous(memory_format=memory)
        torch.testing.assert_close(exported(x), net(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gradient", ["iso", "go", "autograd"])
@pytest.mark.parametrize("size", [8, 40])   # both branches of `fast`
def test_a_gradient_penalty_is_that_of_the_literal_form(gradient, size):
    def learnt(fast):
        net = small(gradient).double()
        net[2].weight.requires_grad_(False)
        for module in net.modules():
            module.fast = fast
        x = torch.randn(3, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        slope, = torch.autograd.grad(net(x.requires_grad_()).square().sum(), x, create_graph=True)
        (slope.flatten(1).norm(dim=1) - 1).square().mean().backward()
        return [x.grad, net[0].weight.grad, net[0].bias.grad, net[2].bias.grad]

    torch.testing.assert_close(learnt(fast=True), learnt(fast=False), rtol=1e-9, atol=1e-10)


@pytest.mark.skipif(not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))), reason="needs onnx, onnxscript")
def test_onnx_gives_the_same_values(tmp_path):
    from onnx.reference import ReferenceEvaluator

    torch.onnx.export(small().eval(), (X,), tmp_path / "net.onnx", input_names=["x"], verbose=False)
    y, = ReferenceEvaluator(str(tmp_path / "net.onnx")).run(None, {"x": X.numpy()})
    assert torch.allclose(torch.from_numpy(y), small()(X), atol=1e-5)


@pytest.mark.parametrize("gradient", ["iso", "go", "autograd"])
def test_autocast_gives_its_type_and_close_gradients(gradient):
    net = small(gradient)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(X).dtype == torch.bfloat16 == nn.Conv2d(3, 1, 3)(X).dtype
        ours = gradients(net, X)
    for a, b in zip(ours, gradients(small(gradient), X), strict=True):
        assert a.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.999


def test_channels_last_stays():
    y = small().to(memory_format=torch.channels_last)(X.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(y, small()(X), atol=1e-6)


def _process(rank: int, folder: Path, images: torch.Tensor) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    parallel, mine = nn.parallel.DistributedDataParallel, images[2 * rank:2 * rank + 2]
    torch.save({rule: gradients(parallel(small(rule)), mine) for rule in ("iso", "autograd")}, folder / f"{rank}.pt")
    dist.barrier()
    os._exit(0)   # gloo's threads may abort a process that tears them down while its peer is still there


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one_with_the_whole_batch(tmp_path):
    """IsO's of modulated kernels are twice as large (its mean is over a process's images), all others are equal."""
    images = torch.randn(4, 3, 12, 10)
    torch.multiprocessing.spawn(_process, (tmp_path, images), nprocs=2)
    for rank, rule in itertools.product(range(2), ("iso", "autograd")):
        theirs = torch.load(tmp_path / f"{rank}.pt")[rule]
        for ours, whole in zip(theirs, gradients(small(rule), images), strict=True):
            factor = 2 if rule == "iso" and whole.dim() == 4 else 1     # biases are never modulated
            assert torch.allclose(ours, factor * whole, rtol=1e-4, atol=1e-7), (rank, rule)
