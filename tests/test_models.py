"""Cost exactly the paper's, and forward passes against the equations of the paper."""
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ikmlib.models import (
    ARCHITECTURES,
    Architecture,
    DenseUnit,
    ResidualBlocks,
    ResidualDenseBlock,
    SRNetwork,
    UHourglassDenseBlock,
    complexity,
)
from ikmlib.networks import build_model

UHDN = ARCHITECTURES["uhdn"]


@pytest.mark.parametrize(("name", "scale", "attention", "params_k", "flops_g"), [
    ("uhdn", 2, "ikm", 1390.9, 60.3), ("uhdn", 3, "ikm", 1402.4, 27.2), ("uhdn", 4, "ikm", 1400.1, 15.7),
    ("uhdn_l", 2, "ikm", 10903.4, 471.5),
    ("rb", 2, "none", 362.1, 15.8), ("rb", 2, "ca", 362.1 + 19.4, 15.8), ("rb", 2, "sa", 362.1 + 9.62, 15.8 + 0.42),
    ("db", 2, "none", 382.3, 16.7), ("db", 2, "ca", 382.3 + 2.61, 16.7), ("db", 2, "sa", 382.3 + 1.29, 16.7 + 0.06),
    ("rdb", 2, "none", 411.0, 18.0), ("rdb", 2, "ca", 411.0 + 2.61, 18.0), ("rdb", 2, "sa", 411.0 + 1.29, 18.0 + 0.06),
    ("uhdb", 2, "none", 384.9, 16.9), ("uhdb", 2, "ca", 384.9 + 2.61, 16.9),
    ("uhdb", 2, "sa", 384.9 + 1.29, 16.9 + 0.06),
])
def test_cost_is_the_papers(name, scale, attention, params_k, flops_g):
    params, multi_adds = complexity(build_model(name, scale=scale, attention=attention), scale)
    assert params / 1e3 == pytest.approx(params_k, abs=0.1)
    assert multi_adds / 1e9 == pytest.approx(flops_g, abs=0.06)
    if attention == "none":   # IKM adds nothing
        assert complexity(build_model(name, scale=scale), scale) == (params, multi_adds)


@pytest.mark.parametrize(("arch", "params", "flops_g"), [
    (UHDN, 1_390_915, 60.3),
    (replace(UHDN, depths=(4, 5, 6, 6, 5, 4)), 1_390_915, 60.3),                 # Fig. 11 V1
    (replace(UHDN, depths=(4, 4, 4, 5, 6, 7)), 1_401_283, 60.8),                 # V2
    (replace(UHDN, depths=(7, 6, 5, 4, 4, 4)), 1_401_283, 60.8),                 # V3
    (replace(UHDN, depths=(5,) * 6), 1_380_547, 59.9),                           # Table V; printed as 1380.3 and 60.0
    (replace(UHDN, kernel=5), 3_436_867, None),                                  # Table IV; printed as 3436.7
])
def test_exact_cost_of_variants(arch, params, flops_g):
    found, multi_adds = complexity(SRNetwork(arch, 2), 2)
    assert found == params and (flops_g is None or round(multi_adds / 1e9, 1) == flops_g)


@pytest.mark.parametrize("name", ["rb", "db", "rdb", "uhdb"])
@pytest.mark.parametrize("attention", ["none", "ca", "sa", "ikm"])
def test_output_size_and_every_parameter_learns(name, attention):
    model = build_model(name, scale=2, attention=attention)
    y = model(torch.rand(2, 3, 7, 10))
    assert y.shape == (2, 3, 14, 20)
    y.square().mean().backward()
    for key, p in model.named_parameters():   # the 3 hidden units of CA and SA may all be off at first
        assert p.grad is not None and (p.grad.abs().sum() > 0 or ".attentions." in key), key


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_upscaler_sizes(scale):
    model = SRNetwork(replace(ARCHITECTURES["uhdb"], depths=(1,)), scale)
    assert model(torch.rand(1, 3, 5, 6)).shape == (1, 3, 5 * scale, 6 * scale)


