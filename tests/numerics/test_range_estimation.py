"""Ranges from histograms against hand-worked ones, plain numpy and brute force."""

import numpy as np
import pytest

from tfcompress.numerics.affine import fake_quantize
from tfcompress.numerics.range_estimation import (
    METHODS,
    estimate_range,
    kl_range,
    mse_range,
    percentile_range,
    power_of_two_range,
)


def _samples(name, size=100_000):
    random = np.random.default_rng(0)
    normal = random.normal(size=size)
    return {
        "normal": normal,
        "relu": np.maximum(normal, 0),
        "laplace": random.laplace(size=size),
        "silu": 3 * normal / (1 + np.exp(-3 * normal)),
        "negative": -random.exponential(size=size),
        "offset": random.uniform(2, 5, size=size),
        "outlier": np.append(random.uniform(-1, 1, size), 100.0),
        "relu_outlier": np.append(random.uniform(0, 1, size), [0.0, 100.0]),
    }[name]


def _histogram(x, bins=2048):
    counts, edges = np.histogram(x, bins=bins)
    return counts, edges[0], edges[-1]


def _error(x, low, high, bits):
    """Mean squared error of quantizing `x`, straight from Jacob et al., eq. 12."""
    levels = 2**bits - 1
    scale = (high - low) / levels
    zero_point = np.rint(-low / scale)
    integers = np.clip(np.rint(x / scale) + zero_point, 0, levels)
    return np.mean(((integers - zero_point) * scale - x) ** 2)


# Percentile.


def test_percentile_of_a_histogram_worked_by_hand():
    # 10% of 10 values is one: half of the first bin, a quarter of the last.
    counts = [2, 4, 4]
    low, high = percentile_range(counts, -1.0, 2.0, percentile=90)
    assert (low, high) == pytest.approx((-0.5, 1.75), abs=1e-12)


def test_percentile_100_clips_nothing_but_empty_bins():
    counts = [0, 0, 3, 0, 1, 0]
    assert percentile_range(counts, -3.0, 3.0, percentile=100) == (-1.0, 2.0)


@pytest.mark.parametrize("percentile", [51, 90, 99, 99.9, 99.99])
@pytest.mark.parametrize("name", ["normal", "laplace", "silu"])
def test_percentile_is_numpys_to_a_bin(name, percentile):
    x = _samples(name)
    counts, low, high = _histogram(x)
    found = percentile_range(counts, low, high, percentile=percentile)
    # A value of the samples, as the histogram knows of none between them.
    wanted = [np.percentile(y, percentile, method="inverted_cdf") for y in (-x, x)]
    # One bin: within it the histogram does not know where the values are.
    assert found == pytest.approx((-wanted[0], wanted[1]), abs=(high - low) / 2048)


def test_percentile_treats_both_ends_alike():
    counts, low, high = _histogram(_samples("silu"))
    there = percentile_range(counts, low, high, percentile=97)
    back = percentile_range(counts[::-1], -high, -low, percentile=97)
    assert there == (-back[1], -back[0])


@pytest.mark.parametrize("percentile", [50, 100.1, 0.01, float("nan")])
def test_percentile_outside_its_bounds_is_an_error(percentile):
    with pytest.raises(ValueError, match="above 50 and at most 100. Received"):
        percentile_range([1, 1], 0.0, 1.0, percentile=percentile)


# Mean squared error.


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("name", ["normal", "laplace", "silu"])
def test_mse_is_as_good_as_brute_force_on_the_samples(name, bits):
    x = _samples(name, size=10_000)
    counts, low, high = _histogram(x)
    found = _error(x, *mse_range(counts, low, high, bits=bits), bits)
    lows, highs = np.linspace(low, 0, 26)[:-1], np.linspace(0, high, 41)[1:]
    best = min(_error(x, a, b, bits) for a in lows for b in highs)
    # 2%: the values within a bin are not known, and both searches have steps.
    assert found < 1.02 * best
    assert found <= _error(x, low, high, bits)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", ["relu", "negative", "offset"])
