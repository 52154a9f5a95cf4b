"""What a table can show of its cells. Read by the command line at every start, so it imports nothing."""

from __future__ import annotations

from enum import StrEnum


TOLERANCE = 0.5
"""Points by which a mean may differ from a printed number without deviation and still agree. SemCKD's printed deviations
have a median of 0.19; one printed trial and the mean of three then differ by less than 2 · 0.19 · √(1 + 1/3) = 0.44 in 19
cases of 20, if both are trained alike."""


class View(StrEnum):
    """What a table's cells show."""

    measured = "measured"
    published = "published"
    both = "both"
    difference = "difference"
    verdict = "verdict"
