import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdbench.plots.style import styled


BASELINE = Path(__file__).parent / "baseline"
TOLERANCE = {True: 0.2, False: 6.0}
"""Root mean square of the difference in levels of 255: by the baseline's version of matplotlib, and by another one."""


def pixels(figure, path):
    """A figure as it looks at a low resolution, [H, W, 3]."""
    with styled():
        figure.savefig(path, dpi=60)
    return np.asarray(Image.open(path).convert("RGB"), dtype=float)


def distance(a, b):
    return float(np.sqrt(np.square(a - b).mean())) if a.shape == b.shape else float("inf")


@pytest.fixture
def differ(tmp_path):
    """Whether two figures look different."""
    return lambda a, b: distance(pixels(a, tmp_path / "a.png"), pixels(b, tmp_path / "b.png")) > TOLERANCE[False]


@pytest.fixture
def looks_as_before(tmp_path):
    """Compare a figure with the picture of a name in baseline/; one that is not there is written, to be looked at."""

    def compare(figure, name):
        file = BASELINE / f"{name}.png"
        now = pixels(figure, tmp_path / "now.png")
        if not file.exists():
            shutil.copy(tmp_path / "now.png", file)
            pytest.fail(f"{file} is new: look at it, and run the test again")
        with Image.open(file) as image, Image.open(tmp_path / "now.png") as drawn:
            same = image.info["Software"] == drawn.info["Software"]
            before = np.asarray(image.convert("RGB"), dtype=float)
        assert distance(now, before) < TOLERANCE[same]

    return compare
