"""The command line: what works, what is refused, and what it may import."""
import os
import shutil
import subprocess
import sys

import pytest
import torch

from ikmlib import config, datasets
from ikmlib.__main__ import main
from ikmlib.study import notebook, records, training

BLOCKED = ("matplotlib", "seaborn", "papermill", "IPython", "ipykernel", "jupyterlab", "nbconvert", "nbformat",
           "notebook")


@pytest.mark.parametrize(("words", "message"), [
    (["train", "--profile", "smoke", "--only", "77"], "no runs are known for 77"),
    (["run", "--profile", "smoke", "--only", "77"], "77"),
    (["data", "verify", "Set6"], "Set6"),
    (["train", "--profile", "smoke", "--no-download", "--jobs", "-3"], "--jobs must be 1 or more, not -3"),
])
def test_errors_are_one_line_and_exit_2(results, capsys, words, message):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and len(error.splitlines()) == 1


def test_a_set_that_cannot_be_fetched_does_not_stop_the_others(results, monkeypatch, capsys):
    tried = []

    def fetch(name):
        tried.append(name)
        raise datasets.FetchError(f"no way to {name}")

    monkeypatch.setattr(datasets, "is_installed", lambda name: False)
    monkeypatch.setattr(datasets, "fetch", fetch)
    assert main(["train", "--profile", "cpu", "--time-limit", "0", "--jobs", "1"]) == 2   # without training images
    assert tried == ["T91"] and capsys.readouterr().err == "error: no way to T91\n"
    monkeypatch.setattr(datasets, "is_installed", lambda name: name in config.PROFILES["cpu"].train_sets)
    assert main(["train", "--profile", "cpu", "--time-limit", "0", "--jobs", "1"]) == 0
    assert tried == ["T91", *config.PROFILES["cpu"].test_sets]
    assert "note: no way to Set5\nnote: no way to Set14\n" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "message"), [
    (["tarin"], "invalid choice: 'tarin'"),
    (["train", "--fast", "now"], "python -m ikmlib train: error: unknown: --fast now"),
    *((["status", "--profile", "huge"], name) for name in ("invalid choice: 'huge'", "auto", *config.PROFILES)),
])
def test_unknown_words_exit_2(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_dry_run_names_the_notebooks(results, capsys):
    assert main(["run", "--profile", "paper", "--only", "04,99_report", "--dry-run"]) == 0
    assert capsys.readouterr().out == "04_table3_attention\n99_report\n" and not list(results.iterdir())


def test_status_is_the_plan_with_the_hours_left(results, capsys):
    for words, lines in ((["status"], "abcdefgh"), (["status", "--profile", "smoke"], ["smoke"])):
        assert main(words) == 0
        *rows, last = capsys.readouterr().out.splitlines()
        assert "0 of " in last and last.endswith("hours left, one run at a time: not known before a run is finished on "
                                                 "this device")
        assert {row.split()[0] for row in rows[1:]} == set(lines)


@pytest.mark.parametrize("command", ["status", "train"])
@pytest.mark.parametrize(("name", "why"), [("checkpoint.pt", "delete it"), ("run.json", "is damaged"),
                                           ("diverged.json", "is damaged")])
def test_an_unreadable_file_of_a_run_is_named(results, capsys, command, name, why):
    run = training.queue(config.PROFILES["smoke"])[0]
    run.folder.mkdir(parents=True)
    (run.folder / name).write_bytes(b"junk")
    assert main([command, "--profile", "smoke"] + ["--jobs", "1"] * (command == "train")) == 2
    error = capsys.readouterr().err
    assert f"{run.id}/{name}" in error and why in error and len(error.splitlines()) == 1


SAY = """
import ikmlib.__main__ as program
def verify(args):
    "a command"
    print(chr(8230))
program.verify = verify
program.main(["verify"])
"""


@pytest.mark.parametrize("locale", ["C", "en_US.ISO-8859-1"])
def test_files_and_output_are_utf_8_whatever_the_locale(results, tmp_path, locale):
    env = {**os.environ, "LC_ALL": locale, "LOCPATH": str(tmp_path), "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    if locale != "C":
        if not shutil.which("localedef"):
            pytest.skip("no localedef here, which makes the locale")
        subprocess.run(["localedef", "-i", "en_US", "-f", "ISO-8859-1", tmp_path / locale], check=True)
        said = subprocess.run([sys.executable, "-c", "print(chr(233))"], env=env, capture_output=True, check=True)
        assert said.stdout == b"\xe9\n"   # it is in force
    page = notebook.open_page("99_report", profile="cpu")
    page.verdict("C1", paper="Größe …", ours="−0.1", verdict="mixed", because="–", any_profile=True)
    done = subprocess.run([sys.executable, "-m", "ikmlib", "report", "--profile=cpu"], env=env, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    said = subprocess.run([sys.executable, "-c", SAY], env=env, capture_output=True, check=True)
    assert said.stdout.decode() == "…\n"
    for name, words in (("REPORT.md", "−0.1"), ("cpu/claims.csv", "Größe …")):
        assert words in (results / name).read_text("utf-8")


KILL = """
import sys
from pathlib import Path
sys.path.insert(0, "tools")
import reliability
root = Path(sys.argv[1])
assert reliability.end(reliability.start(reliability.TRAIN, root / "whole")) == 0
whole = reliability.outcome(root / "whole")
kills, lost = reliability.killed_commands(root, 5, whole)
assert len(whole) == 4 and kills >= 5 and lost == 0, (len(whole), kills, lost)
"""


@pytest.mark.slow
def test_training_killed_at_random_instants_and_writes_loses_nothing(tmp_path):
    """In a process of its own with one thread: it forks, which a process with a pool of threads must not."""
    done = subprocess.run([sys.executable, "-c", KILL, str(tmp_path)], cwd=config.ROOT, capture_output=True, text=True,
                          check=False, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(config.ROOT)})
    assert done.returncode == 0, done.stderr


def test_train_shares_the_queue_between_processes(results, capfd, monkeypatch):
    """Two workers with no time: both leave at once, nothing is lost or broken."""
    assert main(["train", "--profile", "smoke", "--only", "04", "--jobs", "2", "--time-limit", "0"]) == 0
    assert "24 runs to train, 2 at a time" in capfd.readouterr().out


def test_a_time_limit_holds_while_images_load(tmp_path):
    """Reading the training images never ends here, so that the alarm has to end it."""
    program = ("import sys, time; from ikmlib import __main__, data\n__main__.GRACE = 0.1\n"
               "data.split = lambda names: time.sleep(1e6)\nsys.exit(__main__.main(sys.argv[1:]))")
    words = ["train", "--profile", "smoke", "--only", "10", "--jobs", "1", "--no-download", "--time-limit", "0.5"]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=300,
                          check=False, env={**os.environ, "IKM_RESULTS": str(tmp_path), "PYTHONPATH": str(config.ROOT)})
    assert done.returncode == 130 and done.stderr.splitlines()[-1].startswith("stopped; what is finished is kept")


@pytest.mark.parametrize(("codes", "expected"), [((0, 0), 0), ((0, 1), 1), ((0, -9), 9), ((130, 0), 130)])
def test_a_failed_or_interrupted_worker_is_not_passed_over(results, monkeypatch, codes, expected):
    left = list(codes)

    class Worker:
        def __init__(self, command, **options):
            self.returncode = left.pop(0)

        def poll(self):
            return self.returncode

    monkeypatch.setattr(subprocess, "Popen", Worker)
    assert main(["train", "--profile", "smoke", "--jobs", "2"]) == expected


def test_one_permitted_core_gets_one_worker(results, monkeypatch):
    """As under `taskset -c 0`: this process trains by itself."""
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr(records, "default_device", lambda: torch.device("cpu"))
    permitted = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(permitted)})
        assert config.cores() == 1 and main(["train", "--profile", "smoke", "--time-limit", "0"]) == 0
    finally:
        os.sched_setaffinity(0, permitted)


