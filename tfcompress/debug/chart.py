"""A bar for each layer: what its own rounding costs."""

import math

import numpy as np

from tfcompress import plots
from tfcompress.debug.differences import decibels

# A longer list draws its worst.
SHOWN = 60


def bars(debug):
    """Bar chart of the ranked errors, PNG bytes."""
    shown = debug.layers[:SHOWN]
    values = [layer.own.sqnr_db for layer in shown]
    finite = [0.0, *filter(math.isfinite, values)]
    lengths = np.clip(values, min(finite), max(finite))
    figure, axes = plots._figure(6.4, 1.3 + 0.26 * len(shown))
    for label, color, of_weights in (
        ("mostly by rounded weights", plots._COLORS[3], True),
        ("mostly by the rounded output", plots._COLORS[1], False),
    ):
        places = [i for i, row in enumerate(shown) if _by_weights(row) is of_weights]
        axes.barh(places, lengths[places], color=color, height=0.7, label=label)
    for place, (row, length) in enumerate(zip(shown, lengths, strict=True)):
        text = f" {decibels(row.own)}"
        axes.text(max(length, 0), place, text, fontsize=7, va="center")
    names = [
        row.name if len(row.name) <= 32 else f"...{row.name[-29:]}" for row in shown
    ]
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.margins(x=0.08)
    hidden = len(debug.layers) - len(shown)
    of_all = f", {len(shown)} worst of {len(debug.layers)}" if hidden else ""
    axes.set_xlabel(f"signal to own rounding noise, dB ({debug.model}{of_all})")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return plots._png(figure)


def _by_weights(row):
    return row.weights is not None and row.weights.sqnr_db < row.output.sqnr_db
