"""Factorizations and ranks against numpy's own products and known answers."""

import itertools

import numpy as np
import pytest

from tfcompress.numerics import factorization, ranks


def _kernel(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_low_rank_attains_the_bounds_of_eckart_and_young():
    matrix = _kernel(12, 9)
    values = np.linalg.svd(matrix, compute_uv=False)
    for rank in (1, 4, 8):
        left, right = factorization.low_rank(matrix, rank)
        assert left.shape == (12, rank) and right.shape == (rank, 9)
        difference = matrix - left @ right
        np.testing.assert_allclose(np.linalg.norm(difference, 2), values[rank])
        np.testing.assert_allclose(
            np.linalg.norm(difference), np.sqrt(np.sum(values[rank:] ** 2))
        )
        np.testing.assert_allclose(np.linalg.norm(left), np.linalg.norm(right))


def test_full_rank_is_exact():
    matrix = _kernel(7, 5)
    np.testing.assert_allclose(np.matmul(*factorization.low_rank(matrix, 5)), matrix)
    kernel = _kernel(3, 2, 4, 5)
    first, core, last = factorization.tucker2(kernel, (4, 5))
    np.testing.assert_allclose(
        np.einsum("ir,hwrs,so->hwio", first, core, last), kernel, atol=1e-13
    )
    vertical, horizontal = factorization.spatial_svd(kernel, 10)
    found = np.einsum("hir,wro->hwio", vertical[:, 0], horizontal[0])
    np.testing.assert_allclose(found, kernel, atol=1e-13)
    depthwise, pointwise = factorization.separable(kernel, 5)
    found = np.einsum("hwim,imo->hwio", depthwise, pointwise.reshape(4, 5, 5))
    np.testing.assert_allclose(found, kernel, atol=1e-13)


def test_spatial_svd_is_the_best_of_its_rank():
    kernel = _kernel(3, 5, 4, 6)
    vertical, horizontal = factorization.spatial_svd(kernel, 3)
    assert vertical.shape == (3, 1, 4, 3) and horizontal.shape == (1, 5, 3, 6)
    found = np.einsum("hir,wro->hwio", vertical[:, 0], horizontal[0])
    # Written out: rows are (height, in), columns are (width, out).
    matrix = np.array(
        [
            [kernel[h, w, i, o] for w in range(5) for o in range(6)]
            for h in range(3)
            for i in range(4)
        ]
    )
    values = np.linalg.svd(matrix, compute_uv=False)
    error = np.linalg.norm(kernel - found)
    np.testing.assert_allclose(error, np.sqrt(np.sum(values[3:] ** 2)))


def _tucker_kernel(noise=0.0):
    rng = np.random.default_rng(1)
    core = rng.normal(size=(3, 3, 4, 5))
    first, last = rng.normal(size=(10, 4)), rng.normal(size=(5, 12))
    kernel = np.einsum("ir,hwrs,so->hwio", first, core, last)
    return kernel + noise * rng.normal(size=kernel.shape)


def test_tucker_recovers_a_kernel_of_its_ranks():
    kernel = _tucker_kernel()
    first, core, last = factorization.tucker2(kernel, (4, 5))
    found = np.einsum("ir,hwrs,so->hwio", first, core, last)
    assert factorization.relative_error(kernel, found) < 1e-12
    np.testing.assert_allclose(first.T @ first, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(last @ last.T, np.eye(5), atol=1e-12)


def test_orthogonal_iteration_lowers_the_error_below_the_bound_of_hosvd():
    kernel = _tucker_kernel(noise=3.0)
    into, out_of = 3, 4
    errors = []
    for iterations in (0, 10):
        factors = factorization.tucker2(kernel, (into, out_of), iterations=iterations)
        found = np.einsum("ir,hwrs,so->hwio", *factors)
        errors.append(factorization.relative_error(kernel, found))
    assert errors[1] < errors[0]
    tails = 0.0
    for axis, rank in ((2, into), (3, out_of)):
        unfolded = np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)
        tails += np.sum(np.linalg.svd(unfolded, compute_uv=False)[rank:] ** 2)
    assert errors[0] <= np.sqrt(tails) / np.linalg.norm(kernel)
    energies = factorization.tucker2_energies(kernel)
    np.testing.assert_allclose(energies[into - 1, out_of - 1], 1 - errors[0] ** 2)


def test_cp_recovers_a_kernel_of_its_rank():
    rng = np.random.default_rng(0)
    places = rng.normal(size=(3, 3, 6))
    first, last = rng.normal(size=(8, 6)), rng.normal(size=(6, 10))
    kernel = np.einsum("hwr,ir,ro->hwio", places, first, last)
    found = factorization.cp(kernel, 6, iterations=2000, tolerance=0)
    assert [f.shape for f in found] == [(8, 6), (3, 3, 6), (6, 10)]
    rebuilt = np.einsum("ir,hwr,ro->hwio", *found)
    assert factorization.relative_error(kernel, rebuilt) < 1e-4
    norms = [np.linalg.norm(found[0], axis=0), np.linalg.norm(found[2], axis=1)]
    np.testing.assert_allclose(*norms)


def test_cp_gets_better_with_rank_and_takes_more_terms_than_channels():
    kernel = _kernel(3, 3, 4, 5)
    errors = [
        factorization.relative_error(
            kernel, np.einsum("ir,hwr,ro->hwio", *factorization.cp(kernel, rank))
        )
        for rank in (1, 3, 9, 20)
    ]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.05


def test_separable_is_the_best_rank_of_each_input_channel():
    kernel = _kernel(3, 3, 4, 6)
    for multiplier in (1, 2):
        depthwise, pointwise = factorization.separable(kernel, multiplier)
        assert depthwise.shape == (3, 3, 4, multiplier)
        assert pointwise.shape == (4 * multiplier, 6)
        square = 0.0
        for channel in range(4):
            matrix = kernel[:, :, channel].reshape(9, 6)
            values = np.linalg.svd(matrix, compute_uv=False)
            square += np.sum(values[multiplier:] ** 2)
        found = np.einsum(
            "hwim,imo->hwio", depthwise, pointwise.reshape(4, multiplier, 6)
        )
        np.testing.assert_allclose(np.linalg.norm(kernel - found) ** 2, square)


def test_a_separable_kernel_is_found_exactly():
    depthwise, pointwise = _kernel(3, 3, 4), _kernel(4, 6, seed=1)
    kernel = np.einsum("hwi,io->hwio", depthwise, pointwise)
    found = factorization.separable(kernel)
    rebuilt = np.einsum("hwi,io->hwio", found[0][..., 0], found[1])
    np.testing.assert_allclose(rebuilt, kernel, atol=1e-13)


@pytest.mark.parametrize("energy, rank", [(0.5, 1), (0.66, 2), (0.9, 2), (0.95, 3)])
def test_the_rank_of_an_energy(energy, rank):
    # Squares 6, 3, 0.5, 0.5: shares 0.6, 0.9, 0.95, 1.
    energies = ranks.svd_energies(np.diag(np.sqrt([0.5, 6, 0.5, 3])))
    np.testing.assert_allclose(energies, [0.6, 0.9, 0.95, 1.0])
    assert ranks.cheapest(np.arange(1, 5), energies, energy) == rank - 1


@pytest.mark.parametrize("shape", [(60, 60), (40, 120), (200, 30)])
@pytest.mark.parametrize("rank", [0, 1, 5, 12])
def test_vbmf_finds_the_rank_beneath_noise(shape, rank):
    rng = np.random.default_rng(rank)
    signal = rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1]))
    # The noise's largest singular value is about 0.4 * (sqrt(rows) + sqrt(columns)).
    noisy = signal + 0.4 * rng.normal(size=shape)
    assert ranks.vbmf_rank(noisy) == rank
    assert ranks.vbmf_rank(noisy.T * 1e-3) == rank


