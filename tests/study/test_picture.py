"""What all figures need; test_figure.py and test_scaling_figure.py have labels and files of real ones."""
import pytest

from timm_rs.study.picture import beads, plain, write


def test_numbers_are_plain():
    assert [plain(value, 0) for value in (0.05, 1.0, 20000.0)] == ['0.05', '1', '20000']


@pytest.fixture
def axis():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(4, 4))
    FigureCanvasAgg(figure)
    return figure.subplots()


def test_a_label_goes_where_it_covers_least(axis):
    import numpy as np
    place = axis.transData.transform
    taken = beads(np.array(place((0.5, 0.5))), np.array(place((0.9, 0.5))))  # a line to the right
    spots = [((0.5, 0.5), (8, 0)), ((0.5, 0.5), (-8, 0))]
    assert write(axis.figure, axis, spots, 'left', 'black', taken, 8)
    assert write(axis.figure, axis, spots[::-1], 'right', 'black', taken[:], 8) and len(axis.texts) == 2
    left, right = axis.texts
    assert left.get_horizontalalignment() == 'right' and right.get_horizontalalignment() == 'right'
    assert taken[-1].overlaps(left.get_window_extent())


def test_a_ratio_that_would_cover_something_is_not_written(axis):
    import numpy as np
    taken = beads(np.array(axis.transData.transform((0, 0.5))), np.array(axis.transData.transform((1, 0.5))))
    assert not write(axis.figure, axis, [((0.5, 0.5), (0, 0))], '2×', 'black', taken, 8, is_ratio=True)
    assert not axis.texts
