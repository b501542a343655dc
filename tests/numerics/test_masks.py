"""Magnitude masks against arrays worked out by hand."""

import numpy as np
import pytest

from tfcompress.numerics.masks import (
    check_sparsity,
    keep_highest,
    kept_zeros,
    magnitude_mask,
    swap_lowest,
)


def test_largest_magnitudes_are_kept_whatever_their_sign():
    weight = np.array([[3.0, -1.0], [2.0, -4.0]], "float32")
    expected = [[True, False], [False, True]]
    assert magnitude_mask(weight, 0.5).tolist() == expected


def test_ties_keep_the_lower_index():
    assert magnitude_mask(np.array([1.0, -1.0, 1.0, 1.0]), 0.5).tolist() == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    "size, sparsity, dropped",
    [(10, 0.5, 5), (3, 0.5, 2), (7, 0.3, 2), (9, 0.99, 8), (100, 0.8, 80), (4, 0, 0)],
)
def test_sparsity_is_rounded_to_whole_weights_and_one_stays(size, sparsity, dropped):
    weight = np.random.default_rng(0).normal(size=size)
    assert np.count_nonzero(~magnitude_mask(weight, sparsity)) == dropped


def test_mask_agrees_with_a_full_stable_sort():
    # Few distinct values, so that nearly every threshold falls among ties.
    weight = np.random.default_rng(1).integers(-3, 4, size=(5, 4, 3)).astype("float32")
    for sparsity in np.linspace(0, 0.99, 34):
        dropped = round(sparsity * weight.size)
        order = np.argsort(-np.abs(weight).ravel(), kind="stable")
        expected = np.zeros(weight.size, bool)
        expected[order[: weight.size - dropped]] = True
        found = magnitude_mask(weight, sparsity)
        np.testing.assert_array_equal(found, expected.reshape(weight.shape))


def test_masks_of_growing_sparsity_are_nested():
    weight = np.random.default_rng(2).integers(-5, 6, size=200)
    masks = [magnitude_mask(weight, s) for s in np.linspace(0, 0.95, 20)]
    for sparser, denser in zip(masks[1:], masks, strict=False):
        assert not np.any(sparser & ~denser)


def test_zeros_are_dropped_before_anything_else():
    weight = np.array([1e-30, 0.0, -1e-30, 0.0])
    assert magnitude_mask(weight, 0.5).tolist() == [True, False, True, False]


def test_mask_has_the_shape_of_the_weight_and_is_boolean():
    mask = magnitude_mask(np.ones((2, 3, 4, 5)), 0.4)
    assert (mask.shape, mask.dtype) == ((2, 3, 4, 5), bool)


@pytest.mark.parametrize(
    "sparsity, hint",
    [
        (80, "For 80% zeros pass sparsity=0.8."),
        (1.0, "For 80% zeros pass sparsity=0.8."),
        (-0.1, "in [0, 1)"),
        (float("nan"), "in [0, 1)"),
        (12.5, "For 12.5% zeros pass sparsity=0.125."),
    ],
)
def test_sparsity_out_of_range_is_refused_with_a_hint(sparsity, hint):
    with pytest.raises(ValueError, match="Received: sparsity") as caught:
        magnitude_mask(np.ones(3), sparsity)
    assert hint in str(caught.value)


@pytest.mark.parametrize("sparsity", ["0.8", None, True, [0.5]])
def test_sparsity_of_another_type_is_refused(sparsity):
    with pytest.raises(TypeError, match="must be a number"):
        check_sparsity(sparsity)


def test_numpy_numbers_are_sparsities():
    assert check_sparsity(np.float32(0.5)) == 0.5
    assert check_sparsity(0) == 0.0


def test_exact_zeros_from_a_tenth_on_are_a_mask():
    weight = np.arange(1.0, 21.0)
    weight[[3, 7]] = 0
    assert kept_zeros(weight).tolist() == [i not in (3, 7) for i in range(20)]
    weight[3] = 1
    assert kept_zeros(weight) is None


