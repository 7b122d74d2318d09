"""Breaks the study on purpose, in many ways, and writes what was tried and lost to results/reliability.md. Ten minutes.

The faults meet the real commands, on records of their own: four small runs of the profile `smoke`, with a checkpoint
after every update. Processes are forks of this one, which has imported everything, but for those of run_all.sh.
"""
from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from PIL import Image

from ikmlib import config, files, pictures, trainers
from ikmlib.__main__ import main
from ikmlib.study import records, weights

torch.set_num_threads(1)   # a process with a pool of threads must not fork

SMOKE = ("--profile", "smoke")
TRAIN = ("train", *SMOKE, "--only", "10", "--jobs", "1", "--no-download")
NOT_COMPARED = ("finished_utc", "train_seconds", "updates_per_second", "git_commit", "files")   # of a record


def start(words, root: Path, prepare=lambda: None) -> int:
    """A process that calls prepare() and then does a command on the records in `root`; its output goes to root.log."""
    if process := os.fork():
        return process
    try:
        os.environ["IKM_RESULTS"], trainers.SAVE_EVERY = str(root), 0.0
        sys.stdout = sys.stderr = open(f"{root}.log", "w")
        prepare()
        code = main([*words])
        sys.stderr.flush()
        os._exit(code)
    finally:
        os._exit(99)


