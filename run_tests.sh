#!/usr/bin/env bash
# Runs all tests in the environment of run_all.sh, setting it up first if needed. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
python=$(./run_all.sh --setup-only)
exec "$python" -m pytest "$@"
