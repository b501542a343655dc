"""From the histogram of an activation to the range that its integers cover.

The lowest and the highest value seen are seldom the best range: one outlier costs all
other values precision. Each function here trades values clipped against a finer step.
All take `counts`, fixed-width bins between `low` and `high`, and return floats
`(low, high)` with `low <= 0 <= high`, because zero (padding, ReLU) must be exact.

Example:
    ```python
    counts, edges = np.histogram(activations, bins=2048)
    low, high = estimate_range("mse", counts, edges[0], edges[-1], bits=8)
    on_grid = fake_quantize(activations, low, high, bits=8)
    ```

What is common to all:

- Values count as spread evenly over their bin; what is finer than a bin is not seen. A
  bin should be narrower than the best step, as 2048 bins are for 8 bits. With outliers
  a hundred times the rest they are not: use more bins, or leave exact zeros out of
  `counts` for "mse", to which they are free with any range.
- Where all values are equal (`low == high`) the range is that value and zero. A tensor
  of nothing but zeros gives `(0.0, 0.0)`, of which `fake_quantize` makes zeros.
- `ValueError` for counts that are not one-dimensional, or empty, negative, not finite
  or all zero; for `low` or `high` that are not finite, and for `high < low`.
"""

import numpy as np

_HALVINGS_OF_THE_SEARCH = 6  # From a factor of 2 between candidates to one of 1.01.
_EMPTY_BIN = 1e-6  # Probability that a bin without values counts as, against log(0).


def estimate_range(
    method, counts, low, high, *, bits=8, symmetric=False, percentile=99.99
):
    """Finds the range of an activation by one of `METHODS`.

    Args:
        method: `"percentile"`, `"mse"` or `"kl"`. The lowest and the highest value, or
            moving averages of them, need no histogram and no function of this module.
        counts: Histogram `(bins,)`, int or float.
        low: Left edge of the first bin.
        high: Right edge of the last bin.
        bits: Width of the integers, 2 to 16. "percentile" uses it if `symmetric` only.
        symmetric: Whether the zero point is 0: the range runs from `-2**(bits-1)` to
            `2**(bits-1) - 1` times the scale. "mse" searches among such ranges, the
            other methods widen theirs to the smallest such range.
        percentile: For "percentile" only, see `percentile_range`.

    Returns:
        Floats `(low, high)`.

    Raises:
        ValueError: If `method` is unknown, or as the method does.
    """
    if method not in METHODS:
        raise ValueError(
            f"`method` must be one of {', '.join(map(repr, METHODS))}. Received: "
            f"method={method!r}. The lowest and highest value, and moving averages of "
            "them, are ranges without a histogram."
        )
    _check_bits(bits)
    knobs = {
        "percentile": {"percentile": percentile},
        "mse": {"bits": bits, "symmetric": symmetric},
        "kl": {"bits": bits},
    }[method]
    low, high = METHODS[method](counts, low, high, **knobs)
    return _symmetric_range(low, high, bits) if symmetric else (low, high)


def percentile_range(counts, low, high, *, percentile=99.99):
    """Clips the same fraction of the values at either end.

    Args:
        counts: Histogram `(bins,)`.
        low: Left edge of the first bin.
        high: Right edge of the last bin.
        percentile: Above 50 and at most 100. 99.99 clips the highest 0.01% of the
            values and the lowest 0.01%; 100 none.

    Returns:
        Floats `(low, high)`, interpolated within a bin and widened to include zero.

    Raises:
        ValueError: If `percentile` or the histogram is wrong.

    Example:
        ```python
        percentile_range([50, 50], 0.0, 2.0, percentile=90)  # (0.0, 1.8)
        ```

    Reference:
        Wu et al., "Integer Quantization for Deep Learning Inference: Principles and
        Empirical Evaluation", 2020. arXiv:2004.09602. There the percentile is of
        absolute values; here each end has its own.
    """
    if not 50 < percentile <= 100:
        raise ValueError(
            "`percentile` must be above 50 and at most 100. Received: "
            f"percentile={percentile}. To clip 0.01% at either end pass 99.99."
        )
    counts, low, high = _checked_histogram(counts, low, high)
    lower = -_quantile(counts[::-1], -high, -low, percentile / 100)
    upper = _quantile(counts, low, high, percentile / 100)
    return _with_zero(lower, upper)


