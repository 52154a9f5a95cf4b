"""What became of runs: one line for each suite, and what failed or is missing in its tables.

    python .ci/tables.py [--tiny] RESULTS SUITE…

Exit code 1 where a run failed, or a cell of a suite's tables is empty without a reason or lacks what was planned.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from kdbench.reporting.report import Report, measured_report
from kdbench.store.store import Store
from kdbench.suite.load import load_suites


def main(results: Path, names: Sequence[str], *, tiny: bool) -> int:
    """Print the lines; returns the exit code."""
    wrong = 0
    for suite in load_suites(names, tiny=tiny):
        report = measured_report([suite], [Store(results)])
        done = (report.runs["status"] == "done").sum()
        cells = cells_of(report)
        lacking = cells[(cells["n"] < cells["planned"]) | (cells["mean"].isna() & (cells["note"] == ""))]
        filled = cells["mean"].count()
        print(
            f"{suite.name}: {done} of {len(report.runs)} runs, {len(suite.measurements)} measurements, "
            f"{filled} cells filled, {len(cells) - filled} empty" + (f", {len(lacking)} WRONG" if len(lacking) else "")
        )
        for place, note in zip(lacking["place"], lacking["note"], strict=True):
            print(f"  {place}: {note or 'empty'}")
        wrong += len(lacking) + len(report.runs) - done
    return int(wrong > 0)


def cells_of(report: Report) -> pd.DataFrame:
    """The cells of all tables by their ``place``."""
    frames = []
    for title, cells in report.frames().items():
        names = cells.select_dtypes(["object", "string"]).drop(columns=["note", "verdict"], errors="ignore")
        frames.append(cells.assign(place=[f"{title}, {' / '.join(filter(None, name))}" for name in names.to_numpy()]))
    return pd.concat(frames)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("results", type=Path)
    parser.add_argument("suites", nargs="+")
    options = parser.parse_args()
    sys.exit(main(options.results, options.suites, tiny=options.tiny))
