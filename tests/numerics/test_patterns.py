"""Patterns of zeros against arrays worked out by hand."""

import numpy as np
import pytest

from tfcompress.numerics.layer_sparsity import erdos_renyi_kernel
from tfcompress.numerics.masks import keep_highest
from tfcompress.numerics.patterns import Blocks, NOfM, Slices, Unstructured, parse


def _mask(pattern, scores, dropped, alive=None):
    scores = np.asarray(scores, "float32")
    sizes = pattern.sizes(scores.shape)
    alive = np.ones(scores.shape, bool) if alive is None else np.asarray(alive, bool)
    keep = keep_highest(pattern.units(scores, alive), dropped, sizes)
    return pattern.spread(keep, scores.shape)


def test_weights_one_by_one():
    assert _mask(Unstructured(), [[3, 1], [2, 4]], 2).tolist() == [
        [True, False],
        [False, True],
    ]


def test_two_of_four_along_the_inputs():
    # One output: the groups are the inputs 0 to 3 and 4 to 7.
    scores = np.array([5, 6, 1, 7, 1, 2, 3, 4])[:, None]
    found = _mask(NOfM(2, 4), scores, 4)[:, 0]
    assert found.tolist() == [False, True, False, True, False, False, True, True]
    # Before the end: the lowest of those that will go, here the two ones.
    assert np.flatnonzero(~_mask(NOfM(2, 4), scores, 2)).tolist() == [2, 4]
    # More than the pattern allows is not dropped.
    np.testing.assert_array_equal(_mask(NOfM(2, 4), scores, 7)[:, 0], found)


def test_ties_keep_the_lower_index_in_a_group():
    found = _mask(NOfM(2, 4), np.ones((8, 1)), 4)[:, 0]
    assert found.tolist() == [True, True, False, False] * 2


@pytest.mark.parametrize("shape", [(8, 3), (3, 3, 12, 5), (7, 4), (1, 2, 3)])
@pytest.mark.parametrize("n, m", [(2, 4), (1, 4), (1, 2)])
def test_no_group_keeps_more_than_n(shape, n, m):
    scores = np.random.default_rng(0).normal(size=shape)
    mask = np.moveaxis(_mask(NOfM(n, m), scores, scores.size), -2, -1)
    for row in mask.reshape(-1, shape[-2]):
        for start in range(0, len(row), m):
            group = row[start : start + m]
            assert group.sum() == min(n, len(group))


def test_blocks_of_the_matrix_go_as_wholes():
    scores = [[9, 0, 1, 1], [0, 0, 1, 1], [2, 2, 0, 0], [2, 2, 0, 1]]
    # Means 2.25, 1, 2 and 0.25.
    found = _mask(Blocks(2, 2), scores, 8)
    assert found.astype(int).tolist() == [[1, 1, 0, 0]] * 2 + [[1, 1, 0, 0]] * 2
    np.testing.assert_array_equal(
        Blocks(2, 2).units(np.asarray(scores, "float32"), np.ones((4, 4), bool)),
        [2.25, 1, 2, 0.25],
    )


def test_blocks_at_the_edge_are_smaller_and_counted_so():
    pattern = Blocks(2, 2)
    assert pattern.sizes((3, 3)).tolist() == [4, 2, 2, 1]
    scores = np.array([[4, 4, 1], [4, 4, 1], [3, 3, 2]], "float32")
    assert pattern.units(scores, scores > 0).tolist() == [4, 1, 3, 2]
    assert np.count_nonzero(~_mask(pattern, scores, 3)) == 3
    assert _mask(pattern, scores, 3)[:, 2].tolist() == [False] * 3
    # Of blocks of 2 and 1: as near to the number as they come.
    assert np.count_nonzero(~_mask(pattern, scores, 2)) == 2


