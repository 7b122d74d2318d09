"""Training: stopped and continued equals uninterrupted, bit for bit; bad losses and bad checkpoints stop it clearly."""
import gc
import os
import signal
import subprocess
import sys
import time
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from ikmlib import files, trainers
from ikmlib.data import PatchSampler, crop_to_multiple, imresize
from ikmlib.metrics import psnr_y, ssim_y
from ikmlib.models import Architecture, SRNetwork
from ikmlib.peers import build_peer
from ikmlib.trainers import (
    Trainer,
    TrainingDiverged,
    evaluate,
    learning_rate,
    mae,
    mae_y,
    mean_psnr,
    pairs,
    super_resolve,
)

TINY = Architecture(blocks=1, depths=(1, 1), channels=8, growth=4)
WAVES = [np.sin(np.add.outer(np.arange(40) / (3 + i), np.arange(44) / (5 - i))) for i in range(3)]
IMAGES = {str(i): np.stack([128 + 100 * wave, 90 + 60 * wave, 160 - 80 * wave], -1).astype(np.uint8)
          for i, wave in enumerate(WAVES)}


def trainer(path, *, updates=12, seed=0, validate=lambda model: 1.0, key="run", rate=2e-4,
            schedule="halving", peer=""):
    torch.manual_seed(seed)
    model, loss = (build_peer(peer, 2), mae_y) if peer else (SRNetwork(TINY, 2), mae)
    return Trainer(model, PatchSampler(IMAGES, 2, 8), key=key, seed=seed, updates=updates, batch=2, checkpoint=path,
                   validate=validate, validations=3, rate=rate, schedule=schedule, loss=loss)


def state(path):
    saved = torch.load(path, weights_only=True)
    for point in saved["progress"]["curve"]:
        del point["seconds"]
    return saved["model"], saved["optimizer"]["state"], saved["progress"]["curve"], saved["progress"]["smoothed"]


def assert_same_bits(a, b):
    (model_a, adam_a, *rest_a), (model_b, adam_b, *rest_b) = a, b
    assert rest_a == rest_b
    assert all(torch.equal(model_a[key], model_b[key]) for key in model_a)
    assert all(torch.equal(adam_a[i][key], adam_b[i][key]) for i in adam_a for key in adam_a[i])


@pytest.mark.parametrize("schedule", trainers.SCHEDULES)
def test_time_limit_then_continued_equals_uninterrupted(tmp_path, schedule):
    assert trainer(tmp_path / "whole.pt", schedule=schedule).fit(show=False)
    for _ in range(30):   # a deadline that passes during the first update, again and again
        part = trainer(tmp_path / "parts.pt", schedule=schedule)
        if part.fit(show=False, deadline=time.monotonic() + 1e-3):
            break
    assert part.progress.update == 12
    assert_same_bits(state(tmp_path / "whole.pt"), state(tmp_path / "parts.pt"))


@pytest.mark.parametrize("peer", ["srcnn", "carn"])   # CARN has weights that are frozen, and unused ones
def test_a_peer_that_continues_equals_an_uninterrupted_one(tmp_path, peer):
    torch.set_num_threads(1)
    assert trainer(tmp_path / "whole.pt", updates=3, peer=peer).fit(show=False)
    first = trainer(tmp_path / "parts.pt", updates=3, peer=peer)
    first._advance()
    first.save()
    second = trainer(tmp_path / "parts.pt", updates=3, peer=peer)
    assert second.progress.update == 1 and second.fit(show=False)
    assert_same_bits(state(tmp_path / "whole.pt"), state(tmp_path / "parts.pt"))


def test_a_checkpoint_brings_adams_state_and_leaves_this_devices_options(tmp_path):
    first = trainer(tmp_path / "run.pt")
    first.step()
    first.save()
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    saved["optimizer"]["param_groups"][0].update(capturable=True, fused=True, lr=torch.tensor(1.0))
    torch.save(saved, tmp_path / "run.pt")
    second = trainer(tmp_path / "run.pt")
    assert second.optimizer.param_groups[0] | {"params": 0, "lr": 0} == first.optimizer.param_groups[0] | {
        "params": 0, "lr": 0}
    assert second.optimizer.state_dict()["state"].keys() == saved["optimizer"]["state"].keys() != set()


def test_a_trainer_frees_its_model_with_itself(tmp_path):
    one = trainer(tmp_path / "run.pt")
    one.step()
    model = weakref.ref(one.model)
    gc.disable()
    try:
        del one
        assert model() is None
    finally:
        gc.enable()


