#!/usr/bin/env bash
# The core's tests on the oldest versions that pyproject.toml allows, or on what uv.lock names under another Python:
#   tools/test_oldest.sh                oldest PyTorch, NumPy, pytest and Hypothesis on Python 3.11
#   tools/test_oldest.sh locked 3.13    uv.lock's on Python 3.13 (any interpreter that uv finds)
# The environment lies in build/; about 3 GB are downloaded the first time.
set -euo pipefail
cd "$(dirname "$0")/.."
which=${1:-oldest} python=${2:-3.11}
folder=build/$which-$python
tools=(pytest pytest-timeout hypothesis)
uv venv --quiet --clear --python "$python" "$folder"
if [ "$which" = oldest ]; then
  # NumPy too, since PyTorch 2.9 warns without it.
  mapfile -t tools < <(grep -oE '"(hypothesis|pytest|pytest-timeout)>=[0-9.]+"' pyproject.toml | tr -d '"')
  uv pip install --quiet --python "$folder" --resolution lowest-direct '.[nqp]' "${tools[@]}"
else
  uv export --frozen --quiet --all-extras --all-groups --no-emit-project --no-hashes -o "$folder/locked.txt"
  uv pip install --quiet --python "$folder" --constraints "$folder/locked.txt" '.[nqp]' "${tools[@]}"
fi
"$folder/bin/python" -c "import sys, torch; print('Python', sys.version.split()[0], 'PyTorch', torch.__version__)"
# What needs no other package; compiled code is left out, since PyTorch has a C++ compiler of its own mind in each release.
OMP_NUM_THREADS=1 "$folder/bin/python" -m pytest -q -p no:cacheprovider -m "not slow and not distributed" \
  tests/test_reference.py tests/test_rounds.py tests/test_average.py tests/test_collapse.py tests/test_modes.py \
  tests/test_start.py tests/test_checkpoint.py tests/test_families.py tests/test_factors.py tests/test_lora.py \
  tests/test_parallel.py tests/test_statistics.py tests/test_several_optimizers.py tests/test_amp.py tests/nqp