def test_mse_of_one_side_is_as_good_as_brute_force(name, bits):
    x = _samples(name, size=20_000)
    counts, low, high = _histogram(x)
    a, b = mse_range(counts, low, high, bits=bits)
    assert (b if name == "negative" else a) == 0
    ends = np.linspace(0.05, 1, 400)
    lowest, highest = min(low, 0), max(high, 0)
    best = min(_error(x, lowest * end, highest * end, bits) for end in ends)
    assert _error(x, a, b, bits) < 1.02 * best  # 2%: as above.


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_mse_clips_a_gaussian_where_quadrature_says(bits):
    # The figure of no paper, but the integral over the density, range by range.
    x = np.linspace(-8, 8, 200_001)
    density = np.exp(-(x**2) / 2)
    half = 2 ** (bits - 1)
    scales = np.linspace(1, 5, 401) / half

    def error(scale):
        rounded = np.clip(np.rint(x / scale), -half, half - 1) * scale
        return np.sum(density * (rounded - x) ** 2)

    wanted = half * scales[np.argmin([error(scale) for scale in scales])]
    edges = np.linspace(-8, 8, 4097)
    counts = np.exp(-(((edges[1:] + edges[:-1]) / 2) ** 2) / 2)
    low, high = mse_range(counts, -8.0, 8.0, bits=bits, symmetric=True)
    # 2%: the last step of the search is 1%, and the minimum is flat.
    assert -low == pytest.approx(wanted, rel=0.02)
    assert high / -low == pytest.approx((half - 1) / half)
    if bits == 8:
        assert 3.85 < -low < 4.05  # Sigmas; 3.92 by Banner et al.'s approximation.


def test_mse_of_a_uniform_density_worked_by_hand():
    # Levels 0, s, 2 s and 3 s: up to the last are six half cells of s**3 / 24 each, and
    # above it (1 - 3 s)**3 / 3. The derivative is zero where 1 - 3 s = s / 2.
    low, high = mse_range([1], 0.0, 1.0, bits=2)
    # 1%: the last step of the search.
    assert (low, high) == pytest.approx((0, 6 / 7), rel=0.01)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", ["normal", "silu", "relu", "negative", "outlier"])
def test_mse_puts_zero_on_the_grid_that_fake_quantize_uses(name, bits, symmetric):
    counts, low, high = _histogram(_samples(name, size=5000))
    low, high = mse_range(counts, low, high, bits=bits, symmetric=symmetric)
    scale = (high - low) / (2**bits - 1)
    first = low / scale
    # 1e-9: float64 division.
    assert first == pytest.approx(round(first), abs=1e-9)
    if symmetric:
        assert round(first) == -(2 ** (bits - 1))
    ends = np.array([low, 0.0, high], "float32")
    # 1e-6: float32.
    np.testing.assert_allclose(
        fake_quantize(ends, low, high, bits=bits), ends, atol=1e-6 * (high - low)
    )


def test_mse_clips_one_outlier_where_the_derivative_says():
    # 1350 values over [0, 50) and one at 100, 4 bits: the squared errors are about
    # (100 - T)**2 + 1350 * T**2 / (12 * 15**2), least at T = 100 / (1 + 0.5).
    counts = np.zeros(2000)
    counts[:1000] = 1.35
    counts[-1] = 1
    low, high = mse_range(counts, 0.0, 100.0, bits=4)
    # Half a step: whether 50 is a level or halfway between two makes a difference.
    assert low == 0 and high == pytest.approx(200 / 3, abs=100 / 45)


def test_mse_finds_more_to_clip_with_fewer_bits():
    counts, low, high = _histogram(_samples("laplace"))
    ends = [mse_range(counts, low, high, bits=bits)[1] for bits in (2, 3, 4, 6, 8, 12)]
    assert ends == sorted(ends)


# Kullback-Leibler.


