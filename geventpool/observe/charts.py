"""Small charts as SVG, in text: no script, no style but that of the page around them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["chart"]

_WIDTH, _HEIGHT = 120, 30


def chart(
    label: str,
    *series: tuple[str, Sequence[float]],
    places: int,
    top: float | None = None,
) -> str:
    """A chart that a screen reader calls *label*.

    Each of the *series* is a class of the page's style, and values, oldest first; the first is
    drawn as an area.  There is room for so many *places*, and what is new is at the right.  The top
    edge stands for *top*, or for the highest value if that is more.
    """
    highest = max([top or 0.0, *(value for _, values in series for value in values)])
    shapes = [
        _shape(name, values, places, highest, filled=number == 0)
        for number, (name, values) in enumerate(series)
        if values and max(values) > 0
    ]
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none"'
        f' role="img" aria-label="{escape(label)}">'
        f'<path class="base" d="M0 {_HEIGHT - 0.5}H{_WIDTH}"/>{"".join(shapes)}</svg>'
    )


def _shape(name: str, values: Sequence[float], places: int, highest: float, filled: bool) -> str:
    step = _WIDTH / max(1, places - 1)
    left = _WIDTH - step * (len(values) - 1)
    points = [
        f"{left + step * place:.4g} {_HEIGHT - 1 - (_HEIGHT - 3) * value / highest:.4g}"
        for place, value in enumerate(values)
    ]
    if len(points) == 1:
        points.insert(0, f"{left - step:.4g} {points[0].split()[1]}")
        left -= step
    line = "M" + "L".join(points)
    area = ""
    if filled:
        area = f'<path class="area {name}" d="{line}V{_HEIGHT}H{left:.4g}Z"/>'
    return f'{area}<path class="line {name}" d="{line}"/>'
