"""Which versions of kdbench made the numbers of a table, and whether they may stand in one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from kdbench.errors import KdbenchError


def versions_text(versions: Iterable[str]) -> str:
    """``kdbench 0.1, 0.2; version unknown (3)`` from the version of each number, which is "" where it is not known."""
    counts = Counter(versions)
    unknown = counts.pop("", 0)
    parts = [f"kdbench {', '.join(sorted(counts))}"] if counts else []
    return "; ".join(parts + ([f"version unknown ({unknown})"] if unknown else []))


def check_versions(name: str, versions: Iterable[str]) -> None:
    """Raise KdbenchError for numbers of kdbench versions that differ in more than the last figure."""
    counts = Counter(version for version in versions if version)
    if len({tuple(version.split(".")[:2]) for version in counts}) > 1:
        found = " and ".join(f"{version} ({count})" for version, count in sorted(counts.items()))
        raise KdbenchError(
            f"{name}: its numbers come from kdbench {found}, which may train differently. Leave some out with --only or "
            "--results, run the suite again in a new results folder, or show them together with --mix-versions."
        )
