"""Nothing in a figure overlaps or is cut off."""

import itertools

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text


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
    boxes = [(f"text {t.get_text()!r}", t.get_window_extent(renderer)) for t in texts if t not in undrawn]
    boxes += [("legend", legend.get_window_extent(renderer)) for legend in legends]
    boxes += [("axes", axes.get_window_extent(renderer)) for axes in figure.axes]
    width, height = figure.bbox.size
    for name, box in boxes:
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= 1, f"{name} is cut off"
    for (name, box), (other, other_box) in itertools.combinations(boxes, 2):
        assert not box.overlaps(other_box), f"{name} overlaps {other}"
