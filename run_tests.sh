#!/usr/bin/env bash
# Runs all tests in the environment of run_all.sh, setting it up first if needed. Arguments go to pytest.
set -euo pipefail
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")"
python=$(./run_all.sh --setup-only)
export PYTHONUTF8=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"   # processes that tests start get this very ikmlib
exec "$python" -m pytest "$@"
