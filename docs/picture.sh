#!/usr/bin/env bash
# Takes docs/images/report.png from a finished demo, with headless Chromium:   docs/picture.sh [RESULTS]
set -euo pipefail
cd "$(dirname "$0")/.."
page=$(mktemp --suffix .html)
trap 'rm -f "$page"' EXIT
.venv/bin/kdbench report demo --results "${1:-results}" --only teacher=resnet20 --format html -o "$page"
chromium --headless --no-sandbox --hide-scrollbars --window-size=900,1470 --screenshot=docs/images/report.png "file://$page"
