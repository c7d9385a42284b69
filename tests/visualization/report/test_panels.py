"""Small figures of the page show all that they say."""

import numpy as np
import pytest

from cjepa.visualization.report.panels import heat_figure


@pytest.mark.parametrize("largest", [0.0012, 0.2, 0.37, 84.0])
def test_the_label_of_a_heat_map_is_not_cut(largest: float) -> None:
    """However many digits its scale has."""
    figure = heat_figure(np.linspace(0, largest, 64).reshape(8, 8), "mean squared error")
    figure.draw_without_rendering()
    width, height = figure.get_size_inches()
    drawn = figure.get_tightbbox()
    assert 0 <= drawn.x0 <= drawn.x1 <= width
    assert 0 <= drawn.y0 <= drawn.y1 <= height
