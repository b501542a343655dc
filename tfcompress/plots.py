"""Plots of measurements, drawn without a window or global state.

Example:
    ```python
    png = accuracy_against([before, after], "latency_ms", "latency, ms")
    ```
"""

import io

_COLORS = ("#4c5a6b", "#2a78d6", "#1f9d6b", "#e07b39", "#8e5bc0", "#c2417c", "#7a8a1f")

_LINES = ("-", "--", ":", "-.")


def accuracy_against(measurements, attribute, label, unit=1.0):
    """Scatter plot of accuracy against a cost, each point with its name.

    Args:
        measurements: Sequence of `Measurement` with an accuracy.
        attribute: Field on the horizontal axis.
        label: Its label, unit included.
        unit: Factor from the field to the label's unit.

    Returns:
        PNG bytes, or `None` if no measurement has both figures.
    """
    points = [
        (
            getattr(m, attribute) * unit,
            100 * m.accuracy,
            m.name,
            _COLORS[i % len(_COLORS)],
        )
        for i, m in enumerate(measurements)
        if m.accuracy is not None and getattr(m, attribute) is not None
    ]
    if not points:
        return None
    figure, axes = _figure(5.6, 4.2)
    for x, y, name, color in points:
        axes.plot(x, y, "o", markersize=10, color=color, label=name, zorder=3)
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    # Ten points at least, so that differences of a tenth do not look like any.
    heights = [y for _, y, _, _ in points]
    middle, span = (max(heights) + min(heights)) / 2, max(heights) - min(heights)
    half = max(5.0, 0.65 * span)
    axes.set_ylim(middle - half, middle + half)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    axes.set_xlabel(label)
    axes.set_ylabel("accuracy, %")
    return _png(figure)


def sparsity_per_kernel(measurement):
    """Bar chart of the fraction of zeros in each kernel, in the order of the model.

    Args:
        measurement: A `Measurement` with `kernels`.

    Returns:
        PNG bytes, or `None` if it has no kernels.
    """
    if not measurement.kernels:
        return None
    names = [_short(path) for path, _, _ in measurement.kernels]
    figure, axes = _figure(5.6, 0.9 + 0.26 * len(names))
    axes.barh(
        range(len(names)),
        [100 * sparsity for _, _, sparsity in measurement.kernels],
        color=_COLORS[1],
        height=0.7,
    )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"zeros, % ({measurement.name})")
    return _png(figure)


def sensitivity(found):
    """Curves of a metric against the sparsity of each kernel alone.

    Args:
        found: A `Sensitivity`.

    Returns:
        PNG bytes.
    """
    unit = 100 if found.metric == "accuracy" else 1
    rows = -(-len(found.kernels) // 2)
    figure, axes = _figure(6.4, 3.6 + 0.18 * rows)
    sparsities = [0, *(100 * s for s in found.sparsities)]
    for index, kernel in enumerate(found.kernels):
        axes.plot(
            sparsities,
            [unit * value for value in (found.baseline, *kernel.values)],
            marker="o",
            markersize=3,
            color=_COLORS[index % len(_COLORS)],
            linestyle=_LINES[index // len(_COLORS) % len(_LINES)],
            label=_short(kernel.path),
        )
    axes.set_xlabel("zeros in one kernel, %")
    axes.set_ylabel("accuracy, %" if unit == 100 else found.metric)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return _png(figure)


def _short(path):
    """The part of a long converter-made name that a person would recognise."""
    first = path.split(";")[0].removesuffix("/kernel")
    return first if len(first) <= 32 else "..." + first[-29:]


def _figure(width, height):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