def test_output_into_head_ends_quietly():
    command = [sys.executable, "-m", "ikmlib", "run", "--dry-run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()   # before anything is written
        assert process.stderr.read() == "" and process.wait() == 141


def test_closed_output_is_no_error():
    done = subprocess.run(f"{sys.executable} -m ikmlib run --dry-run >&-", shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_interrupted_training_exits_130(results, monkeypatch, capsys):
    def interrupted(*args, **options):
        raise KeyboardInterrupt("run x stopped at update 7")

    monkeypatch.setattr(records, "train", interrupted)
    assert main(["train", "--profile", "smoke", "--jobs", "1"]) == 130
    assert "update 7" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["run", "--dry-run"], ["--help"]])
def test_a_python_without_any_package_checks_the_arguments(words):
    """run_all.sh asks it before it installs anything; -S leaves the installed packages out."""
    done = subprocess.run([sys.executable, "-S", "-m", "ikmlib", *words], capture_output=True, text=True, check=False,
                          env={"PYTHONPATH": str(config.ROOT), "PATH": os.environ["PATH"]})
    assert done.returncode == 0, done.stderr


def test_library_and_command_line_need_no_notebook_packages(tmp_path):
    """On a bare machine there may be torch, numpy, pandas, scikit-image and tqdm alone."""
    code = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ImportError("blocked " + name)
sys.meta_path.insert(0, Block())
from ikmlib.study import comparisons, notebook, report, runner
from ikmlib.__main__ import main
sys.exit(main(["status", "--profile", "smoke"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "IKM_RESULTS": str(tmp_path)})
    assert done.returncode == 0, done.stderr
