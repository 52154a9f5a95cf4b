#!/usr/bin/env bash
# Takes docs/images/report.png from a finished demo, with headless Chromium:   docs/picture.sh [RESULTS]
set -euo pipefail
cd "$(dirname "$0")/.."
page=$(mktemp --suffix .html)
trap 'rm -f "$page"' EXIT
.venv/bin/kdbench report demo --results "${1:-results}" --format html -o "$page"
chromium --headless --no-sandbox --hide-scrollbars --window-size=1400,1700 --screenshot=docs/images/report.png "file://$page"
