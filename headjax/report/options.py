"""What a report shows, and how."""

from dataclasses import dataclass

from headjax.options import Options, Words, option

# Of matplotlib's maps those whose lightness rises or falls throughout.
COLORS = ("viridis", "cividis", "magma", "inferno", "plasma", "Blues", "Greys")


@dataclass(frozen=True, kw_only=True)
class Report(Options):
    """How results are told; changes no number.

    Attributes:
      threshold: a head implements a relation above this score.
      count_suppression: whether implementing a relation by suppression gives a head its category.
      latex: also write the table of correlations in LaTeX.
      circuits: marks on the heat maps, as `RELATION=SOURCE`, where SOURCE is a published circuit
        (`circuit_reuse`), a file of heads, or a head (`L9H6`); a SOURCE alone marks every panel.
      heat_maps: relations to draw; empty means the two with the highest score, and every curve.
      orientation: "layer_x" (layers along x) or "head_x", of heat maps.
      origin: "lower" or "upper", where the y axis of a figure has its 0.
      formats: files of each figure, of "png", "pdf" and "svg".
      size: of figures' panels, as a factor of the usual one; text keeps its size.
      title: of figures' panels, or above the category map's; `{}` stands for the usual one.
      colors: of scores from 0 to 1, one of matplotlib's maps.
    """

    threshold: float = option(0.15, least=0, most=1)
    count_suppression: bool = True
    latex: bool = False
    circuits: Words = ()
    heat_maps: Words = ()
    orientation: str = option("layer_x", choices=("layer_x", "head_x"))
    origin: str = option("lower", choices=("lower", "upper"))
    formats: Words = option(("png", "pdf"), choices=("png", "pdf", "svg"), some=True)
    size: float = option(1.0, least=0.25, most=4)
    title: str = "{}"
    colors: str = option("viridis", choices=COLORS)