def mse_range(counts, low, high, *, bits=8, symmetric=False):
    """Finds the range of least mean squared error, of rounding and clipping together.

    The error of a range is exact for values spread evenly over each bin. Both ends are
    searched at once, each as a fraction of the whole range: first powers of two, then
    around the best, with the distance halved each time.

    Args:
        counts: Histogram `(bins,)`.
        low: Left edge of the first bin.
        high: Right edge of the last bin.
        bits: Width of the integers, 2 to 16.
        symmetric: Whether the zero point is 0: a range from `-2**(bits-1)` to
            `2**(bits-1) - 1` times the scale.

    Returns:
        Floats `(low, high)`, with zero on the grid. The grid is moved as
        `fake_quantize` moves it, which therefore finds nothing left to move.

    Raises:
        ValueError: If `bits` or the histogram is wrong.

    Reference:
        Banner et al., "Post training 4-bit quantization of convolutional networks for
        rapid-deployment", 2018. arXiv:1810.05723. They assume a Gaussian or Laplace
        distribution and solve for the range; here the histogram takes its place.
    """
    _check_bits(bits)
    counts, low, high = _checked_histogram(counts, low, high)
    lowest, highest = _with_zero(low, high)
    if _one_value(low, high):
        one = lowest, highest
        return _symmetric_range(*one, bits) if symmetric else one
    grid = _symmetric_grid if symmetric else _grid
    edges, falls = _falls_of_density(counts, low, high)

    def grids(fractions):
        return grid(lowest * fractions[:, 0], highest * fractions[:, -1], bits)

    def error(fractions):
        return _squared_error(edges, falls, *grids(fractions))

    two_sided = lowest < 0 < highest and not symmetric
    best = _coarse_to_fine(error, ends=1 + two_sided, octaves=counts.size.bit_length())
    scale, first, last = (float(value[0]) for value in grids(best[np.newaxis]))
    # Plus 0.0, for otherwise one-sided ranges would start at -0.0.
    return first * scale + 0.0, last * scale + 0.0


def kl_range(counts, low, high, *, bits=8):
    """Finds the threshold at which the quantized distribution is nearest to the true.

    For each threshold T the range is `[-T, T]`, cut to the values there are, so it is
    `[0, T]` after a ReLU. P is the histogram within the range, with what lies outside
    added to its first and last bin. Q is the histogram within the range without that:
    the bins of each of the `2**bits` levels are merged, and their sum is spread evenly
    over those of them that are not empty in P. T has the least Kullback-Leibler
    divergence of P from Q.

    There are never fewer bins in the range than levels; with fewer than `2**bits` bins
    in all, nothing is clipped.

    Args:
        counts: Histogram `(bins,)`, for 8 bits about 2048.
        low: Left edge of the first bin.
        high: Right edge of the last bin.
        bits: Width of the integers, 2 to 16.

    Returns:
        Floats `(low, high)`. `fake_quantize` moves them so that zero is on the grid.

    Raises:
        ValueError: If `bits` or the histogram is wrong.

    Reference:
        Migacz, "8-bit Inference with TensorRT", GTC 2017. Differences: histograms of
        two sides keep their sign instead of being folded to absolute values; there are
        `2**bits` levels for the range, not 128 for absolute values; where the bins are
        no multiple of the levels, levels differ by one bin instead of the last taking
        the rest; an empty bin of Q counts as 1e-6, for the divergence is infinite
        otherwise; and the bin of zero counts no more than the larger of those beside
        it: the zeros after a ReLU are exact with any range and would drown the rest.
    """
    _check_bits(bits)
    counts, low, high = _checked_histogram(counts, low, high)
    if _one_value(low, high):
        return _with_zero(low, high)
    counts = _without_spike(counts, low, high)
    begin, end = _thresholds(counts.size, low, high, 2**bits)
    part = np.arange(2**bits + 1) / 2**bits
    levels = begin[:, np.newaxis] + (end - begin)[:, np.newaxis] * part
    # Not `rint`, which rounds halves to even: a level would depend on where it lies.
    edges = np.clip(np.floor(levels + 0.5), 0, counts.size).astype(int)
    divergence = _divergence(counts, edges)
    # Of equals the narrowest, 1e-12 for the rounding of the sums.
    best = np.flatnonzero(divergence <= divergence.min() + 1e-12)[-1]
    width = (high - low) / counts.size
    return (
        float(low + begin[best] * width) if low < 0 else 0.0,
        float(low + end[best] * width) if high > 0 else 0.0,
    )


