"""Command line: `python -m ikmlib run|train|status|data|report|verify|weights|upscale|score`. On a bare machine,
`--help` and `run --dry-run` have to work, so that all other imports are inside the commands."""
import argparse
import os
import signal
import sys
from pathlib import Path

from ikmlib import config

GRACE = 60.0   # seconds after `train --time-limit`, at which all that has not ended by itself is stopped


def _parser() -> argparse.ArgumentParser:
    """All commands. Of the one given, `args.act` is the function and `args.parser` the parser."""
    parser = argparse.ArgumentParser(prog="python -m ikmlib", description="The IKM / U-HDN reproducibility study.")
    commands = parser.add_subparsers(dest="command", required=True)
    profile, work = (argparse.ArgumentParser(add_help=False) for _ in range(2))
    profile.add_argument("--profile", metavar="NAME", choices=("auto", *config.PROFILES),
                         help=f"auto, {', '.join(config.PROFILES)}. Default: auto, which is small where CUDA is, else "
                         "smoke; of train and status without CUDA: the plan, across cpu and cpu-long")
    work.add_argument("--only", metavar="NN", action="extend", default=[], type=lambda s: s.replace(",", " ").split(),
                      help="only this notebook or its runs, by number (04) or name; repeatable, or comma-separated")
    work.add_argument("--jobs", type=int, help="runs at once (default: one per core, at most 8; on a GPU "
                      "as many as fit, at most 4; with --ray: parts of a GPU)")
    work.add_argument("--no-download", action="store_true", help="use what is installed, or embedded photographs")

    def command(act, *parents: argparse.ArgumentParser, epilog: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(act.__name__, help=act.__doc__, description=act.__doc__, parents=parents,
                                  epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)
        sub.set_defaults(act=act, parser=sub)
        return sub

    sub = command(run, profile, work, epilog="profiles:\n" + "\n".join(
        f"  {p.name:10} {p.summary}" for p in config.PROFILES.values()))
    sub.add_argument("--no-train", action="store_true", help="train nothing, and take costly measurements from disk")
    sub.add_argument("--dry-run", action="store_true", help="check the arguments, name the notebooks, do nothing")
    sub = command(train, profile, work)
    sub.add_argument("--time-limit", type=float, metavar="SECONDS", default=float("inf"),
                     help="stop, with everything saved, after this long; loading or scoring is cut off a minute later")
    sub.add_argument("--ray", nargs="?", const="", metavar="ADDRESS",
                     help="as tasks of a Ray cluster that shares IKM_RESULTS; default: one running here, or a new one")
    command(status, profile)
    sub = command(data)
    sub.add_argument("action", choices=("fetch", "verify"))
    sub.add_argument("sets", nargs="*", help="default: T91, BSDS500 and the benchmarks that may be downloaded")
    command(report, profile)
    command(verify)
    sub = command(weights)
    sub.add_argument("action", choices=("export",))
    sub.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER", help="results/<profile>/runs/<id>")
    sub.add_argument("--half", action="store_true", help="in half precision, which takes half the space")
    sub = command(upscale, epilog="Files that exist are left as they are: the same command continues after a stop.\n"
                  "What is larger than 256 x 256 pixels is enlarged in tiles, each with its own attention.")
    sub.add_argument("inputs", nargs="+", type=Path, metavar="IN", help="pictures, and folders with pictures")
    sub.add_argument("-o", "--out", type=Path, required=True, help="the folder of the results")
    sub.add_argument("--scale", type=int, choices=(2, 3, 4), help="default: what --weights is for, or 2")
    sub.add_argument("--weights", type=Path, metavar="FILE", help="default: the best of results/weights for the scale")
    sub = command(score, epilog="Low-resolution pictures are made as by MATLAB's imresize. Each goes through the\n"
                  "network whole, as in the study, which takes about 0.7 GB per megapixel of the result at x2.")
    sub.add_argument("images", metavar="FOLDER_OR_SET", help="a folder of pictures, or Set5, BSD100 ... by name")
    sub.add_argument("--weights", type=Path, metavar="FILE", required=True, help="of `ikmlib.save`, or of the study")
    sub.add_argument("--scale", type=int, choices=(2, 3, 4), help="refuse weights that are for another scale")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code. Errors that a user can mend are one line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):   # it is not closed, nor a notebook's
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")   # whatever the locale
    args, unknown = _parser().parse_known_args(argv)
    if unknown:
        args.parser.error(f"unknown: {' '.join(unknown)}")   # with the usage of this very command
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):   # they stop as Ctrl-C does
        if signal.getsignal(number) != signal.SIG_IGN:   # as under nohup
            signal.signal(number, signal.default_int_handler)
    try:
        code = args.act(args) or 0
        print(end="", flush=True)
        return code
    except BrokenPipeError:   # whoever read the output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())   # for what is still to be flushed
        return 141   # what the shell says of a process that SIGPIPE ended
    except (ValueError, OSError, RuntimeError) as error:
        print("error:", *str(error).split(), file=sys.stderr)   # in one line
        return 2
    except KeyboardInterrupt as stop:
        print(f"stopped; what is finished is kept, and the same command continues. {stop}", file=sys.stderr)
        return 130
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)   # that of `train --time-limit`