def test_vbmf_without_noise_counts_what_is_there():
    matrix = _kernel(20, 3) @ _kernel(3, 30, seed=1)
    assert ranks.vbmf_rank(matrix) == 3
    assert ranks.vbmf_rank(np.zeros((4, 5))) == 0


def test_vbmf_takes_no_notice_of_rows_that_are_zero():
    noisy = _kernel(30, 4) @ _kernel(4, 50, seed=1) + 0.3 * _kernel(30, 50, seed=2)
    assert ranks.vbmf_rank(noisy) == 4
    noisy[25:] = 0.0
    assert ranks.vbmf_rank(noisy) == 4


def test_the_threshold_of_vbmf_is_the_paper_s():
    # About 2.5129 * sqrt(ratio), exactly so for square matrices.
    np.testing.assert_allclose(ranks._threshold_tau(1.0), 2.5129, atol=1e-4)
    for ratio in (0.1, 0.5):
        tau = ranks._threshold_tau(ratio)
        np.testing.assert_allclose(tau, 2.5129 * np.sqrt(ratio), rtol=0.05)


def _all_choices(curves, budget):
    best = -1.0
    for choice in itertools.product(*[range(len(p)) for p, _ in curves]):
        cost = sum(p[i] for (p, _), i in zip(curves, choice, strict=True))
        if cost <= budget:
            best = max(
                best, sum(e[i] for (_, e), i in zip(curves, choice, strict=True))
            )
    return best


@pytest.mark.parametrize("budget", [20, 31, 44, 60, 75])
def test_the_budget_is_kept_and_the_energy_near_the_best_there_is(budget):
    rng = np.random.default_rng(0)
    curves = []
    for cost in (3, 5, 7):
        gains = np.sort(rng.exponential(size=5))[::-1]
        curves.append((cost * np.arange(1, 6), gains.cumsum() / gains.sum()))
    chosen = ranks.allocate(curves, budget)
    cost = sum(p[i] for (p, _), i in zip(curves, chosen, strict=True))
    energy = sum(e[i] for (_, e), i in zip(curves, chosen, strict=True))
    assert cost <= budget
    # A greedy choice lacks at most the last step that did not fit.
    assert energy >= _all_choices(curves, budget) - 0.15


def test_a_budget_below_the_cheapest_points_cannot_be_kept():
    curve = (np.array([4, 8]), np.array([0.5, 1.0]))
    assert ranks.allocate([curve, curve], 7) is None
    assert ranks.allocate([curve, curve], 8) == [0, 0]
    assert ranks.allocate([curve, curve], 100) == [1, 1]
