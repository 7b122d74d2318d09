#!/usr/bin/env bash
# Runs all tests in the environment of run_all.sh, setting it up first if needed. Arguments go to pytest.
set -euo pipefail
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")"
python=$(./run_all.sh --setup-only)
export PYTHONUTF8=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"   # processes that tests start get this very ikmlib
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"   # each of the two processes below has a core
exec "$python" -m pytest -n 2 --dist loadfile "$@"   # two processes, a file of tests in one of them
