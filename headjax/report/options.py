"""What a report shows, and how."""

from dataclasses import dataclass

from headjax.errors import InputError
from headjax.options import Options, Words, option

# Of matplotlib's maps those whose lightness rises or falls throughout.
COLORS = ("viridis", "cividis", "magma", "inferno", "plasma", "Blues", "Greys")


@dataclass(frozen=True, kw_only=True)
class Report(Options):
    """How results are told; changes no number.

    Attributes:
      threshold: a head implements a relation above this score.
      count_suppression: whether implementing a relation by suppression gives a head its category.
      tables: forms besides CSV of every table but scores.csv, of "tex" (LaTeX, booktabs), "md" (Markdown) and
        "parquet".
      circuits: marks on the heat maps, as `RELATION=SOURCE`, where SOURCE is a published circuit
        (`circuit_reuse`), a file of heads, or a head (`L9H6`); a SOURCE alone marks every panel.
      heat_maps: relations to draw; empty means those with marks of their own, or else the two with the
        highest score, and every curve.
      orientation: "layer_x" (layers along x) or "head_x", of heat maps.
      origin: "lower" or "upper", where the y axis of a figure has its 0.
      formats: files of each figure, of "png", "pdf" and "svg".
      size: of figures' panels, as a factor of the usual one; text keeps its size.
      width: of figures: "free", or of a paper's one "column" (3.5 inches) or both, a "page" (7.2).
      transparent: whether figures' ground is left out.
      title: of figures' panels, or above the category map's; `{}` stands for the usual one.
      colors: of scores from 0 to 1, one of matplotlib's maps.
      scale: of these colours: "fixed" to 0 to 1, or "auto", up to a panel's largest score.
      annotate: how many heads with the largest numbers are named on each heat map.
      palette: of categories: "clear", which colour-blind readers tell apart, or "published".
      several: how heads of several categories are told apart besides by "color": "hatching" or "digits".
    """

    threshold: float = option(0.15, least=0, most=1)
    count_suppression: bool = True
    tables: Words = option((), choices=("tex", "md", "parquet"))
    circuits: Words = ()
    heat_maps: Words = ()
    orientation: str = option("layer_x", choices=("layer_x", "head_x"))
    origin: str = option("lower", choices=("lower", "upper"))
    formats: Words = option(("png", "pdf"), choices=("png", "pdf", "svg"), some=True)
    size: float = option(1.0, least=0.25, most=4)
    width: str = option("free", choices=("free", "column", "page"))
    transparent: bool = False
    title: str = "{}"
    colors: str = option("viridis", choices=COLORS)
    scale: str = option("fixed", choices=("fixed", "auto"))
    annotate: int = option(0, least=0, most=20)
    palette: str = option("clear", choices=("clear", "published"))
    several: str = option("color", choices=("color", "hatching", "digits"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size != 1 and self.width != "free":
            rule = "field 'size' has an effect where width is free"
            raise InputError(f"{rule}; got size={self.size:g} and width={self.width!r}")
