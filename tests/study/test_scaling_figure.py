"""Figures 2 and 3 of a scaling study."""
from itertools import combinations

import numpy as np
import pytest
from test_results import result

from timm_rs.errors import UserError
from timm_rs.study.scaling_figure import draw_power_law, draw_series

DRAW = {'power law': draw_power_law, 'series': draw_series}


def study(trainings=('',), sizes=(64,), seeds=3, broken=False):
    """Depth and width from a common base, without noise but for the seeds."""
    runs = []
    for training in trainings:
        for size in sizes:
            regime = f'{training} img_size={size}'.strip() if len(sizes) > 1 else training
            for series, depth, width, cost in (('depth+width', 1, 1, 4), ('depth', 2, 1, 8), ('depth', 3, 1, 16),
                                               ('width', 1, 2, 7), ('width', 1, 3, 14), ('depth', 4, 1, 32)):
                cost = cost * (size / 64) ** 2
                error = 40 * cost ** -0.2 * (1.5 if broken and depth == 4 else 1)
                runs += [result(series, cost, 100 - error + (seed - (seeds - 1) / 2) / 10, seed, regime, img_size=size,
                                params_m=depth * width ** 2, step_ms=9 * cost,
                                axes={'depth': str(depth), 'width': str(width)}) for seed in range(seeds)]
    return runs


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is saved."""
    import matplotlib.figure
    saved = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(matplotlib.figure.Figure, 'savefig', lambda self, *arguments, **options: (
        saved.append(self), save(self, *arguments, **options))[1])
    return saved


@pytest.mark.parametrize('draw', DRAW.values(), ids=DRAW)
@pytest.mark.parametrize('seeds', [1, 3])
def test_labels_name_the_models_and_cover_nothing(draw, seeds, figures, tmp_path):
    draw(study(seeds=seeds), tmp_path / 'x.png', 'digits')
    axis, = figures[0].axes
    words = [text.get_text() for text in axis.texts]
    assert sorted(words) == ['1, 1', '2', '2', '3', '3', '4']
    boxes = [text.get_window_extent() for text in axis.texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    frame = axis.get_window_extent()
    assert all(frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1 for box in boxes)
    assert 'digits' in figures[0].get_suptitle()
    assert len(axis.containers) == 6 and all(point.has_yerr == (seeds > 1 or draw == draw_power_law)
                                             for point in axis.containers)


@pytest.mark.parametrize('draw', DRAW.values(), ids=DRAW)
def test_there_is_a_panel_per_training_and_a_colour_per_image_size(draw, figures, tmp_path):
    draw(study(('epochs=10', 'epochs=20', 'epochs=30', 'epochs=40'), (32, 64)), tmp_path / 'x.png', 'digits')
    panels = [axis for axis in figures[0].axes if axis.get_visible()]
    assert [axis.get_title() for axis in panels] == ['epochs=10', 'epochs=20', 'epochs=30', 'epochs=40']
    legend, = figures[0].legends
    by_label = dict(zip((text.get_text() for text in legend.get_texts()), legend.legend_handles, strict=True))
    assert {'32 px', '64 px', 'depth', 'width', 'in several series'} <= by_label.keys()
    lines = {line.get_color() for line in panels[0].lines if line.get_linestyle() == '-'}
    assert {by_label['32 px'].get_facecolor()[:3], by_label['64 px'].get_facecolor()[:3]} <= {
        tuple(int(colour[place:place + 2], 16) / 255 for place in (1, 3, 5)) for colour in lines}
    assert not legend.get_window_extent().overlaps(panels[-1].get_tightbbox())


def test_depth_is_solid_and_width_dashed(figures, tmp_path):
    draw_series(study(), tmp_path / 'x.png', 'digits', 'step_ms')
    axis, = figures[0].axes
    lines = {line.get_linestyle(): line.get_xdata() for line in axis.lines if len(line.get_xdata()) > 1}
    assert {style: [*costs] for style, costs in lines.items()} == {
        '-': [36, 72, 144, 288], '--': [36, 63, 126]}
    assert axis.get_xlabel() == 'ms per update (log scale)'


@pytest.mark.parametrize('broken', [False, True])
def test_the_fit_is_drawn_and_its_break_marked(broken, figures, tmp_path):
    draw_power_law(study(broken=broken), tmp_path / 'x.png', 'digits')
    axis, = figures[0].axes
    assert ('breaks at 64' in [text.get_text() for text in axis.texts]) == broken
    fit, = (line for line in axis.lines if len(line.get_xdata()) > 10)
    assert fit.get_ydata()[-1] == pytest.approx(40 * 32 ** -0.2, rel=0.01)  # as the smaller points have it


def test_many_image_sizes_have_a_colour_each(figures, tmp_path):
    draw_series([result(cost=size, img_size=size, top1=60 + size / 10) for size in range(32, 132, 10)],
                tmp_path / 'x.png', 'digits')
    colours = {tuple(np.ravel(point[0].get_color())) for point in figures[0].axes[0].containers}
    assert len(colours) == 10


@pytest.mark.parametrize('draw', DRAW.values(), ids=DRAW)
def test_a_single_run_is_drawn_and_none_refused(draw, tmp_path):
    draw([result()], tmp_path / 'x.svg', 'digits')
    draw([result()], tmp_path / 'y.svg', 'digits')
    assert (tmp_path / 'x.svg').read_bytes() == (tmp_path / 'y.svg').read_bytes()
    with pytest.raises(UserError, match='no run has finished yet'):
        draw([], tmp_path / 'x.svg', 'digits')
    with pytest.raises(UserError, match='ends with .png or .svg'):
        draw([result()], tmp_path / 'x.pdf', 'digits')
    with pytest.raises(UserError, match='cannot be written'):
        draw([result()], tmp_path / 'none/x.png', 'digits')