def _planned(name: str | None) -> config.Profile | None:
    """The profile of `train` and `status`. None, which is the plan, if none is named and there is no CUDA device."""
    profile = config.get_profile(name or "auto")
    return None if name is None and profile.name == "smoke" else profile


def run(args: argparse.Namespace) -> int | None:
    """train what is missing, execute the notebooks, write the report"""
    from ikmlib.study import runner
    stems = [path.stem for path in runner.find_notebooks(args.only)]
    if args.dry_run:
        return print(*stems, sep="\n")
    from ikmlib.study import experiments, report, training
    profile, code = config.get_profile(args.profile or "auto"), 0
    with_runs = [stem for stem in stems if stem in experiments.NOTEBOOKS]
    if with_runs and not args.no_train:
        code = training.train(profile, with_runs, args.jobs, download=not args.no_download)
    code = runner.run_notebooks(profile, args.only, train=not args.no_train) or code
    print(f"report: {report.write_report(profile.name)}", flush=True)
    return code


def train(args: argparse.Namespace) -> int:
    """train the plan's unfinished runs in its order; stop and continue at any time"""
    from ikmlib.study import training
    profile = _planned(args.profile)
    if args.time_limit < float("inf"):   # training ends by itself, but images may still be loading
        signal.setitimer(signal.ITIMER_REAL, max(args.time_limit, 0) + GRACE)
    if args.ray is None:
        return training.train(profile, args.only, args.jobs, args.time_limit, not args.no_download)
    try:
        from ikmlib.study import cluster
    except ModuleNotFoundError as error:
        raise ValueError(f"--ray needs Ray ({error}): pip install -e '.[ray]'") from error
    training.prepare(profile, args.jobs, not args.no_download)
    return int(cluster.train(training.queue(profile, args.only), args.ray, args.jobs, args.time_limit) > 0)


def status(args: argparse.Namespace) -> None:
    """the plan: what is finished, missing, and the hours left on this device"""
    from ikmlib.study import training
    table = training.status(_planned(args.profile))
    print(table.to_string(index=False, formatters={"hours_left": "{:.1f}".format}))
    left = table.hours_left.sum(skipna=False)
    time = "not known before a run is finished on this device" if left != left else f"about {left:.1f}"
    print(f"{table.finished.sum()} of {table.runs.sum()} runs finished; hours left, one run at a time: {time}")


def data(args: argparse.Namespace) -> int:
    """download image sets into the cache, or check every image of installed ones"""
    from ikmlib import datasets
    bad = False
    for name in args.sets or (*config.CLASSIC, *(name for name in config.BENCHMARKS if name != "Manga109")):
        if args.action == "fetch":
            print(f"{name}: {datasets.fetch(name)}")
            continue
        try:
            wrong = datasets.verify(name)
            pixels = "" if "damaged" in wrong else f"; pixels have sha256 {datasets.pixels_sha256(name)}"
            print(f"{name}: {wrong or f'{datasets.image_set(name).count} images are ok'}{pixels}")
        except FileNotFoundError as error:
            print(wrong := str(error))
        bad = bad or bool(wrong)
    return int(bad)


def report(args: argparse.Namespace) -> None:
    """write a profile's runs.csv and, over all profiles, REPORT.md, report.html and README.md's results"""
    from ikmlib.study import report
    print(report.write_report(args.profile or "auto"))


def verify(args: argparse.Namespace) -> int:
    """check the records of runs, the claims and all weights, and name what is damaged or does not fit"""
    from ikmlib import files
    from ikmlib.study import notebook, records, weights
    wrong = files.refused(weights.load, sorted(weights.folder().glob("*.safetensors")))
    wrong += files.refused(records.all_records, config.PROFILES.values())
    wrong += files.refused(notebook.read_claims, config.PROFILES.values())
    print(*wrong or ["nothing is wrong"], sep="\n")
    return int(bool(wrong))


def weights(args: argparse.Namespace) -> None:
    """keep the weights of finished runs under results/weights"""
    from ikmlib.study import weights
    for folder in args.runs:
        print(weights.export(folder, args.half))


def upscale(args: argparse.Namespace) -> int:
    """enlarge pictures of 8 bits a sample with a trained network; writes PNG files"""
    from ikmlib import upscale
    written, there, failed = upscale.upscale(args.inputs, args.out, args.scale, args.weights)
    for why in failed:
        print(f"error: {why}", file=sys.stderr)
    print(f"{len(written)} written to {args.out}, {len(there)} were there and stay, {len(failed)} failed")
    return int(bool(failed))


def score(args: argparse.Namespace) -> None:
    """score a trained network on pictures: PSNR in dB and SSIM, both on Y, a row a picture, then the mean"""
    from ikmlib import networks, trainers
    from ikmlib.study.records import default_device
    network, _ = networks.load(args.weights, args.scale)
    scores = trainers.evaluate(network.to(default_device()), args.images, network.scale)
    scores.loc[len(scores)] = ["mean", *scores[["psnr_y", "ssim_y"]].mean()]
    print(scores.to_string(index=False, formatters={"psnr_y": "{:.2f}".format, "ssim_y": "{:.4f}".format}))


if __name__ == "__main__":
    sys.exit(main())
