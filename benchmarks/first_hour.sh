#!/usr/bin/env bash
# The first hour on a GPU: whether kdbench trains there as on the CPU, what limits it, and what becomes of failures.
#
#   benchmarks/first_hour.sh [STEP…]          DEVICE=cuda or cpu, TINY=1, OUT=FOLDER, PEER=a checkout of RepDistiller
#
# Each step takes less than ten minutes and can be repeated: give its name. Without names all steps run that have not passed yet,
# so the script resumes where it was stopped. Each leaves STEP.json in OUT; page.md shows all. Exit code 1 where one has failed.
# DEVICE=cpu TINY=1 tries the script itself where there is no GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
export DEVICE=${DEVICE:-cuda} TINY=${TINY:-} PEER=${PEER:-}
export OUT=${OUT:-.venv/first-hour-$DEVICE${TINY:+-tiny}}
mkdir -p "$OUT"

for step in ${@:-$("$python" benchmarks/first_hour.py todo)}; do
  timeout --kill-after=30 "${LIMIT:-600}" "$python" benchmarks/first_hour.py run "$step" ||
    "$python" benchmarks/first_hour.py ended "$step" "$?"
done
"$python" benchmarks/first_hour.py page
