"""Each method has one style that readers with any colour vision tell apart, and files are the same at each writing."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from kdbench.catalogue.palette import colours, named_styles
from kdbench.errors import BadInput
from kdbench.plots.style import (
    Picture,
    legend,
    line_handle,
    method_style,
    method_styles,
    note,
    panels,
    shades,
    styled,
    title,
    write,
)
from kdbench.suite.protocol import bundled_protocol, protocol_names


VISIONS = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]]
    ),
}
"""Machado, Oliveira & Fernandes (2009), for linear RGB, at full severity."""


def linear(colour):
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(colour, vision):
    """CIE L*a*b* of a colour as it is seen."""
    seen = np.clip(VISIONS[vision] @ linear(colour), 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
    x, y, z = np.where((r := xyz / [0.9505, 1, 1.089]) > 0.008856, np.cbrt(r), 7.787 * r + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(a, b):
    """WCAG's contrast of two colours."""
    dark, light = sorted(float(linear(each) @ [0.2126, 0.7152, 0.0722]) + 0.05 for each in (a, b))
    return light / dark


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("ground", [0, 1])
def test_any_two_colours_differ_for_any_vision_on_light_and_dark(ground, vision):
    for (a, first), (b, second) in combinations(colours().items(), 2):
        assert np.linalg.norm(lab(first[ground], vision) - lab(second[ground], vision)) > 10, (a, b)


def test_lines_can_be_seen_on_light_and_dark():
    for name, (light, dark) in colours().items():
        assert min(contrast(light, "#ffffff"), contrast(dark, "#14181f")) >= 3, name


def test_no_two_methods_share_colour_line_and_marker():
    assert len(set(named_styles().values())) == len(named_styles())


def test_every_bundled_method_has_its_style():
    named = {method for name in protocol_names() for method in bundled_protocol(name).terms}
    assert named <= named_styles().keys(), named - named_styles().keys()


def test_a_method_of_ones_own_and_a_sweep_keep_their_style():
    assert method_style("semckd[beta=100]") == method_style("semckd[beta=400]") == method_style("semckd")
    assert method_style("my-loss") == method_style("my-loss") != method_style("my-other-loss")
    assert method_style("my-loss").line not in {method_style(name).line for name in named_styles()}


def test_methods_in_one_picture_differ_and_keep_their_colours():
    names = [
        "kd[weight=1]",
        *(f"kd[weight={at}]" for at in range(2, 12)),
        *(f"own-{at}" for at in range(20)),
        "kd",
        "ega",
    ]
    found = method_styles(names)
    assert list(found) == names
    assert len({style[1:3] for style in found.values()}) == len(names)
    assert (found["kd"], found["ega"]) == (method_style("kd"), method_style("ega"))
    assert all(style.colour == method_style(name).colour for name, style in found.items())


def test_ten_classes_differ():
    assert len({style.colour for style in shades(10)}) == 10
    assert len({style[:3] for style in shades(50)}) == 50


@pytest.fixture
def picture():
    with styled():
        figure, (axes,) = panels(1)
        axes.plot([1, 2], [3, 4])
        legend(figure, [line_handle(method_style("kd"))], ["kd"])
        note(figure, "mean ± sd", "n = 3 trials")
    return Picture(figure, pd.DataFrame({"method": ["kd", "kd"], "x": [1, 2], "mean": [3.0, 4.0]}))


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_equal_pictures_are_equal_files(tmp_path, picture, ending):
    files = [write(picture, tmp_path / name / f"a.{ending}") for name in "xy"]
    assert files[0][0].read_bytes() == files[1][0].read_bytes()
    assert files[0][1].read_text() == "method,x,mean\nkd,1,3\nkd,2,4\n"


def test_another_format_is_refused_before_anything_is_written(tmp_path, picture):
    with pytest.raises(BadInput, match=r"a.jpg: a picture is .png, .svg, .pdf: end the name so"):
        write(picture, tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_said(tmp_path, picture):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot be written: "):
        write(picture, tmp_path / "file" / "a.png")


def test_a_page_has_room_for_so_many_panels():
    with pytest.raises(BadInput, match="41 panels are more than a page takes"):
        panels(41)


@pytest.mark.parametrize(
    ("count", "rows", "across"),
    [(1, 1, 1), (2, 1, 2), (3, 1, 3), (4, 2, 2), (5, 2, 3), (6, 2, 3), (7, 2, 4), (8, 2, 4), (9, 3, 3), (10, 3, 4)],
)
def test_panels_fill_a_grid_of_at_most_four_in_a_row(count, rows, across):
    figure, axes = panels(count, height=1.5)
    grid = axes[0].get_subplotspec().get_gridspec()
    assert (grid.nrows, grid.ncols, len(axes), len(figure.axes)) == (rows, across, count, count)
    assert figure.get_size_inches()[1] == pytest.approx(1.5 * rows + 0.5)


def test_more_panels_than_a_page_takes_are_refused():
    assert len(panels(3, most=3)[1]) == 3
    with pytest.raises(BadInput, match=r"4 panels are more than a page takes \(3\): choose some with --only"):
        panels(4, most=3)


def test_a_title_is_broken_after_fifteen_letters_an_inch_of_its_panel():
    figure, axes = panels(2, wide=True)
    inches = figure.get_size_inches()[0] / 2
    letters = int(15 * inches)
    title(axes[0], "a" * (letters - 2) + " b c\nd")
    assert axes[0].get_title() == "a" * (letters - 2) + " b\nc\nd"
