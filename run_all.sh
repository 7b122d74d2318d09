#!/usr/bin/env bash
# Runs the study on a machine that has bash and Python >= 3.11: sets an environment up if needed, then executes the
# notebooks in order. Run it again after an interruption: what is done is not done twice.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$root/.venv

usage() {
    local python
    cat <<'END'
Usage: ./run_all.sh [--profile NAME] [--only NN[,NN...]] [--no-train] [--setup-only]

  --profile NAME   how much is trained and scored; default auto (small where CUDA is, else smoke)
  --only NN        only these notebooks, by number (04) or full name; may be repeated
  --no-train       use the recorded runs, train nothing
  --setup-only     set the environment up, print the Python to use, run nothing
  -h, --help       this text

An active Python that has all packages of pyproject.toml is used as it is; otherwise they are installed into .venv with
the versions of constraints.txt. pip's own variables (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, ...) are honoured.
  IKM_TORCH_INDEX  package index to try first for torch alone. The default torch of Linux brings several gigabytes of
                   CUDA; without an NVIDIA GPU, give PyTorch's CPU index here (pytorch.org, Get Started, Pip, CPU).
  IKM_RESULTS, IKM_DATA, IKM_CACHE   other folders for records, for image sets at hand, for downloaded image sets.
END
    if python=$(find_base 2>/dev/null); then
        "$python" - "$root/ikmlib/config.py" <<'END'
import runpy, sys
print("\nProfiles:")
for profile in runpy.run_path(sys.argv[1])["PROFILES"].values():
    print(f"  {profile.name:8} {profile.summary}")
END
    fi
}

say() { echo "run_all.sh: $*" >&2; }
refuse() { say "$*"; exit 2; }

find_base() {  # prints a Python >= 3.11 that can make virtual environments
    local name
    for name in python3 python3.13 python3.12 python3.11 python; do
        "$name" -c 'import sys, venv, ensurepip; sys.version_info < (3, 11) and sys.exit(1); print(sys.executable)' \
            2>/dev/null && return
    done
    say "needs Python >= 3.11 with its venv module (on Debian and Ubuntu: apt install python3-venv); none found in PATH"
    return 1
}

has_packages() {  # prints the path of the Python $1 if it has every package of pyproject.toml in range, else fails
    "$1" - "$root/pyproject.toml" 2>/dev/null <<'END'
import sys, tomllib
from importlib.metadata import version
from packaging.requirements import Requirement
with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
wanted = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["test"]]
if not all(item.specifier.contains(version(item.name), prereleases=True) for item in wanted):
    sys.exit(1)
print(sys.executable)
END
}

check_profile() {  # $1 Python, $2 name; config.py has the list of profiles and imports only the standard library
    "$1" - "$root/ikmlib/config.py" "$2" <<'END'
import runpy, sys
try:
    sys.argv[2] == "auto" or runpy.run_path(sys.argv[1])["get_profile"](sys.argv[2])
except ValueError as error:
    print(f"run_all.sh: {error}", file=sys.stderr)
    sys.exit(2)
END
}

install() {  # fills .venv, made with the Python $1 unless it is there and sound; $2 is what .installed shall say
    local pip=("$venv/bin/python" -m pip --disable-pip-version-check)
    say "installing into $venv (once; some minutes)"
    rm -f "$venv/.installed"
    if ! "$venv/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        "$1" -m venv --clear "$venv"
    fi
    if [ -n "${IKM_TORCH_INDEX:-}" ]; then
        "${pip[@]}" install --retries 1 --no-deps --index-url "$IKM_TORCH_INDEX" -c "$root/constraints.txt" torch \
            || say "no torch from IKM_TORCH_INDEX; taking the default one"
    elif [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then
        say "no NVIDIA GPU found: IKM_TORCH_INDEX (see --help) can spare a large download"
    fi
    "${pip[@]}" install -c "$root/constraints.txt" -e "$root[test]"
    "$venv/bin/python" -m ipykernel install --sys-prefix --name ikm --display-name "IKM study"
    printf '%s\n' "$2" > "$venv/.installed"   # last, so that an interrupted installation is done again
}

profile=auto
setup_only=no
arguments=()
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --setup-only) setup_only=yes ;;
        --no-train) arguments+=("$1") ;;
        --profile | --only)
            [ $# -ge 2 ] || refuse "$1 needs a value"
            arguments+=("$1" "$2")
            [ "$1" = --only ] || profile=$2
            shift ;;
        --profile=*) arguments+=("$1"); profile=${1#*=} ;;
        --only=*) arguments+=("$1") ;;
        *) refuse "unknown option $1; allowed: --profile NAME, --only NN, --no-train, --setup-only, --help" ;;
    esac
    shift
done

base=""
python=$(has_packages python) || python=$(has_packages python3) || base=$(find_base)
check_profile "${base:-$python}" "$profile"   # before a long installation
if [ -n "$base" ]; then
    python=$venv/bin/python
    lock=$(cat "$root/pyproject.toml" "$root/constraints.txt"; echo "$root")   # a changed or moved project: anew
    if [ "$(cat "$venv/.installed" 2>/dev/null)" != "$lock" ] || ! has_packages "$python" >/dev/null; then
        install "$base" "$lock" >&2
    fi
fi
if [ "$setup_only" = yes ]; then
    echo "$python"
    exit 0
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"   # an active Python need not have ikmlib installed
exec "$python" -m ikmlib run "${arguments[@]}"
