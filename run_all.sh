#!/usr/bin/env bash
# Makes an environment if needed, then runs the study's notebooks. What is done is not done twice.
set -euo pipefail
unset CDPATH PYTHONHOME   # with them, cd may go elsewhere and Python find nothing
root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
venv=$root/.venv
export PYTHONUTF8=1 PYTHONSAFEPATH=1   # UTF-8 whatever the locale; no import from the caller's folder
IFS=: read -ra entries <<<"${PYTHONPATH:-}"
export PYTHONPATH=$root   # an active Python need not have ikmlib installed
for entry in "${entries[@]}"; do case $entry in /*) PYTHONPATH+=:$entry ;; esac; done   # others: the caller's folder

say() { echo "run_all.sh: $*" >&2; }

usage() {
    cat <<'END'
Usage: ./run_all.sh [--profile NAME] [--only NN[,NN...]] [--no-train] [--setup-only] [-h]

An active Python is used as it is if it has all packages of pyproject.toml and this folder's ikmlib (pip install -e .);
otherwise all is installed into .venv with the versions of constraints.txt. pip's own variables (PIP_INDEX_URL,
PIP_EXTRA_INDEX_URL, ...) are honoured, but for PIP_CONSTRAINT and those that would install elsewhere.
  --setup-only     set the environment up, print the Python to use, run nothing
  IKM_TORCH_INDEX  package index to try first for torch alone. On Linux without an NVIDIA driver it is PyTorch's CPU index:
                   the default torch would bring several gigabytes of CUDA.
  IKM_RESULTS, IKM_DATA, IKM_CACHE   other folders for records, for image sets at hand, for downloaded image sets.
All other options are those of `python -m ikmlib run`:

END
}

study() { exec "$1" -m ikmlib run "${@:2}"; }   # becomes the study, run by the Python $1 with the other arguments

has_packages() { "$1" "$root/tools/has_packages.py" 2>/dev/null; }   # prints the path of the Python $1, or fails

find_base() {  # prints a Python >= 3.11 that can make virtual environments
    local name
    for name in python3 python3.13 python3.12 python3.11 python; do
        "$name" -c 'import sys; sys.version_info < (3, 11) and exit(1); import venv, ensurepip; print(sys.executable)' \
            2>/dev/null && return
    done
    say "needs Python >= 3.11 with its venv module (on Debian and Ubuntu: apt install python3-venv); none found in PATH"
    return 1
}

install() {  # makes .venv anew with the Python $1; $2 is what .installed shall say
    local pip=(env -uPIP_{TARGET,PREFIX,ROOT,NO_DEPS,DRY_RUN,CONSTRAINT} PIP_USER=0 "$venv/bin/python" -m pip)
    local index=${IKM_TORCH_INDEX:-}
    [ "$(uname -s)" != Linux ] || command -v nvidia-smi >/dev/null || index=${index:-https://download.pytorch.org/whl/cpu}
    say "installing into $venv (once; some minutes)"
    "$1" -m venv --clear "$venv"
    [ -z "$index" ] || "${pip[@]}" install --retries 1 --timeout 10 --no-deps --index-url "$index" \
        -c "$root/constraints.txt" torch || say "no torch from $index; taking the default one"
    "${pip[@]}" install -c "$root/constraints.txt" -e "$root[test]"
    has_packages "$venv/bin/python" || { say "pip installed less than the study needs: look at its settings"; exit 1; }
    printf '%s\n' "$2" > "$venv/.installed"   # last, so that an interrupted installation is done again
}

case $root in *[:$]*) say "no Python environment works in a folder with : or \$ in its path: move $root"; exit 2 ;; esac
setup_only=no arguments=()
for argument; do
    case $argument in
        -h | --help) usage; python=$(find_base) || exit 0; study "$python" --help ;;
        --setup-only) setup_only=yes ;;
        *) arguments+=("$argument") ;;
    esac
done

base=""
python=$(has_packages python) || python=$(has_packages python3) || base=$(find_base)
(study "${base:-$python}" --dry-run "${arguments[@]}") >/dev/null || exit 2   # mistakes, before a long installation
if [ -n "$base" ]; then
    python=$venv/bin/python
    lock=$(cat "$root/pyproject.toml" "$root/constraints.txt"; echo "$root")   # a changed or moved project: anew
    if [ "$(cat "$venv/.installed" 2>/dev/null)" != "$lock" ] || ! has_packages "$python" >/dev/null; then
        install "$base" "$lock" >&2
    fi
fi
[ ! -e "$root/.git" ] || git -C "$root" config filter.nbstripout.clean "'$python' -m nbstripout --keep-id \
    --extra-keys metadata.language_info.version" || true   # see .gitattributes
[ "$setup_only" = no ] || { echo "$python"; exit 0; }
study "$python" "${arguments[@]}"
