"""The figure of accuracy against latency."""
import pytest
from matplotlib.figure import Figure
from PIL import Image
from test_pareto import point

from timm_rs.errors import UserError
from timm_rs.study.figure import FAMILIES, draw, in_words
from timm_rs.study.pareto import Panel, paper_panel


def drawn(folder, *panels):
    """The figure of `panels`, which p.png in `folder` is."""
    figures = []
    save = Figure.savefig
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, 'savefig', lambda self, *arguments, **options: (
            figures.append(self), save(self, *arguments, **options)))
        draw(panels, folder / 'p.png')
    return figures[0]


def test_figures_have_every_label_and_never_two_in_one_place(tmp_path):
    panel = paper_panel('tpuv3')
    figure = drawn(tmp_path, panel, Panel('measured', panel.points[:5]))
    for axis, points in zip(figure.axes, (panel.points, panel.points[:5]), strict=True):
        labels = [text for text in axis.texts if text.get_text()]
        words = [text.get_text() for text in labels]
        assert {one.label for one in points} <= {word.partition(':')[0] for word in words}
        boxes = [text.get_window_extent() for text in labels]
        frame = axis.get_window_extent()
        for number, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:number]), words[number]
            assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    assert 'published in the paper' in figure.axes[0].get_ylabel()
    assert Image.open(tmp_path / 'p.png').size[0] > 800


def test_a_speed_up_without_room_on_its_arrow_is_told_where_the_arrow_begins(tmp_path):
    panel = Panel('x', [point('EfficientNet', 'B4@380', 1.1, 82.9), point('ResNet-RS', '152@256', 1, 83),
                        point('EfficientNet', 'B7@600', 9, 84.7), point('ResNet-RS', '50@160', 0.1, 78.8)])
    draw([panel], tmp_path / 'x.svg')
    assert '<!-- B4@380: 1.1× -->' in (tmp_path / 'x.svg').read_text()


def test_slower_is_called_slower_and_what_is_dominated_is_hollow_in_its_own_colour(tmp_path):
    assert [in_words(ratio) for ratio in (2.71, 1, 0.5)] == ['2.7×', '1.0×', '2.0× slower']
    points = [point('EfficientNet', 'B4@380', 1, 82.9), point('ResNet-RS', '152@256', 4, 82)]
    figure = drawn(tmp_path, Panel('x', points))
    faces = {line.get_color(): line.get_markerfacecolor() for line in figure.axes[0].lines if line.get_marker() == 'o'}
    assert faces == {FAMILIES['EfficientNet']: FAMILIES['EfficientNet'], FAMILIES['ResNet-RS']: 'white'}


def test_a_ratio_of_times_is_as_long_in_every_panel(tmp_path):
    one, two = (Panel('x', [point('ResNet-RS', '50@160', 1, 78.8), point('ResNet-RS', '152@256', end, 83)])
                for end in (2, 300))
    widths = [axis.get_xlim()[1] / axis.get_xlim()[0] for axis in drawn(tmp_path, one, two).axes]
    assert widths[0] == pytest.approx(widths[1]) and widths[0] > 300


def test_svg_is_the_same_again(tmp_path):
    panel = Panel('x', [point('ResNet-RS', '50@160', 1, 78.8), point('EfficientNet-RS', 'B4@192', 2, 80, True)])
    for name in ('a.svg', 'b.svg'):
        draw([panel], tmp_path / name)
    assert (tmp_path / 'a.svg').read_bytes() == (tmp_path / 'b.svg').read_bytes()


def test_other_formats_and_places_are_refused(tmp_path):
    with pytest.raises(UserError, match='ends with .png or .svg'):
        draw([], tmp_path / 'x.pdf')
    with pytest.raises(UserError, match='cannot be written'):
        draw([Panel('x', [point('ResNet-RS', '50@160', 1, 78.8)])], tmp_path / 'none/x.svg')