def power_of_two_range(low, high, *, bits=8):
    """Finds the smallest range over `low` to `high` for hardware that shifts.

    Args:
        low: Lowest value to be covered.
        high: Highest value to be covered.
        bits: Width of the integers, 2 to 16.

    Returns:
        Floats `(-2**(bits-1) * scale, (2**(bits-1) - 1) * scale)` with `scale = 2**k`,
        k a whole number, and so with zero point 0. `(0.0, 0.0)` if both are zero.

    Raises:
        ValueError: If `low` or `high` is not finite, if `high < low`, or for `bits`.

    Example:
        ```python
        power_of_two_range(-0.9, 0.5, bits=8)  # (-1.0, 0.9921875), the scale is 1/128
        ```
    """
    _check_bits(bits)
    low, high = _with_zero(*_checked_range(low, high))
    if low == high:
        return low, high
    half = 2 ** (bits - 1)
    _, exponent = np.frexp(max(-low, high))
    # -1022: smaller powers are no normal float64, and soon 0.
    scale = 2.0 ** max(int(exponent) - bits, -1022)
    while low < -half * scale or high > (half - 1) * scale:
        scale *= 2
    return -half * scale, (half - 1) * scale


METHODS = {"percentile": percentile_range, "mse": mse_range, "kl": kl_range}


def _quantile(counts, low, high, fraction):
    """The smallest value that `fraction` of the values do not exceed."""
    cumulative = np.cumsum(counts)
    wanted = min(fraction * cumulative[-1], cumulative[-1])
    index = np.searchsorted(cumulative, wanted)
    within = 1 - (cumulative[index] - wanted) / counts[index]
    return low + (high - low) * ((index + within) / counts.size)


def _grid(low, high, bits):
    """Scale, first and last integer, zero at 0, as TensorFlow's fake_quant has them."""
    levels = 2**bits - 1
    scale = (high - low) / levels
    zero_point = np.clip(np.floor(-low / scale + 0.5), 0, levels)
    return scale, -zero_point, levels - zero_point


def _symmetric_grid(low, high, bits):
    """The same of the finest grid over `low` to `high` with zero point 0."""
    half = 2 ** (bits - 1)
    scale = np.maximum(-low / half, high / (half - 1))
    return scale, np.full_like(scale, -half), np.full_like(scale, half - 1)


def _symmetric_range(low, high, bits):
    scale, first, last = _symmetric_grid(low, high, bits)
    return float(first * scale) + 0.0, float(last * scale)


def _falls_of_density(counts, low, high):
    """Where the density of the values changes, and by how much it falls there."""
    edges = np.linspace(low, high, counts.size + 1)
    density = counts / counts.sum() / (edges[1] - edges[0])
    falls = -np.diff(density, prepend=0, append=0)
    return edges[falls != 0], falls[falls != 0]


def _squared_error(edges, falls, scale, first, last):
    """Mean squared error of each of the grids `scale`, `first`, `last`: `(grids,)`.

    The integral of `(x - rounded(x))**2` is `scale**3 * (n / 12 + r**3 / 3)`, n the
    integer and r the rest of `x / scale`. It holds for clipped values too, where r is
    large. The error is the sum over bins of density times its difference across the
    bin, here written as a sum over edges: one evaluation of each.
    """
    scale = scale[:, np.newaxis]
    position = edges / scale
    integer = np.clip(np.rint(position), first[:, np.newaxis], last[:, np.newaxis])
    rest = position - integer
    return ((integer / 12 + rest * rest * rest / 3) @ falls) * scale[:, 0] ** 3


def _coarse_to_fine(loss, ends, octaves):
    """Fractions `(ends,)` in (0, 1] of least `loss`; it takes `(candidates, ends)`."""
    best = np.zeros(ends)  # Logarithms to base 2.
    offsets = -np.arange(octaves)
    for halving in range(1 + _HALVINGS_OF_THE_SEARCH):
        tried = np.meshgrid(*(np.minimum(end + offsets, 0) for end in best))
        tried = np.stack(tried, axis=-1).reshape(-1, ends)
        best = tried[np.argmin(loss(2.0**tried))]
        offsets = np.array([-1, -0.5, 0, 0.5, 1]) / 2**halving
    return 2.0**best