def test_u_hourglass_block_is_equation_19():
    block = UHourglassDenseBlock(Architecture(depths=(2, 1, 1, 1, 1, 2), channels=8, growth=4)).double()
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    f1, f2, f3, f4, f5, f6 = block.units
    x1 = f1(x)
    x2 = f2(x1)
    x3 = f3(x2)
    x4 = f4(x3) + x2
    x5 = f5(x4) + x1
    torch.testing.assert_close(block(x), f6(x5) + x)


@pytest.mark.parametrize("attention", ["ikm", "sa"])
def test_dense_unit_is_equations_16_and_17(attention):
    unit = DenseUnit(Architecture(channels=8, growth=4, attention=attention), 2).double()
    (conv1, conv2), (attention1, attention2) = unit.convs, unit.attentions
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    x1 = F.relu(attention1(conv1(x)))
    x2 = F.relu(attention2(conv2(torch.cat([x, x1], 1))))
    torch.testing.assert_close(unit(x), unit.transition(torch.cat([x, x1, x2], 1)))


@pytest.mark.parametrize("strict", [False, True])
def test_residual_blocks_are_conv_relu_conv_and_skip(strict):
    block = ResidualBlocks(Architecture("rb", depths=(2, 2), channels=8, strict=strict)).double()
    x = expected = torch.randn(2, 8, 8, 9, dtype=torch.float64)
    for first, second in block.convs:
        expected = expected + second(F.relu(first(expected)))
    torch.testing.assert_close(block(x), expected)


def test_residual_dense_block_fuses_its_input_and_all_units():
    block = ResidualDenseBlock(Architecture("rdb", depths=(1, 2), channels=8, growth=4)).double()
    x = torch.randn(2, 8, 8, 9, dtype=torch.float64)
    x1 = block.units[0](x) + x
    x2 = block.units[1](x1) + x1
    torch.testing.assert_close(block(x), block.fusion(torch.cat([x, x1, x2], 1)))


def test_vanilla_and_ikm_networks_share_keys_and_initial_weights():
    def of(attention):
        torch.manual_seed(3)
        return build_model("uhdb", attention=attention).state_dict()

    vanilla, modulated = of("none"), of("ikm")
    assert list(vanilla) == list(modulated) and all(torch.equal(vanilla[key], modulated[key]) for key in vanilla)


@pytest.mark.parametrize(("call", "named"), [
    (lambda: build_model("unet"), "'unet'; allowed: uhdn, .* csfm"), (lambda: build_model("uhdn", scale=5), "5"),
    (lambda: build_model("uhdn", attention="cbam"), "cbam"), (lambda: Architecture(kernel=4), "4"),
    (lambda: build_model("idn", attention="none"), "idn has no attention 'none'"),
    (lambda: SRNetwork(replace(UHDN, block="resnet"), 2), "resnet")])
def test_unknown_choices_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


@pytest.mark.parametrize(("field", "value", "allowed"), [
    ("block", "resnet", "rb, db, rdb, uhdb"), ("attention", "cbam", "none, ca, sa, ikm"),
    ("gradient", "sgd", "iso, go, autograd"), ("transform", "sofmax", "sigmoid, softmax, residual"),
    ("context", "swapped", "own, constant, shuffled"), ("tau", "mode", "a finite number, mean, median"),
    ("tau", float("nan"), "a finite number"), ("tau", None, "a finite number"), ("strict", "no", "False, True"),
    ("strict", 1, "False, True"), ("blocks", 0, "at least 1"), ("channels", 64.0, "whole number"),
    ("channels", 6, "multiple of 4"), ("growth", "12", "whole number"),
    ("kernel", 4, "odd"), ("dilation", 0, "at least 1"), ("depths", (), "tuple"), ("depths", [6, 5], "tuple"),
    ("depths", (6, 0), "at least 1"), ("gain", float("inf"), "finite number"), ("gain", "1.5", "finite number")])
@pytest.mark.parametrize("attention", ["ikm", "none"])
def test_every_field_of_an_architecture_is_checked(field, value, allowed, attention):
    with pytest.raises(ValueError) as error:
        Architecture(**{"attention": attention, field: value})
    assert field in str(error.value) and allowed in str(error.value)
    assert str(0 if value == (6, 0) else value) in str(error.value)


def test_feature_attention_needs_a_growth_that_it_can_divide():
    with pytest.raises(ValueError, match="growth must be at least 4, as ca keeps a quarter of it, not 3"):
        Architecture(attention="ca", growth=3)
