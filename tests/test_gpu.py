"""The GPU computes what the CPU does, and a captured training is the plain one. Skipped where there is no GPU."""
import time
from dataclasses import replace

import pytest
import torch
from conftest import tiny
from test_trainers import IMAGES, TINY, state

from ikmlib.data import PatchSampler
from ikmlib.fast import Captured, modulated_conv2d
from ikmlib.layers import GRADIENTS, contextual_attention, pooled_mask
from ikmlib.models import ARCHITECTURES, DenseUnit, SRNetwork
from ikmlib.peers import OnLuma, build_peer
from ikmlib.study import records
from ikmlib.trainers import Trainer, evaluate, mae, mae_y

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
UHDB = ARCHITECTURES["uhdb"]
REAL = {"ca": replace(UHDB, attention="ca"), "sa": replace(UHDB, attention="sa"), "ikm": UHDB,
        "strict": replace(UHDB, strict=True), "median": replace(UHDB, tau="median"),
        "shuffled": replace(UHDB, context="shuffled"), "go": replace(UHDB, gradient="go"),
        "rb": ARCHITECTURES["rb"], "rdb": ARCHITECTURES["rdb"], "lapsrn": "lapsrn", "idn": "idn", "imdn": "imdn"}


def network(which):
    torch.manual_seed(0)
    return build_peer(which, 2) if isinstance(which, str) else SRNetwork(which, 2)


def trainer(path, updates=12, which=TINY, batch=2, device="cuda", seed=0):
    model = network(which).to(device)
    return Trainer(model, PatchSampler(IMAGES, 2, 8, device=device), key="run", seed=seed, updates=updates, batch=batch,
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


@pytest.mark.parametrize("tau", [0.0, "mean", "median"])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_pooling_is_the_cpus(tau, memory):
    x = torch.randn(3, 5, 32, 47).contiguous(memory_format=memory)
    torch.testing.assert_close(pooled_mask(x.cuda(), 3, tau=tau).cpu(), pooled_mask(x, 3, tau=tau))


@pytest.mark.parametrize("which", REAL)
def test_real_networks_and_their_gradients_are_the_cpus(which):
    """A batch of 16, channels last, in float64, in which TF32 has no part."""
    x = torch.rand(16, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def on(device):
        model = network(REAL[which]).double().to(device, memory_format=torch.channels_last)
        y = model(x.to(device).contiguous(memory_format=torch.channels_last))
        y.square().mean().backward()
        return [y.detach().cpu(), *(p.grad.cpu() for p in model.parameters() if p.grad is not None)]

    for gpu, cpu in zip(on("cuda"), on("cpu"), strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("which", REAL)
def test_real_networks_learn_in_captured_updates_as_on_the_cpu(tmp_path, recwarn, which):
    gpu, cpu = (trainer(tmp_path / f"{device}.pt", 6, REAL[which], batch=16, device=device)
                for device in ("cuda", "cpu"))
    assert gpu.fit(show=False) and cpu.fit(show=False)
    assert gpu._update.graph is not None and not recwarn
    assert gpu.progress.smoothed == pytest.approx(cpu.progress.smoothed, rel=0.01)   # convolutions may be in TF32


@pytest.mark.parametrize("which", [TINY, "srcnn", "carn"])
def test_captured_updates_are_the_plain_ones(tmp_path, recwarn, which):
    captured, plain = (trainer(tmp_path / f"{name}.pt", which=which) for name in ("captured", "plain"))
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


def test_a_function_that_cannot_be_captured_stays_plain():
    x, waits = torch.ones(3, device="cuda"), Captured(lambda x: x * x.sum().item())   # it waits for the device
    with pytest.warns(UserWarning, match="cannot be captured as a CUDA graph"):
        found = [waits(x).tolist() for _ in range(6)]
    assert found == [[3.0] * 3] * 6 and waits.graph is None
    captured = Captured(lambda x: x + 1)   # and later ones can be
    assert [captured(x).tolist() for _ in range(6)] == [[2.0] * 3] * 6 and captured.graph is not None


def test_two_captures_in_a_process_do_not_disturb_each_other(tmp_path):
    alone = [trainer(tmp_path / f"alone{seed}.pt", 8, seed=seed) for seed in (0, 1)]
    for each in alone:
        assert each.fit(show=False)
    beside = [trainer(tmp_path / f"beside{seed}.pt", 8, seed=seed) for seed in (0, 1)]
    for _ in range(8):
        for each in beside:
            each._advance()
    for a, b in zip(alone, beside, strict=True):
        assert b._update.graph is not None
        for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True):
            torch.testing.assert_close(p, q)


def test_a_checkpoint_goes_from_gpu_to_cpu_and_back(tmp_path):
    path, weights = tmp_path / "run.pt", None
    for done, device in enumerate(("cuda", "cpu", "cuda")):
        part = trainer(path, 15, device=device)
        assert part.progress.update == 5 * done
        now = [p.detach().cpu() for p in part.model.parameters()]
        assert weights is None or all(torch.equal(a, b) for a, b in zip(now, weights, strict=True))
        for _ in range(5):
            part._advance()
        part._check()
        part.save()
        weights = [p.detach().cpu().clone() for p in part.model.parameters()]
    assert part.progress.update == 15 and part.fit(show=False)
    assert trainer(tmp_path / "cpu.pt", 15, device="cpu").fit(show=False)
    on_cpu = torch.load(tmp_path / "cpu.pt", weights_only=True)["progress"]["smoothed"]
    assert part.progress.smoothed == pytest.approx(on_cpu, rel=0.01)


def test_a_run_trained_and_scored_on_the_gpu_scores_the_same_on_the_cpu(results):
    run = tiny(updates=20)
    assert records.train(run, show=False)
    model = run.build()
    model.load_state_dict(torch.load(run.folder / "weights.pt", weights_only=True, map_location="cpu")["model"])
    of_gpu = run.scores().set_index("image")
    (images,) = records.scored_images(records.config.get_profile(run.profile)).values()
    of_cpu = evaluate(model, images, run.scale).set_index("image")
    assert (of_gpu.psnr_y - of_cpu.psnr_y).abs().max() < 0.01 and len(of_gpu) == len(of_cpu) > 0