def test_a_weight_of_nothing_but_zeros_is_no_mask():
    assert kept_zeros(np.zeros((3, 3))) is None


def test_negative_zero_is_a_zero_and_tiny_numbers_are_not():
    assert kept_zeros(np.array([-0.0, 1.0])).tolist() == [False, True]
    assert kept_zeros(np.array([1e-38, 1.0], "float32")) is None


def test_the_lowest_make_room_for_those_that_grow_fastest():
    lowest = -1e30
    scores = np.array([5, lowest, 1, lowest, 2, lowest, 4, 3])
    # Of the kept 0, 2, 4, 6 and 7 two make room; 2 has the next growth after 5.
    growth = np.array([9, 1, 7, 2, 3, 8, 9, 9], "float32")
    keep = swap_lowest(scores, growth, zeros=3, swapped=2)
    assert np.flatnonzero(keep).tolist() == [0, 2, 5, 6, 7]
    keep = swap_lowest(scores, growth, zeros=3, swapped=0)
    assert np.flatnonzero(keep).tolist() == [0, 2, 4, 6, 7]


def test_as_many_grow_as_make_room_whatever_the_ties():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.integers(0, 3, 40).astype("float32")
        zeros, swapped = rng.integers(0, 30, 2)
        scores[rng.permutation(40)[:zeros]] = -1e30
        growth = rng.integers(0, 2, 40).astype("float32")
        keep = swap_lowest(scores, growth, zeros, swapped)
        assert np.count_nonzero(~keep) == zeros


@pytest.mark.parametrize("kind", ["normal", "mostly one", "few", "extreme", "positive"])
def test_selection_agrees_with_a_stable_sort_of_any_values(kind, monkeypatch):
    # Many pieces.
    monkeypatch.setattr("tfcompress.numerics.masks._CHUNK", 64)
    rng = np.random.default_rng(0)
    scores = rng.normal(size=1000).astype("float32")
    if kind == "mostly one":
        scores[rng.random(1000) < 0.9] = -1e30
    elif kind == "few":
        scores = rng.choice(np.array([0.0, -0.0, 1.5, -2, 3], "float32"), 1000)
    elif kind == "extreme":
        tiny = np.array([1e-45, -1e-45, 3e38, -3e38, 0, np.inf], "float32")
        scores = rng.choice(tiny, 1000)
    elif kind == "positive":
        scores = np.abs(scores)
    order = np.argsort(-scores, kind="stable")
    most = np.count_nonzero(scores < np.inf)
    for dropped in [1, 2, 63, 64, 65, 500, 899, 900, 901, 998, 999]:
        expected = np.zeros(1000, bool)
        expected[order[: 1000 - min(dropped, most, 999)]] = True
        np.testing.assert_array_equal(keep_highest(scores, dropped), expected)


@pytest.mark.parametrize("kind", ["normal", "mostly one", "extreme"])
def test_selection_of_units_of_several_weights_agrees_with_a_sort(kind, monkeypatch):
    monkeypatch.setattr("tfcompress.numerics.masks._CHUNK", 64)
    rng = np.random.default_rng(1)
    scores = rng.normal(size=500).astype("float32")
    if kind == "mostly one":
        scores[rng.random(500) < 0.9] = 0
    elif kind == "extreme":
        tiny = np.array([1e-45, -1e-45, 3e38, -3e38, 0, -0.0, np.inf], "float32")
        scores = rng.choice(tiny, 500)
    sizes = rng.integers(1, 9, 500).astype("float32")
    order = np.argsort(-scores, kind="stable")[::-1]
    ends = np.cumsum(sizes[order])
    most = min(np.count_nonzero(scores < np.inf), 499)
    total = int(sizes.sum())
    for dropped in [0, 1, 5, 64, 1000, total // 2, total - 9, total - 1, total]:
        count = np.count_nonzero(ends - sizes[order] / 2 <= dropped)
        expected = np.ones(500, bool)
        expected[order[: min(count, most)]] = False
        np.testing.assert_array_equal(keep_highest(scores, dropped, sizes), expected)