CHILD = """
import sys, time, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import test_trainers as t
from pathlib import Path
from ikmlib import trainers
trainers.SAVE_EVERY = 0.0   # a checkpoint after every update
run = t.trainer(Path(sys.argv[2]), updates=40)
step = run.step
def slow():
    print("update", run.progress.update, flush=True)
    time.sleep(0.02)
    return step()
run.step = slow
run.fit(show=False)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_then_continued_equals_uninterrupted(tmp_path, number):
    torch.set_num_threads(1)
    command = [sys.executable, "-c", CHILD, os.path.dirname(__file__), str(tmp_path / "killed.pt")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "update 7" not in child.stdout.readline():
        pass
    child.send_signal(number)
    child.communicate(timeout=60)
    assert child.returncode != 0
    continued = trainer(tmp_path / "killed.pt", updates=40)
    assert 7 <= continued.progress.update < 40
    assert continued.fit(show=False)
    assert trainer(tmp_path / "whole.pt", updates=40).fit(show=False)
    assert_same_bits(state(tmp_path / "whole.pt"), state(tmp_path / "killed.pt"))


def test_training_learns_and_draws_its_curve(tmp_path):
    run = trainer(tmp_path / "run.pt", updates=60, rate=2e-3, validate=lambda model: 42.0)
    assert run.fit(show=False)
    curve = pd.DataFrame(run.progress.curve)
    assert list(curve["update"]) == [20, 40, 60] and (curve.psnr_y == 42).all()
    assert curve.loss.iloc[-1] < 0.7 * curve.loss.iloc[0]


def test_losses_by_hand():
    std = torch.tensor([0.2, 0.3, 0.1]).reshape(3, 1, 1)
    hr, error = torch.rand(1, 3, 1, 2), torch.tensor([[0.1, 0.0, 0.0], [0.0, -0.2, 0.3]]).T.reshape(1, 3, 1, 2)
    unit = 65.481 * 0.2 + 128.553 * 0.3 + 24.966 * 0.1
    luma = (65.481 * 0.1 + abs(128.553 * -0.2 + 24.966 * 0.3)) / 2 / unit
    assert mae(hr + error, hr, std).item() == pytest.approx((0.1 / 0.2 + 0.2 / 0.3 + 0.3 / 0.1) / 6, rel=1e-5)
    assert mae_y(hr + error, hr, std).item() == pytest.approx(luma, rel=1e-5)
    assert mae(hr + std, hr, std).item() == pytest.approx(1) == mae_y(hr + std, hr, std).item()


def test_learning_rate_halves_by_thirds():
    rates = [learning_rate(2e-4, u, 300) for u in (0, 99, 100, 199, 200, 299)]
    assert rates == [2e-4, 2e-4, 1e-4, 1e-4, 5e-5, 5e-5]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e4])
def test_bad_loss_stops_the_run_and_keeps_the_last_good_state(tmp_path, bad, monkeypatch):
    monkeypatch.setattr(trainers, "SAVE_EVERY", 0.0)
    run = trainer(tmp_path / "run.pt")
    step = run.step
    run.step = lambda: step() if run.progress.update < 5 else torch.tensor(bad)
    with pytest.raises(TrainingDiverged, match="near update 6"):
        run.fit(show=False)
    good = trainer(tmp_path / "run.pt")
    assert good.progress.update == 5 and all(torch.isfinite(p).all() for p in good.model.parameters())


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    run = trainer(tmp_path / "run.pt")
    run.save()
    with torch.no_grad():
        next(run.model.parameters()).fill_(float("nan"))
    run.save()
    assert torch.isfinite(trainer(tmp_path / "run.pt").model.head.weight).all()


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "lacking", "other"])
def test_unreadable_checkpoint_is_named(tmp_path, damage):
    path = tmp_path / "run.pt"
    trainer(path).save()
    if damage == "other":
        with pytest.raises(ValueError, match="belongs to run run, not to another.*delete it"):
            trainer(path, key="another")
        return
    if damage == "lacking":
        files.save_torch({"key": "run"}, path)
        with pytest.raises(ValueError, match="run.pt is damaged or of another kind .*model"):
            trainer(path)
        return
    data = bytearray(path.read_bytes()[:{"empty": 0, "truncated": 500}.get(damage)])
    if damage == "flipped":   # a bit of a weight, which torch would load
        data[data.index(trainer(path).model.head.bias.detach().numpy().tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="run.pt.*delete it"):
        trainer(path)


class Bicubic(nn.Module):
    """A network that upsamples by MATLAB's bicubic: evaluate's scores have known answers."""

    def __init__(self, scale):
        super().__init__()
        self.scale, self.unused = scale, nn.Parameter(torch.zeros(1))

    def forward(self, x):
        assert not self.training
        image = (x[0].permute(1, 2, 0) * 255).round().byte().numpy()
        return torch.from_numpy(imresize(image, self.scale)).permute(2, 0, 1)[None].float() / 255


def test_evaluate_against_a_loop_written_out():
    grey = np.random.default_rng(9).integers(0, 256, (31, 37, 1), dtype=np.uint8)
    images = {**IMAGES, "grey": grey}
    model = Bicubic(3).train()
    found = evaluate(model, images, 3)
    assert model.training and list(found.columns) == ["image", "psnr_y", "ssim_y"]
    for row, (name, image) in zip(found.itertuples(), images.items(), strict=True):
        hr = crop_to_multiple(np.repeat(image, 3, 2) if image.shape[2] == 1 else image, 3)
        sr = imresize(imresize(hr, 1 / 3), 3)
        assert row.image == name
        assert row.psnr_y == psnr_y(sr, hr, shave=3)
        assert row.ssim_y == ssim_y(sr, hr, shave=3)


def test_restored_clips_and_rounds():
    class Loud(Bicubic):
        def forward(self, x):
            return super().forward(x) * 3 - 1

    for _, lr, hr in pairs(IMAGES, 2):
        expected = np.clip(imresize(imresize(hr, 1 / 2), 2).astype(int) * 3 - 255, 0, 255)
        np.testing.assert_array_equal(super_resolve(Loud(2), lr), expected)


class Plain(nn.Module):
    """A network without parameters: `change` of the image enlarged by 2."""

    def __init__(self, change=lambda y: y):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(nn.functional.interpolate(x, scale_factor=2, mode="bicubic"))


def test_networks_of_0_to_255_are_refused_and_those_of_0_to_1_are_not():
    def nearly(y):   # as trained networks are: a tenth of a level off, 28 levels in what is divided by 255
        return y + 1e-3 * (0.43 - y.mean())

    for change in (lambda y: y, nearly, lambda y: y / 2, lambda y: y + 0.2 * y.mean()):
        evaluate(Plain(change), IMAGES, 2)
    with pytest.raises(ValueError, match=r"is 28 levels off, but right if colours are 0\.\.255"):
        evaluate(Plain(lambda y: 255 * nearly(y / 255)), IMAGES, 2)


@pytest.mark.parametrize(("network", "why"), [
    (Plain(lambda y: y * torch.nan), "not finite"), (Plain(lambda y: y / 0), "not finite"),
    (Plain(lambda y: [y]), "returned a list, not one tensor"),
    (Plain(lambda y: y[:, :1]), r"returned \(1, 1, 96, 96\) for \(1, 3, 48, 48\), not \(1, 3, 96, 96\)"),
    (nn.Upsample(scale_factor=3), r"returned \(1, 3, 144, 144\) .*: x2 of RGB"), (nn.Flatten(), "x2 of RGB"),
    (nn.Conv2d(1, 4, 3), r"does not take RGB \(1, 3, 48, 48\)")])
def test_networks_of_another_kind_are_refused_by_name(network, why):
    with pytest.raises(ValueError, match=why):
        evaluate(network, IMAGES, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_any_precision_work(dtype):
    torch.manual_seed(0)
    network, image = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2)), next(iter(IMAGES.values()))
    exact = super_resolve(network, image).astype(int)
    assert abs(super_resolve(network.to(dtype), image) - exact).max() <= (0 if dtype == torch.float64 else 2)


def test_every_module_keeps_its_mode_and_runs_in_evaluation():
    network = nn.Sequential(nn.Dropout(0.9), nn.Upsample(scale_factor=2), nn.Dropout(0.9)).train()
    network[2].eval()
    image = next(iter(IMAGES.values()))
    assert np.array_equal(super_resolve(network, image)[::2, ::2], image)   # nothing is dropped
    assert [module.training for module in network.modules()] == [True, True, True, False]


@pytest.mark.parametrize(("shape", "dtype"), [((8, 8), "uint8"), ((8, 8, 4), "uint8"), ((3, 8, 8), "uint8"),
                                              ((8, 8, 3), "uint16"), ((8, 8, 3), "float64")])
def test_images_of_another_kind_are_refused_by_name(shape, dtype):
    image = np.zeros(shape, dtype)
    with pytest.raises(ValueError, match=r"image a is .*; allowed: uint8 \(H, W, 3\) and \(H, W, 1\)"):
        evaluate(Plain(), {"a": image}, 2)
    with pytest.raises(ValueError, match=r"a network takes an image uint8 \(h, w, 3\), not"):
        super_resolve(Plain(), image)


def test_validation_of_a_network_that_returns_nan_is_a_divergence():
    with pytest.raises(TrainingDiverged, match="not finite"):
        mean_psnr(Plain(lambda y: y * torch.nan), pairs(IMAGES, 2), 2)


def test_cosine_warms_up_and_falls_to_zero():
    rates = [learning_rate(1e-3, u, 4000, "cosine") for u in range(4000)]
    assert rates[0] == pytest.approx(1e-3 / 200) and rates[199] == pytest.approx(1e-3) == rates[200] == max(rates)
    assert np.allclose(np.diff(rates[:200]), 1e-3 / 200)
    assert rates[2100] == pytest.approx(0.5e-3) and 0 < rates[-1] < 1e-9
    assert (np.diff(rates[200:]) < 0).all()


def test_an_unknown_schedule_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown schedule 'step'; allowed: halving, cosine"):
        learning_rate(1e-3, 0, 10, "step")
