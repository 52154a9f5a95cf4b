"""Matrices as pictures: how they are arranged and what is written into them."""

import numpy as np
import pytest

from kdbench.plots.heatmaps import draw_maps


def written(axes):
    return [(text.get_text(), text.get_color()) for text in axes.texts]


@pytest.mark.parametrize(("count", "across"), [(1, 1), (3, 3), (4, 4), (5, 4)])
def test_at_most_four_matrices_lie_in_a_row(count, across):
    maps = {f"map {at}": (np.eye(2), ["r", "s"], ["x", "y"]) for at in range(count)}
    *axes, scale = draw_maps(maps, "attention").axes
    assert (len(axes), axes[0].get_subplotspec().get_gridspec().ncols) == (count, across)
    assert scale.get_ylabel() == "attention"


def test_numbers_are_white_on_the_dark_half_of_the_scale_and_black_from_its_middle_on():
    (axes, _) = draw_maps({"a": (np.array([[0.49, 0.5, 1.0]]), ["r"], ["x", "y", "z"])}, "", low=0.0, high=1.0).axes
    assert written(axes) == [("0.49", "white"), ("0.50", "black"), ("1.00", "black")]


def test_counts_are_whole_and_zeros_are_left_out():
    (axes, _) = draw_maps({"a": (np.array([[0.0, 2.0], [7.0, 8.0]]), ["r", "s"], ["x", "y"])}, "").axes
    assert written(axes) == [("2", "white"), ("7", "black"), ("8", "black")]


def test_the_scale_goes_from_the_least_to_the_largest_number_of_all_matrices():
    maps = {"a": (np.array([[0.25]]), ["r"], ["x"]), "b": (np.array([[0.75]]), ["r"], ["x"])}
    *axes, _ = draw_maps(maps, "").axes
    assert [each.images[0].get_clim() for each in axes] == [(0.25, 0.75)] * 2


def test_long_names_of_columns_are_turned():
    for names, turned in ((["x", "yy"], 0), (["x", "yyy"], 90)):
        (axes, _) = draw_maps({"a": (np.eye(2), ["r", "a long row"], names)}, "").axes
        assert {label.get_rotation() for label in axes.get_xticklabels()} == {turned}
        assert {label.get_rotation() for label in axes.get_yticklabels()} == {0}
