"""Notebook 15: the authors' networks rebuilt, their files verified, their names mapped, attention by dose."""
import io
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pooch
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, Kept, code, definitions

from ikmlib import config
from ikmlib.layers import attending
from ikmlib.models import Architecture, SRNetwork
from ikmlib.study import notebook
from ikmlib.study.scoring import attention_of
from ikmlib.trainers import pairs, super_resolve

NOTEBOOK = config.ROOT / "notebooks" / "15_authors_weights.ipynb"
book = definitions("15")


def theirs(name):
    """The authors' name of a tensor of ours, by hand."""
    part, *rest = name.split(".")
    if part == "blocks":
        block, _, unit, kind, *rest = rest
        layer = f"body.{rest.pop(0)}.layer" if kind == "convs" else "gate"
        return ".".join(["body", block, "body", unit, layer, "0", "Conv2d", *rest])
    return ".".join([{"head": "input", "fuse": "body.4", "upscale": "tail.0", "tail": "tail.1"}[part], *rest])


def random_network(seed):
    torch.manual_seed(seed)
    return SRNetwork(Architecture(), 2)


@pytest.fixture
def at_hand(tmp_path, monkeypatch):
    """A folder for the authors' files, in IKM_DATA; nothing is downloaded."""
    monkeypatch.setenv("IKM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("IKM_CACHE", str(tmp_path / "cache"))
    space = book.at_hand.__globals__
    monkeypatch.setitem(space, "download", False)
    monkeypatch.setitem(space, "page", SimpleNamespace(profile=config.PROFILES["cpu"]))
    (tmp_path / "data" / "authors").mkdir(parents=True)
    return tmp_path / "data" / "authors"


@pytest.mark.parametrize(("scale", "params"), [(2, 722_115), (3, 874_035), (4, 760_707)])
def test_como_s_has_the_released_parameters_and_scale(scale, params):
    network = book.CoMoS(scale)
    assert sum(p.numel() for p in network.parameters()) == params
    assert network(torch.rand(1, 3, 10, 11)).shape == (1, 3, 10 * scale, 11 * scale)


def test_a_dense_unit_is_its_modulated_layers_one_after_the_other():
    unit, x = book.DenseUnit(3, c=6, g=4), torch.randn(1, 6, 12, 12)
    expected = x
    for conv in unit.convs:
        expected = torch.cat([expected, F.leaky_relu(conv(expected), 0.1)], 1)
    torch.testing.assert_close(unit(x), unit.transition(expected))


def test_dose_1_is_own_attention_and_dose_0_a_plain_convolution():
    unit, x = book.DenseUnit(3, c=6, g=4), torch.randn(1, 6, 12, 12)
    own, plain = unit(x), x
    for conv in unit.convs:
        plain = torch.cat([plain, F.leaky_relu(F.conv2d(plain, conv.weight, padding=1), 0.1)], 1)
    with attending(unit, book.dosed(1)):
        torch.testing.assert_close(unit(x), own)
    with attending(unit, book.dosed(0)):
        torch.testing.assert_close(unit(x), unit.transition(plain))
        assert not torch.allclose(unit(x), own)
    ours, constant = (SRNetwork(TINY, 2) for _ in range(2))
    constant.load_state_dict(ours.state_dict())
    for conv in (conv for unit in constant.blocks[0].units for conv in unit.convs):
        conv.context = "constant"
    with attending(ours, book.dosed(0)):
        torch.testing.assert_close(ours(x[:, :3]), constant(x[:, :3]))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_map_of_names_makes_their_state_ours(prefix, at_hand, monkeypatch):
    trained = random_network(1)
    state = {prefix + theirs(name): tensor for name, tensor in trained.state_dict().items()}
    assert state[f"{prefix}tail.0.0.weight"].shape == (256, 4, 3, 3) and f"{prefix}body.4.weight" in state
    state[f"{prefix}body.0.body.0.body.0.layer.0.threshold"] = torch.zeros(1)
    saved = io.BytesIO()
    torch.save(state, saved)
    (at_hand / "IKM+UHDN_x2.pth").write_bytes(saved.getvalue())
    scale, file, commit, _ = book.FILES["U-HDN+IKM x2"]
    expected = f"git:{book.digest(saved.getvalue(), 'git')}"
    monkeypatch.setitem(book.FILES, "U-HDN+IKM x2", (scale, file, commit, expected))
    x = torch.rand(1, 3, 12, 12)
    torch.testing.assert_close(book.network_of("U-HDN+IKM x2")(x), trained.eval()(x))
    with pytest.raises(RuntimeError, match="size mismatch"):
        random_network(0).load_state_dict(book.renamed(SRNetwork(Architecture(channels=32), 2).state_dict()))


def test_a_threshold_other_than_0_is_refused_by_its_name():
    with pytest.raises(ValueError, match=r"layer\.0\.threshold is \[0\.5\]"):
        book.renamed({"body.0.body.0.body.0.layer.0.threshold": torch.tensor([0.5])})


def test_a_file_with_another_digest_is_never_loaded(at_hand):
    assert book.digest(b"hello\n", "git") == "ce013625030ba8dba906f756967f9e9ca394464a"   # as git hash-object says
    for name, (_, file, *_) in book.FILES.items():
        assert book.network_of(name) is None
        (at_hand / file).write_bytes(b"hello\n")
        with pytest.raises(ValueError, match="is not the authors' file: its (sha256 is 5891b5b5|git is ce013625)"):
            book.network_of(name)


def test_a_file_is_fetched_only_where_it_may_be_and_a_failure_is_said(at_hand, monkeypatch, capsys):
    asked = []

    def retrieve(url, known_hash, fname, path):
        asked.append(url)
        raise OSError

    space = book.at_hand.__globals__
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    assert book.network_of("CoMo-S x2") is None and not asked
    monkeypatch.setitem(space, "download", True)
    assert book.network_of("CoMo-S x2") is None and "CoMo-S_x2.pth could not be downloaded" in capsys.readouterr().out
    assert asked == [f"https://raw.githubusercontent.com/YuanfeiHuang/IKM/{book.COMO}/models/CoMo-S_x2.pth"]
    monkeypatch.setitem(space, "page", SimpleNamespace(profile=config.PROFILES["smoke"]))
    assert book.network_of("CoMo-S x2") is None and len(asked) == 1


def test_scores_under_the_images_own_attention_are_equal_however_it_is_given():
    image = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    images, network = list(pairs({"a": image, "b": image}, 2)), book.CoMoS(2).eval()
    table = book.scores(network, images, attention_of(network, super_resolve, network, images[0][1]), every=2)
    for column in ("frozen", "swapped"):
        np.testing.assert_allclose(table[column], table["1"], atol=1e-3)
    assert table.own_part_percent.max() < 1e-3 and table["0.5"].notna().tolist() == [True, False]


def test_a_patch_is_the_same_part_of_both_images():
    hr = np.arange(180 * 240).reshape(180, 240, 1)
    lr = hr[::3, ::3]
    patch_lr, patch_hr = book.middle(lr, hr, 3)
    assert patch_lr.shape == (48, 48, 1) and patch_hr.shape == (144, 144, 1)
    np.testing.assert_array_equal(patch_hr[::3, ::3], patch_lr)


def test_without_the_files_the_notebook_says_so(at_hand, results, monkeypatch):
    page = Kept("15_authors_weights", config.PROFILES["smoke"])
    monkeypatch.setattr(notebook, "open_page", lambda *words, **options: page)
    monkeypatch.setattr(Kept, "measured", lambda self, name, measure: measure())
    exec("\n".join(code(NOTEBOOK)), {"In": [], "__name__": "__main__"})
    assert (page.tables["authors_scores"]["set"] == "not installed").all()
    assert list(page.tables["authors_own"].network) == list(book.FILES)


def test_committed_tables_are_what_the_committed_scores_give(executed):
    assert (config.ROOT / "results" / "cpu" / "authors_psnr.csv").exists()   # without it they would be measured here
    page = executed("15", "cpu")
    assert set(page.tables) == {"authors_scores", "authors_own", "authors_dose"}
    for name, table in page.tables.items():
        committed = pd.read_csv(config.ROOT / "results" / "cpu" / f"{name}.csv", keep_default_na=False,
                                na_values=[""])
        pd.testing.assert_frame_equal(table.replace("", np.nan), committed, check_dtype=False, atol=2e-6, rtol=0)