def test_a_block_of_a_convolution_spans_its_positions_and_inputs():
    scores = np.random.default_rng(0).uniform(size=(3, 3, 4, 8)).astype("float32")
    mask = _mask(Blocks(4, 2), scores, scores.size // 2).reshape(36, 8)
    for row in range(0, 36, 4):
        for column in range(0, 8, 2):
            block = mask[row : row + 4, column : column + 2]
            assert block.all() or not block.any()
    assert np.count_nonzero(~mask) == scores.size // 2


def test_a_unit_that_must_stay_is_never_dropped():
    scores = np.array([np.inf, 1.0, np.inf, 2.0])
    assert keep_highest(scores, 3).tolist() == [True, False, True, False]
    assert keep_highest(scores, 3, np.ones(4)).tolist() == [True, False, True, False]
    assert keep_highest(np.ones(3), 3, np.ones(3)).tolist() == [True, False, False]


def test_whole_filters_and_whole_input_channels():
    scores = np.array([[[1, 9, 2], [1, 0, 3]], [[1, 0, 3], [1, 0, 3]]])  # (2, 2, 3)
    # Filters have means 1, 2.25 and 2.75; input channels 16/6 and 8/6.
    found = _mask(Slices(-1), scores, 4)
    assert found.shape == (2, 2, 3)
    assert (found == np.array([False, True, True])).all()
    np.testing.assert_array_equal(
        Slices(-1).units(scores.astype("float32"), np.ones((2, 2, 3), bool)),
        [1, 2.25, 2.75],
    )
    found = _mask(Slices(-2), scores, 6)
    assert (found == np.array([True, False])[:, None]).all()


@pytest.mark.parametrize("dropped, filters", [(0, 0), (5, 1), (6, 2), (11, 3), (99, 3)])
def test_filters_come_as_near_as_they_can_and_one_stays(dropped, filters):
    found = _mask(Slices(-1), np.arange(16).reshape(4, 4), dropped)
    assert found.all(axis=0).tolist() == [False] * filters + [True] * (4 - filters)
    assert np.count_nonzero(~found) == 4 * filters


def test_ties_of_filters_keep_the_lower_index():
    # Sums that float32 would round in different ways.
    scores = np.full((1000, 4), 0.1)
    assert (
        _mask(Slices(-1), scores, 2000).all(axis=0).tolist() == [True] * 2 + [False] * 2
    )


def test_patterns_by_name():
    assert (parse("filter").axis, parse("channel").axis) == (-1, -2)
    assert isinstance(parse(None), Unstructured)
    assert (parse("1:4").n, parse("1:4").m) == (1, 4)
    assert parse("1:4").highest_sparsity == 0.75
    assert (parse((4, 1)).rows, parse([4, 1]).columns) == (4, 1)


@pytest.mark.parametrize(
    "pattern", ["2-4", "4:2", "0:4", (4,), (4, 0), (1.5, 2), (True, 2), 4, "", ()]
)
def test_what_is_no_pattern(pattern):
    with pytest.raises(ValueError, match="(?i)N:M|block"):
        parse(pattern)


def test_erk_gives_small_kernels_more():
    # Sums of the sides over their products: 6/9 and 60/900, 10 to 1. The second has a
    # density d with 900 d + 9 * 10 d = 0.2 * 909.
    found = erdos_renyi_kernel([(3, 3), (30, 30)], 0.5)
    assert found[0] == 0
    assert (909 * 0.5 - 9) / 900 == pytest.approx(1 - found[1])
    found = erdos_renyi_kernel([(3, 3), (30, 30)], 0.95)
    density = 0.05 * 909 / (900 + 9 * 10)
    assert found == [pytest.approx(1 - 10 * density), pytest.approx(1 - density)]


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.8, 0.99])
def test_erk_reaches_the_sparsity_of_the_whole(sparsity):
    shapes = [(3, 3, 3, 16), (3, 3, 16, 32), (1, 1, 16, 32), (64, 10), (2, 2)]
    sizes = [np.prod(shape) for shape in shapes]
    found = erdos_renyi_kernel(shapes, sparsity)
    assert all(0 <= s < 1 for s in found)
    assert np.dot(found, sizes) == pytest.approx(sparsity * sum(sizes))


def test_a_block_of_which_one_weight_is_gone_is_ranked_by_the_others():
    scores = np.array([[9, 5, 5, 5, 0.1, 0.1, 0.1, 0.1]]).T
    alive = np.array([[0, 1, 1, 1, 1, 1, 1, 1]]).T
    found = _mask(Blocks(4, 1), scores, 4, alive)[:, 0]
    assert found.tolist() == [True] * 4 + [False] * 4
    # One that is gone altogether goes first, whatever its score.
    alive = np.array([[0, 0, 0, 0, 1, 1, 1, 1]]).T
    found = _mask(Blocks(4, 1), scores, 4, alive)[:, 0]
    assert found.tolist() == [False] * 4 + [True] * 4


def test_what_is_gone_is_dropped_first():
    alive = np.array([[1, 0], [1, 1]])
    found = _mask(Unstructured(), [[1, 9], [2, 3]], 2, alive)
    assert found.tolist() == [[False, False], [True, True]]


def test_sizes_of_many_weights_add_up_exactly():
    sizes = np.array([2.0**25, 1, 1, 1], "float32")
    scores = np.array([1.0, 2.0, 3.0, 4.0])
    keep = keep_highest(scores, 2**25 + 1, sizes)
    assert keep.tolist() == [False, False, True, True]