def _thresholds(bins, low, high, levels):
    """Begins and ends, in bins from `low`, of the ranges that `kl_range` compares.

    The first is that without clipping, and each next one is narrower. What is clipped
    ends on the edge of a bin; the end at zero may lie outside the histogram.
    """
    width = (high - low) / bins
    lowest, highest = _with_zero(low, high)
    # One bin apart, further if the table of all levels would not fit into memory.
    steps = np.arange(0, bins, max(1, bins * levels // 2**21))
    threshold = max(-lowest, highest) - width * steps
    begin = end = np.full(steps.size, -low / width)
    if low < 0:
        begin = np.maximum(0, np.rint((-threshold - low) / width))
    if high > 0:
        end = np.minimum(bins, np.rint((threshold - low) / width))
    wide = np.minimum(end, bins) - np.maximum(begin, 0) >= levels
    wide[0] = True
    return begin[wide], end[wide]


def _without_spike(counts, low, high):
    """`counts` with no more in the bin of zero than beside it, if there is any."""
    if not low <= 0 <= high:
        return counts
    zero = min(int(-low / (high - low) * counts.size), counts.size - 1)
    beside = np.concatenate(
        [counts[max(zero - 1, 0) : zero], counts[zero + 1 : zero + 2]]
    )
    counts = counts.copy()
    if beside.any():
        counts[zero] = min(counts[zero], beside.max())
    return counts


def _divergence(counts, edges):
    """Divergence of P from Q for each row of level edges: `(thresholds,)`.

    Within a level Q is one number, so sums over levels do; Q is never spread out.
    """
    total = counts.sum()
    first, last = edges[:, 0], edges[:, -1]
    summed = _cumulative(counts)
    left, right = summed[first], total - summed[last]
    # Bins of P that are not empty; those at the ends hold what was clipped.
    filled = np.diff(_cumulative(counts > 0)[edges])
    filled[:, 0] += (counts[first] == 0) & (left > 0)
    filled[:, -1] += (counts[last - 1] == 0) & (right > 0)
    merged = np.diff(summed[edges])
    q = merged / np.maximum(filled, 1) / merged.sum(axis=1, keepdims=True)
    p = merged / total
    p[:, 0] += left / total
    p[:, -1] += right / total
    cross = np.sum(p * np.log(np.where(q > 0, q, _EMPTY_BIN)), axis=1)

    negative_entropy = _cumulative(_x_log_x(counts / total))
    own = negative_entropy[last] - negative_entropy[first]
    for end, clipped in ((first, left), (last - 1, right)):
        own += _x_log_x((counts[end] + clipped) / total) - _x_log_x(counts[end] / total)
    return own - cross


def _cumulative(values):
    return np.concatenate([[0.0], np.cumsum(values)])


def _x_log_x(x):
    return x * np.log(np.where(x > 0, x, 1))


def _with_zero(low, high):
    return min(float(low), 0.0), max(float(high), 0.0)


def _one_value(low, high):
    """Whether the values are equal; neighbours in float32 are further apart."""
    return high - low <= 1e-9 * max(-low, high)


def _check_bits(bits):
    if not isinstance(bits, (int, np.integer)) or not 2 <= bits <= 16:
        raise ValueError(
            f"`bits` must be a whole number from 2 to 16. Received: bits={bits}."
        )


def _checked_range(low, high):
    low, high = float(low), float(high)
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ValueError(
            "`low` and `high` must be finite, with low <= high. Received: "
            f"low={low}, high={high}. Look for NaN or infinity in the activations."
        )
    return low, high


def _checked_histogram(counts, low, high):
    low, high = _checked_range(low, high)
    counts = np.asarray(counts, "float64")
    if counts.ndim != 1 or counts.size == 0:
        raise ValueError(
            "`counts` must be a histogram of shape (bins,) with at least one bin. "
            f"Received: shape {counts.shape}."
        )
    if not np.all(np.isfinite(counts)) or counts.min() < 0:
        raise ValueError(
            "`counts` must be finite and at least 0. Received: counts from "
            f"{counts.min()} to {counts.max()}."
        )
    if not counts.any():
        raise ValueError(
            "`counts` must hold at least one value. Received: "
            f"{counts.size} empty bins. Run calibration data through the model first."
        )
    return counts, low, high
