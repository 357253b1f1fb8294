"""Nothing in a figure overlaps or is cut off."""

import itertools

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

LEAST_GAP = 0.03  # inches


def assert_tidy(figure) -> None:
    """Every text, legend and pair of axes lies inside the figure, and none of them touch each other."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    legends = list(figure.legends)
    inside = {text for legend in legends for text in legend.findobj(Text)}
    texts = [t for t in figure.findobj(Text) if t not in inside and t.get_visible() and t.get_text().strip()]
    # An axis keeps tick labels for ticks that are outside its limits, and does not draw them.
    undrawn = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            undrawn |= {
                t
                for tick in axis.get_major_ticks()
                if not low <= tick.get_loc() <= high
                for t in tick.findobj(Text)
            }
    # What is written into a panel lies inside it, and touches no other writing there.
    written = {text: text.get_window_extent(renderer) for axes in figure.axes for text in axes.texts}
    for text, box in written.items():
        panel = text.axes.get_window_extent(renderer)
        assert panel.x0 <= box.x0 < box.x1 <= panel.x1, f"{text.get_text()!r} leaves its panel"
        assert panel.y0 <= box.y0 < box.y1 <= panel.y1, f"{text.get_text()!r} leaves its panel"
    for one, other in itertools.combinations(written, 2):
        assert not written[one].overlaps(written[other]), f"{one.get_text()!r} overlaps {other.get_text()!r}"
    texts = [text for text in texts if text not in written]
    boxes = [(f"text {t.get_text()!r}", t.get_window_extent(renderer)) for t in texts if t not in undrawn]
    boxes += [("legend", legend.get_window_extent(renderer)) for legend in legends]
    boxes += [("axes", axes.get_window_extent(renderer)) for axes in figure.axes]
    width, height = figure.bbox.size
    for name, box in boxes:
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= 1, f"{name} is cut off"
    for (name, box), (other, other_box) in itertools.combinations(boxes, 2):
        assert not box.overlaps(other_box), f"{name} overlaps {other}"
    assert_apart(figure, renderer)


def assert_apart(figure, renderer) -> None:
    """A panel, or a colour bar, with its numbers and labels keeps away from the next, with its own."""
    gap = LEAST_GAP * figure.dpi
    whole = [axes.get_tightbbox(renderer) for axes in figure.axes]
    for one, other in itertools.combinations(whole, 2):
        beside = one.y0 < other.y1 and other.y0 < one.y1
        if beside:
            left, right = sorted((one, other), key=lambda box: box.x0)
            assert right.x0 - left.x1 >= gap, f"panels are {right.x0 - left.x1:.0f} pixels apart"
