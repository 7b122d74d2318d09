"""Command line: `python -m ikmlib train|status|pack|unpack|data|report|run`."""
from __future__ import annotations

import argparse
import sys

from . import config


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ikmlib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--profile", default="auto", help=f"auto (default), {', '.join(config.PROFILES)}")
        return sub

    sub = command("train", "train the queue's unfinished runs in order of priority; stop and continue at any time")
    sub.add_argument("--only", action="append", default=[], metavar="NN", help="an artefact's number, such as 04; repeatable")
    sub.add_argument("--time-limit", type=float, metavar="SECONDS", help="stop, with everything saved, after this long")
    command("status", "the queue: what is finished, in progress, missing")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code. Errors a user can mend are one line on stderr and exit code 2."""
    args = _parser().parse_args(argv)
    try:
        return _run(args)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"stopped. {stop}", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    from . import study

    profile = config.get_profile(args.profile)
    if args.command == "train":
        return int(study.work(profile, only=args.only, time_limit=args.time_limit) > 0)
    if args.command == "status":
        print(study.status(profile).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