def _naive_kl(counts, low, high, bits):
    """The recipe of the docstring with loops, P and Q written out."""
    counts = np.array(counts, float)
    width = (high - low) / len(counts)
    zero = int(-low / width)
    beside = [counts[i] for i in (zero - 1, zero + 1) if 0 <= i < len(counts)]
    if max(beside) > 0:
        counts[zero] = min(counts[zero], max(beside))
    best = (np.inf, None)
    for k in range(len(counts)):
        threshold = max(-low, high) - k * width
        first = max(round((-threshold - low) / width), 0) if low < 0 else 0
        last = min(round((threshold - low) / width), len(counts))
        if k and last - first < 2**bits:
            break
        p = counts[first:last].copy()
        inside = p.copy()
        p[0] += counts[:first].sum()
        p[-1] += counts[last:].sum()
        q = np.zeros_like(p)
        size, levels = last - first, 2**bits
        edges = [(2 * i * size + levels) // (2 * levels) for i in range(levels + 1)]
        for a, b in zip(edges[:-1], edges[1:], strict=True):
            filled = p[a:b] > 0
            if filled.any():
                q[a:b][filled] = inside[a:b].sum() / filled.sum()
        p, q = p / p.sum(), q / q.sum()
        q[q == 0] = 1e-6
        divergence = sum(p[i] * np.log(p[i] / q[i]) for i in np.flatnonzero(p))
        if divergence < best[0] + 1e-12:  # Of equals the narrowest.
            best = (divergence, (low + first * width, low + last * width))
    return best[1]


@pytest.mark.parametrize("bits", [3, 4, 5])
@pytest.mark.parametrize("name", ["normal", "laplace", "silu", "relu", "relu_outlier"])
def test_kl_is_the_recipe_written_out_with_loops(name, bits):
    counts, low, high = _histogram(_samples(name, size=3000), bins=256)
    # 1e-9: float64 sums in another order.
    assert kl_range(counts, low, high, bits=bits) == pytest.approx(
        _naive_kl(counts, low, high, bits), abs=1e-9
    )


def test_kl_mirrors_with_its_histogram():
    counts, low, high = _histogram(_samples("relu"))
    there = kl_range(counts, low, high, bits=6)
    back = kl_range(counts[::-1], -high, -low, bits=6)
    # 1%: edges of levels halfway within a bin move up in both, not mirrored, and the
    # divergence is flat near its minimum.
    assert there == pytest.approx((-back[1], -back[0]), rel=0.01)


def test_kl_is_not_drowned_by_the_zeros_of_a_relu():
    x = _samples("relu")
    counts, low, high = _histogram(x)
    few = counts.copy()
    few[0] = counts[1]
    assert kl_range(counts, low, high) == kl_range(few, low, high)
    assert kl_range(counts, low, high)[1] > np.percentile(x, 99.9)


def test_kl_clips_nothing_where_bins_are_no_more_than_levels():
    assert kl_range([1, 0, 2, 5], -1.0, 3.0, bits=8) == (-1.0, 3.0)


# What holds for all.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["outlier", "relu_outlier"])
def test_one_outlier_a_hundred_times_the_rest_is_clipped(name, method):
    counts, low, high = _histogram(_samples(name))
    # 4 bits: with 8 a clipped 100 weighs as much as the rounding of a million values.
    found = estimate_range(method, counts, low, high, bits=4)
    assert found[1] < 20 < high
    assert found[1] > 0.9  # The rest is kept.


def test_with_eight_bits_kl_and_percentile_clip_one_outlier_and_mse_some():
    counts, low, high = _histogram(_samples("relu_outlier"))
    found = {m: estimate_range(m, counts, low, high)[1] for m in METHODS}
    assert found["percentile"] < 1.1
    assert found["kl"] < 15  # 256 of the 2048 bins are its least.
    assert found["mse"] < high - 5


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e6])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["normal", "silu", "relu", "negative", "offset"])
def test_units_do_not_matter_neither_of_values_nor_of_counts(name, method, scale):
    counts, low, high = _histogram(_samples(name, size=20_000), bins=1024)
    one = estimate_range(method, counts, low, high, bits=6)
    other = estimate_range(method, counts / 3, scale * low, scale * high, bits=6)
    # 1e-6: a different rounding may pick a neighbour only in a tie.
    assert other == pytest.approx([scale * v for v in one], rel=1e-6, abs=1e-6 * scale)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_zeros_alone_give_a_range_of_nothing_that_rounds_to_zeros(method, symmetric):
    found = estimate_range(method, [7, 0, 0], 0.0, 0.0, symmetric=symmetric)
    assert found == (0.0, 0.0)
    assert fake_quantize(np.zeros(3, "float32"), *found).numpy().tolist() == [0, 0, 0]


@pytest.mark.parametrize("method", METHODS)
def test_mass_in_the_bin_of_zero_alone_gives_a_small_range(method):
    counts = np.zeros(2048)
    counts[1024] = 100
    low, high = estimate_range(method, counts, -1.0, 1.0)
    # KL needs 256 bins, 128 to a side.
    assert low <= 0 <= high <= 128 / 1024 and high > low


@pytest.mark.parametrize("value, wanted", [(3.0, (0.0, 3.0)), (-3.0, (-3.0, 0.0))])
@pytest.mark.parametrize("method", METHODS)
def test_one_value_alone_is_the_end_of_the_range(method, value, wanted):
    assert estimate_range(method, [4, 0], value, value) == wanted


