"""The GPU computes what the CPU does, and a captured training is the plain one. Skipped where there is no GPU."""
import time
from dataclasses import replace

import pytest
import torch
from test_trainers import IMAGES, TINY, state

from ikmlib.data import PatchSampler
from ikmlib.fast import modulated_conv2d
from ikmlib.layers import GRADIENTS, contextual_attention
from ikmlib.models import DenseUnit, SRNetwork
from ikmlib.peers import OnLuma, build_peer
from ikmlib.trainers import Trainer, mae, mae_y

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def trainer(path, updates=12, peer=""):
    torch.manual_seed(0)
    model = build_peer(peer, 2) if peer else SRNetwork(TINY, 2)
    return Trainer(model.cuda(), PatchSampler(IMAGES, 2, 8, device="cuda"), key="run", seed=0, updates=updates, batch=2,
                   checkpoint=path, validate=lambda model: 1.0, validations=3,
                   loss=mae_y if isinstance(model, OnLuma) else mae)


@pytest.mark.parametrize("rule", GRADIENTS)
@pytest.mark.parametrize("batch", [1, 5])
def test_modulated_convolution_and_its_gradients_equal_the_cpus(rule, batch):
    def on(device):
        torch.manual_seed(0)
        x = torch.randn(batch, 6, 11, 13, dtype=torch.float64).to(device).requires_grad_()
        weight = torch.randn(4, 6, 3, 3, dtype=torch.float64).to(device).requires_grad_()
        y = modulated_conv2d(x, weight, contextual_attention(x, 3), padding=1, gradient=rule)
        return y, *torch.autograd.grad(y.square().sum(), (x, weight))

    for gpu, cpu in zip(on("cuda"), on("cpu"), strict=True):
        torch.testing.assert_close(gpu.cpu(), cpu)


def test_a_dense_unit_learns_where_attention_after_relu_is_no_constant():
    unit = DenseUnit(replace(TINY, strict=True), 2).cuda()
    unit(torch.randn(3, TINY.channels, 8, 8, device="cuda", requires_grad=True)).square().sum().backward()
    assert all(conv.weight.grad.abs().sum() > 0 for conv in unit.convs)


def test_patches_are_the_cpus():
    gpu, cpu = (PatchSampler(IMAGES, 2, 8, device=device).batch(3, 7, 4) for device in ("cuda", "cpu"))
    assert all(torch.equal(a.cpu(), b) for a, b in zip(gpu, cpu, strict=True))


@pytest.mark.parametrize("peer", ["", "srcnn", "carn"])
def test_captured_updates_are_the_plain_ones(tmp_path, recwarn, peer):
    captured, plain = (trainer(tmp_path / f"{name}.pt", peer=peer) for name in ("captured", "plain"))
    plain._update = plain._update.function
    assert captured.fit(show=False) and plain.fit(show=False)
    assert captured._update.graph is not None and not recwarn
    for a, b in zip(captured.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert captured.progress.smoothed == pytest.approx(plain.progress.smoothed, rel=1e-4)


def test_stopped_and_continued_equals_uninterrupted(tmp_path):
    assert trainer(tmp_path / "whole.pt").fit(show=False)
    for _ in range(30):
        if trainer(tmp_path / "parts.pt").fit(show=False, deadline=time.monotonic() + 0.02):
            break
    (whole, *_), (parts, *_) = state(tmp_path / "whole.pt"), state(tmp_path / "parts.pt")
    assert all(torch.allclose(whole[name], parts[name], atol=1e-5) for name in whole)   # a GPU's sums have no order