def end(process: int) -> int:
    """The exit code of a process, when it ends."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def deadly_write() -> None:
    """Have this process kill itself in the middle of one of its next writes, chosen at random."""
    name, left = random.choice(("fsync", "replace", "unlink")), iter(range(random.randint(0, 40)))
    act = getattr(os, name)
    setattr(os, name, lambda *words: act(*words) if next(left, None) is not None else os.kill(os.getpid(), 9))


def power_cut(root: Path, process: int) -> None:
    """Kill a process, and all others of a ./run_all.sh that works on `root`."""
    os.kill(process, signal.SIGKILL)   # if it has ended, this changes nothing
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"IKM_RESULTS={root}\0".encode() in (folder / "environ").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:   # it has ended
            pass


def final(root: Path) -> dict:
    """What never changes again: files that are made of the same records, and records of finished runs, but for their
    list of files, which grows with later scores."""
    made = {path: path.read_bytes() for pattern in ("smoke/*.*", "*.*") for path in root.glob(pattern)
            if not path.name.startswith(".")}
    return made | {path: {**files.read_json(path), "files": ""} for path in root.glob("smoke/runs/*/run.json")}


def outcome(root: Path) -> dict[str, tuple]:
    """What finished runs found, without what is a time: record, scores, curve and weights of each."""
    found = {}
    for path in root.glob("smoke/runs/*/run.json"):
        record = {key: value for key, value in files.read_json(path).items() if key not in NOT_COMPARED}
        curve = files.read_csv(path.with_name("curve.csv")).drop(columns="seconds").to_csv()
        others = [path.with_name(name).read_bytes() for name in ("scores.csv", "weights.pt")]
        found[path.parent.name] = (record, curve, *others)
    return found


def killed(root: Path, begin, seconds: float, most: int) -> tuple[int, int]:
    """Processes, each killed within so many seconds, until one ends before: (kills, final files lost or changed)."""
    kills, lost, code, done = 0, 0, -9, final(root)
    while code == -9:
        process = begin()
        if kills < most:
            time.sleep(random.uniform(0, seconds))
            power_cut(root, process)
        code = end(process)
        now = final(root)
        kills, lost = kills + (code == -9), lost + sum(now.get(path) != data for path, data in done.items())
        done = now
    return kills, lost + (code != 0)


def killed_commands(folder: Path, kills: int, whole: dict) -> tuple[int, int]:
    """`train` on one folder of records after the other, killed until all runs are finished: (kills, lost)."""
    total = lost = 0
    while total < kills:
        root = folder / f"killed{total}"
        found = killed(root, lambda root=root: start(TRAIN, root, random.choice((deadly_write, int))), 4, kills - total)
        total, lost = total + found[0], lost + found[1] + (outcome(root) != whole)
    return total, lost


def full_disk(root: Path, words, writes: int) -> tuple[int, str]:
    """A command on a disk that is full from its n-th write on: exit code, and the file that its error names."""
    filler = root / "filler"

    def prepare():
        write, left = Path.write_bytes, iter(range(writes))

        def full(path, data):
            if next(left, None) is None and not filler.exists():
                disk = os.statvfs(root)
                write(filler, bytes(disk.f_bavail * disk.f_frsize))
            return write(path, data)

        Path.write_bytes = full

    code = end(start(words, root, prepare))
    filler.unlink(missing_ok=True)
    said = re.search(r"error: .*No space left on device: '.*/(.+?)'", Path(f"{root}.log").read_text())
    return code, said[1] if said else ""


def full_disks(root: Path, whole: dict) -> tuple[int, int, str]:
    """Training, report, weights and a picture on a small disk that is full: (faults, lost, the kinds of files)."""
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", root], check=True)
    try:
        found = [full_disk(root, TRAIN, writes) for writes in (12, 2, 3, 4, 0, 99)]   # at each file of a run
        found += [full_disk(root, ("report", *SMOKE), writes) for writes in range(6)]
        run = next(root.glob("smoke/runs/*"))
        found += [full_disk(root, ("weights", "export", str(run)), writes) for writes in (0, 1, 99)]
        Image.effect_noise((30, 20), 50).save(root / "a.png")
        enlarge = ("upscale", f"{root}/a.png", "-o", f"{root}", "--weights", f"{root}/weights/{run.name}.safetensors")
        code, name = full_disk(root, enlarge, 0)
        found += [(code + 1, name), full_disk(root, enlarge, 99)]   # code 1: of all its pictures, this one failed
        lost = (outcome(root) != whole) + sum((code, bool(name)) not in ((2, True), (0, False)) for code, name in found)
        lost += pictures.read_picture(root / "a_x2.png").size != (60, 40)
        names = Counter(name.replace(run.name, "weights") for _, name in found if name)
        return names.total(), lost, ", ".join(sorted(names))
    finally:
        subprocess.run(["umount", root], check=True)


def bad_inputs(checks: dict, times: int) -> tuple[int, int]:
    """Files with random bytes changed, or cut: (tried, neither read nor refused in one line that names a file)."""
    bad = 0
    for path, check in checks.items():
        good = path.read_bytes()
        for _ in range(times):
            data = bytearray(good[:random.choice((len(good), random.randint(1, len(good))))])
            for _ in range(random.randint(1, 8)):
                data[random.randrange(len(data))] = random.randrange(256)
            path.write_bytes(data)
            try:
                check(path)
            except (OSError, ValueError) as error:
                bad += len(str(error).splitlines()) != 1 or str(path.parent) not in str(error)
            except BaseException:
                bad += 1
        path.write_bytes(good)
    return times * len(checks), bad


def rows(folder: Path):
    """All faults, one after the other: (fault, times, lost, how)."""
    records.training_data(("embedded-train",), 2, 16, "cpu")   # read once for all forks
    root = folder / "whole"
    assert end(start(TRAIN, root)) == 0
    whole = outcome(root)
    yield ("SIGKILL in training", *killed_commands(folder, 100, whole), "at random instants, and within random writes "
           "of checkpoints, scores, weights and records; then continued to the end")
    kills, lost = killed(root, lambda: start(("report", *SMOKE), root, random.choice((deadly_write, int))), 3, 20)
    yield "SIGKILL in writing the report", kills, lost, "the same; every file is the old or the new one"
    own = {**os.environ, "IKM_RESULTS": str(folder / "script"), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    script = [config.ROOT / "run_all.sh", *SMOKE, "--only", "10"]
    kills, lost = killed(folder / "script", lambda: subprocess.Popen(script, env=own, stdout=-3, stderr=-3).pid, 12, 3)
    yield ("all processes of run_all.sh killed at once", kills, lost + (outcome(folder / "script") != whole),
           "training, notebook and report, at random instants")
    faults, lost, names = full_disks(folder / "disk", whole)
    yield "disk full", faults, lost, f"a small tmpfs; in writing {names}; then continued to the end"
    lost = 0
    for root_of_two in (folder / f"shared{i}" for i in range(5)):
        lost += sum(map(end, [start(TRAIN, root_of_two) for _ in range(2)])) + (outcome(root_of_two) != whole)
    yield "two workers on one results folder", 5, lost, "they share the runs"
    clock = lambda: setattr(time, "gmtime", lambda: time.struct_time((1970, 1, 1, 0, 0, 0, 3, 1, 0)))  # noqa: E731
    end(start(TRAIN, folder / "clock", deadly_write))
    for path in (folder / "clock").rglob("*"):
        os.utime(path, (4e9, 4e9))
    lost = end(start(TRAIN, folder / "clock", clock)) + (outcome(folder / "clock") != whole)
    yield "a clock that goes back", 1, lost, "files of the year 2096, continued in 1970"
    os.environ["IKM_RESULTS"] = str(root)
    run = next(root.glob("smoke/runs/*"))
    Image.effect_noise((30, 20), 50).save(folder / "a.png")
    weights.export(run).rename(folder / "a.safetensors")
    checks = {folder / "a.png": pictures.read_picture, folder / "a.safetensors": weights.load,
              run / "run.json": records.check, run / "scores.csv": lambda path: records.check(run / "run.json")}
    yield "bad files", *bad_inputs(checks, 250), "a picture, weights, run.json, scores.csv with random bytes, or cut"
    for fault, names, how in (("downloads", "datasets.py -k wrong", "a local server cuts, stalls, lies or is gone"),
                              ("a kernel that dies", "runner.py -k dies", "the others go on, the copy says why")):
        test = [sys.executable, "-m", "pytest", "-q", *f"{config.ROOT}/tests/test_{names}".split()]
        said = subprocess.run(test, capture_output=True, text=True, cwd=config.ROOT).stdout
        yield fault, re.search(r"(\d+) passed", said)[1], len(re.findall("^FAILED", said, re.M)), how


if __name__ == "__main__":
    lines = ["| fault | times | lost | how |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as made:
        for row in rows(Path(made)):
            lines.append("| " + " | ".join(map(str, row)) + " |")
            print(lines[-1], flush=True)
    device = records.device_name(records.default_device())
    files.write_text(config.ROOT / "results" / "reliability.md", "\n".join([
        "# What was broken on purpose, and what was lost", "", "Written by `PYTHONPATH=. python tools/reliability.py` "
        f"({device}; torch {records.torch.__version__}, one thread). *Lost* counts finished runs and files that were "
        "lost, changed, trained twice or not bit for bit those of an uninterrupted training, and bad files that were "
        "neither read nor refused in one line that names the file.", "", *lines, ""]))