@pytest.mark.parametrize("method", METHODS)
def test_neighbours_in_float32_are_told_apart_from_one_value(method):
    low = np.float32(1000)
    low, high = estimate_range(method, np.ones(2048), low, np.nextafter(low, 2000))
    # 1%: the last step of the search.
    assert (low, high) == pytest.approx((0, 1000), rel=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_symmetric_ranges_have_zero_point_zero_and_cover_the_asymmetric(method):
    counts, low, high = _histogram(_samples("silu"))
    a, b = estimate_range(method, counts, low, high, bits=8, symmetric=True)
    assert a / b == pytest.approx(-128 / 127)
    if method != "mse":
        c, d = estimate_range(method, counts, low, high, bits=8)
        assert a <= c and b == pytest.approx(d)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "counts, low, high, message",
    [
        ([], 0, 1, "shape \\(0,\\)"),
        ([[1, 2]], 0, 1, "shape \\(1, 2\\)"),
        ([1, -2], 0, 1, "at least 0. Received: counts from -2"),
        ([1, float("nan")], 0, 1, "must be finite"),
        ([1, float("inf")], 0, 1, "must be finite"),
        ([0, 0, 0], 0, 1, "3 empty bins"),
        ([1, 2], 1, 0, "low <= high. Received: low=1.0, high=0.0"),
        ([1, 2], 0, float("nan"), "NaN"),
        ([1, 2], float("-inf"), 0, "infinity"),
    ],
)
def test_a_wrong_histogram_is_an_error(method, counts, low, high, message):
    with pytest.raises(ValueError, match=message):
        METHODS[method](counts, low, high)


@pytest.mark.parametrize("bits", [1, 17, 8.0, None])
@pytest.mark.parametrize("method", METHODS)
def test_wrong_bits_are_an_error(method, bits):
    with pytest.raises(ValueError, match="whole number from 2 to 16. Received: bits="):
        estimate_range(method, [1, 2], 0.0, 1.0, bits=bits)


@pytest.mark.parametrize("method", ["minmax", "moving_average", "MSE"])
def test_a_method_without_histogram_is_an_error_that_names_the_others(method):
    with pytest.raises(ValueError, match="'percentile', 'mse', 'kl'. Received"):
        estimate_range(method, [1, 2], 0.0, 1.0)


# Powers of two.


@pytest.mark.parametrize(
    "low, high, bits, exponent",
    [
        (-1.0, 0.5, 8, -7),
        (-0.9, 0.5, 8, -7),
        (-1.0, 127 / 128, 8, -7),
        (-1.0, 1.0, 8, -6),  # The highest integer is 127.
        (-1.001, 0.0, 8, -6),
        (0.0, 127.0, 8, 0),
        (0.0, 127.5, 8, 1),
        (3.0, 6.0, 4, 0),
        (-1.0, 0.0, 2, -1),
        (0.0, 1.0, 2, 0),
        (-5.0, -3.0, 16, -12),
    ],
)
def test_power_of_two_worked_by_hand(low, high, bits, exponent):
    half = 2 ** (bits - 1)
    wanted = -half * 2.0**exponent, (half - 1) * 2.0**exponent
    assert power_of_two_range(low, high, bits=bits) == wanted


@pytest.mark.parametrize("bits", [2, 8, 16])
def test_power_of_two_covers_and_half_of_it_would_not(bits):
    random = np.random.default_rng(0)
    for _ in range(300):
        low, high = random.normal(size=2) * 10.0 ** random.integers(-9, 9, size=2)
        low, high = min(low, high), max(low, high)
        a, b = power_of_two_range(low, high, bits=bits)
        assert a <= low and high <= b
        assert low < a / 2 or high > b / 2
        assert np.frexp((b - a) / (2**bits - 1))[0] == 0.5


def test_power_of_two_grid_is_not_moved_by_fake_quantize():
    low, high = power_of_two_range(-0.9, 0.5)
    x = np.arange(-128, 128, dtype="float32") / 128
    np.testing.assert_array_equal(fake_quantize(x, low, high), x)


def test_power_of_two_of_nothing_is_nothing_and_of_hardly_anything_ends():
    assert power_of_two_range(0.0, 0.0) == (0.0, 0.0)
    assert power_of_two_range(0.0, 5e-324)[1] > 0


def test_power_of_two_of_what_is_no_range_is_an_error():
    with pytest.raises(ValueError, match="low <= high"):
        power_of_two_range(1.0, -1.0)
    with pytest.raises(ValueError, match="finite"):
        power_of_two_range(0.0, float("inf"))
    with pytest.raises(ValueError, match="bits"):
        power_of_two_range(0.0, 1.0, bits=1)
