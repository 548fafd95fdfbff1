"""Draw every figure of the book, in one style and one palette.

Each function takes data and returns a matplotlib Figure.
"""

from ddpp.book.figures.charts import curves, scores, shares, use_style
from ddpp.book.figures.findings import (
    ablation,
    ceiling,
    comparison,
    comparisons,
    correlations,
    judged,
    ranking,
    rocs,
    shadows,
    turning,
)
from ddpp.book.figures.method import (
    approach,
    by_hand,
    draw_approach,
    draw_miniature,
    draw_pairs,
    means,
    pairs,
    plane,
    toward,
)
from ddpp.book.figures.sets import before_after, history, layers, pictures, play, progress

__all__ = [
    "ablation",
    "approach",
    "before_after",
    "by_hand",
    "ceiling",
    "comparison",
    "comparisons",
    "correlations",
    "curves",
    "draw_approach",
    "draw_miniature",
    "draw_pairs",
    "history",
    "judged",
    "layers",
    "means",
    "pairs",
    "pictures",
    "plane",
    "play",
    "progress",
    "ranking",
    "rocs",
    "scores",
    "shadows",
    "shares",
    "toward",
    "turning",
    "use_style",
]
