"""Command line: `python -m ikmlib run|train|status|data|report|bench|weights|upscale`."""
from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from ikmlib import config


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ikmlib", description="The IKM / U-HDN reproducibility study.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str, *, profile: bool = True, only: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(parser=sub)
        if profile:
            sub.add_argument("--profile", default="auto", metavar="NAME", choices=("auto", *config.PROFILES),
                             help=f"auto (default: small where CUDA is, else smoke), {', '.join(config.PROFILES)}")
        if only:
            sub.add_argument("--only", action="append", default=[], metavar="NN",
                             help="only this notebook or its runs, by number (04) or name; repeatable, or a comma list")
        return sub

    def plan_or_profile(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--profile", metavar="NAME", choices=("auto", *config.PROFILES),
                         help=f"{', '.join(config.PROFILES)}; default: small where CUDA is, else the plan's stages A "
                         "to E, across cpu and cpu-long")

    def training(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--jobs", type=int, help="runs trained at once (default: one a CPU core, or 4 on a GPU)")
        sub.add_argument("--no-download", action="store_true", help="use the image sets that are installed, fetch none")

    sub = command("run", "train what is missing, execute the notebooks, write the report", only=True)
    sub.formatter_class = argparse.RawDescriptionHelpFormatter
    sub.epilog = "profiles:\n" + "\n".join(f"  {p.name:10} {p.summary}" for p in config.PROFILES.values())
    sub.add_argument("--no-train", action="store_true",
                     help="use what is recorded: train nothing, measure nothing costly anew")
    sub.add_argument("--dry-run", action="store_true", help="check the arguments, name the notebooks, do nothing")
    training(sub)
    sub = command("train", "train the plan's unfinished runs in its order; stop and continue at any time",
                  profile=False, only=True)
    plan_or_profile(sub)
    sub.add_argument("--time-limit", type=float, metavar="SECONDS", help="stop, with everything saved, after this long")
    training(sub)
    plan_or_profile(command("status", "the plan: what is finished, missing, and the hours left on this device",
                            profile=False))
    sub = command("data", "download image sets into the cache, or check every file of installed ones", profile=False)
    sub.add_argument("action", choices=("fetch", "verify"))
    sub.add_argument("sets", nargs="*",
                     help="names of sets; default: T91, BSDS500 and the benchmarks that may be downloaded")
    command("report", "write a profile's REPORT.md and report.html, and the REPORT.md over all profiles")
    sub = command("weights", "keep the weights of finished runs under results/weights, with a model card, or list them",
                  profile=False)
    sub.add_argument("action", choices=("export", "list"))
    sub.add_argument("runs", nargs="*", type=Path, metavar="RUN_FOLDER", help="of export: results/<profile>/runs/<id>")
    sub = command("upscale", "enlarge pictures with a trained network; writes PNG files", profile=False)
    sub.description = ("Enlarge pictures of 8 bits a sample with a trained network; writes PNG files. Results that are "
                       "up to date are kept, so that the same command continues with the first unfinished picture. A "
                       "picture of more than 256 x 256 pixels is enlarged in tiles, each with its own attention: on "
                       "photographs up to 2 of 255 levels from the whole picture's result, 0.05 to 0.08 on average.")
    sub.add_argument("inputs", nargs="+", type=Path, metavar="IN",
                     help="pictures, and folders of them, in which other files and earlier results are passed over")
    sub.add_argument("-o", "--out", type=Path, required=True, help="a folder or, for one picture, a PNG file")
    sub.add_argument("--scale", type=int, choices=(2, 3, 4),
                     help="times as high and wide (default: what --weights is for, or 2)")
    sub.add_argument("--weights", type=Path, metavar="FILE", help="default: the best of `weights list` for the scale")
    sub = command("bench", "time and memory of IKM beside the vanilla convolution; writes cost.csv, cost_machine.csv")
    sub.add_argument("--quick", action="store_true", help="small cases and few repetitions: does it run?")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code. Errors that a user can mend are one line on stderr and exit code 2."""
    args, unknown = _parser().parse_known_args(argv)
    if unknown:
        args.parser.error(f"unknown: {' '.join(unknown)}")   # with the usage of this very command
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)   # stop as for Ctrl-C: save first
    try:
        return _COMMANDS[args.command](args)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"stopped; the same command continues. {stop}", file=sys.stderr)
        return 130


def _names(only: list[str]) -> list[str]:
    return [name for item in only for name in item.split(",") if name]


def _chosen(name: str | None) -> config.Profile | None:
    """The profile of `train` and `status`; None: the plan across the CPU profiles."""
    from ikmlib.study import records

    if name is None:
        return config.PROFILES["small"] if records.default_device().type == "cuda" else None
    return config.get_profile(name)


def _train(profile: config.Profile | None, only: list[str], jobs: int | None, time_limit: float | None = None) -> int:
    """Train in this process, or in `jobs` processes that share the queue; 1 if a run diverged or a process failed."""
    from ikmlib.study import experiments, records

    cuda, cores = records.default_device().type == "cuda", os.cpu_count() or 1
    unfinished = sum(not (run.finished or run.diverged) for run in experiments.queue(profile, only))
    if jobs is not None and jobs < 1:
        raise ValueError(f"--jobs must be 1 or more, not {jobs}")
    jobs = min(unfinished, jobs or (4 if cuda else min(cores, 8)))
    if jobs <= 1:
        return int(experiments.work(profile, only=only, time_limit=time_limit) > 0)
    command = [sys.executable, "-m", "ikmlib", "train", "--jobs", "1", "--no-download"]
    command += ["--profile", profile.name] if profile else []
    command += [word for name in only for word in ("--only", name)]
    command += ["--time-limit", str(time_limit)] if time_limit is not None else []
    print(f"{f'profile {profile.name}' if profile else 'the plan'}: {unfinished} runs to train, {jobs} at a time",
          flush=True)
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // jobs))
    workers = [subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": threads, "TQDM_POSITION": str(i)})
               for i in range(jobs)]
    try:
        codes = [worker.wait() for worker in workers]
    except KeyboardInterrupt:
        for worker in workers:   # a terminal's Ctrl-C has reached them too; either way they save before they end
            worker.terminate()
        for worker in workers:
            worker.wait()
        raise
    if 130 in codes:
        raise KeyboardInterrupt
    return max(abs(code) for code in codes)   # a negative code is the signal that killed a worker


def _prepare_data(profile: config.Profile, download: bool) -> None:
    """Fetch the profile's missing image sets; what cannot be had is named, and so is the fall-back."""
    from ikmlib import datasets
    from ikmlib.study import records

    wanted = [name for name in (*profile.train_sets, *profile.test_sets) if not datasets.is_installed(name)]
    for name in wanted if download else ():
        if name != "Manga109":   # its licence leaves it to the user
            try:
                datasets.fetch(name)
            except datasets.FetchError as error:
                print(f"note: {error}", file=sys.stderr)
    missing = [name for name in wanted if not datasets.is_installed(name)]
    if missing:
        print(f"note: not installed: {', '.join(missing)}", file=sys.stderr)
    if set(missing) & set(profile.train_sets):
        instead = ", ".join(records.FALLBACK["train"] + records.FALLBACK["test"])
        print(f"note: new runs train on and are scored on {instead} instead, and their records say so", file=sys.stderr)


def _run_command(args: argparse.Namespace) -> int:
    from ikmlib.study import runner

    only = _names(args.only)
    stems = [path.stem for path in runner.find_notebooks(only)]
    if args.dry_run:   # this far, nothing but the standard library is needed
        print(*stems, sep="\n")
        return 0
    from ikmlib.study import experiments

    profile = config.get_profile(args.profile)
    with_runs = [stem for stem in stems if stem in experiments.NOTEBOOKS]
    if not args.no_train:
        _prepare_data(profile, not args.no_download)
    trained = _train(profile, with_runs, args.jobs) if with_runs and not args.no_train else 0
    return runner.run_notebooks(args.profile, only, train=not args.no_train) or trained


def _train_command(args: argparse.Namespace) -> int:
    profile = _chosen(args.profile)
    if not args.no_download:
        _prepare_data(profile or config.PROFILES["cpu"], True)
    return _train(profile, _names(args.only), args.jobs, args.time_limit)


def _status_command(args: argparse.Namespace) -> int:
    from ikmlib.study import experiments

    table = experiments.status(_chosen(args.profile))
    print(table.to_string(index=False, formatters={"hours_left": "{:.1f}".format}))
    print(f"{table.finished.sum()} of {table.runs.sum()} runs finished; about {table.hours_left.sum():.1f} hours left "
          "on this device, one run at a time")
    return 0


def _data_command(args: argparse.Namespace) -> int:
    from ikmlib import datasets

    names = args.sets or ["T91", "BSDS500", *(name for name in config.BENCHMARKS if name != "Manga109")]
    bad = 0
    for name in names:
        if args.action == "fetch":
            print(f"{name}: {datasets.fetch(name)}")
        else:
            states = datasets.verify(name).state.value_counts()
            bad += int(states.drop("ok", errors="ignore").sum())
            print(f"{name}: " + ", ".join(f"{count} {state}" for state, count in states.items()))
    return int(bad > 0)


def _report_command(args: argparse.Namespace) -> int:
    from ikmlib.study import report

    print(report.write_report(args.profile), report.write_overall(), sep="\n")
    return 0


def _weights_command(args: argparse.Namespace) -> int:
    from ikmlib.study import weights
    from ikmlib.tools import model_card

    if args.action == "export" and not args.runs or args.action == "list" and args.runs:
        raise ValueError("`weights export` takes run folders, `weights list` takes none")
    for run_folder in args.runs:
        print(weights.export(run_folder))
    if args.runs:
        print(model_card.write())
    if args.action == "list":
        table = weights.table()
        print(f"no weights in {weights.folder()}" if table.empty else table.to_string(index=False))
    return 0


def _upscale_command(args: argparse.Namespace) -> int:
    from ikmlib.tools import upscale

    written, kept, failed = upscale.upscale(args.inputs, args.out, scale=args.scale, weights_file=args.weights)
    for why in failed.values():
        print(f"error: {why}", file=sys.stderr)
    print(f"{len(written)} written to {args.out}" + (f", {len(kept)} were there, unchanged" if kept else "")
          + (f", {len(failed)} failed" if failed else ""))
    return int(bool(failed))


def _bench_command(args: argparse.Namespace) -> int:
    from ikmlib import files
    from ikmlib.study import notebook
    from ikmlib.tools import bench

    folder = config.results_root() / config.get_profile(args.profile).name
    costs = bench.bench(args.quick)
    print(notebook.readable(costs).to_string(index=False))
    files.write_csv(folder / "cost.csv", costs)
    files.write_csv(folder / "cost_machine.csv", bench.machine())
    print(folder / "cost.csv")
    return 0


_COMMANDS = {"run": _run_command, "train": _train_command, "status": _status_command, "data": _data_command,
             "report": _report_command, "bench": _bench_command, "weights": _weights_command,
             "upscale": _upscale_command}

if __name__ == "__main__":
    sys.exit(main())
