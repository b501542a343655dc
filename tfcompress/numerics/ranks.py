"""How many terms a factorization needs: by energy, by noise, or within a budget.

Example:
    ```python
    vbmf_rank(matrix)                       # what stands out of the noise
    allocate([curve, other], budget=1000)   # which point of each curve
    ```
"""

import numpy as np

# Share of the energy that is rounding of float32 rather than noise.
_NO_NOISE = 1e-12


def svd_energies(matrix):
    """Fraction of the sum of squares that the best matrix of each rank keeps.

    Args:
        matrix: Array of shape `(rows, columns)`, not all zeros.

    Returns:
        Array of shape `(min(rows, columns),)`, that of rank 1 first.
    """
    squares = _squared_values(matrix)
    return squares.cumsum() / squares.sum()


def _squared_values(matrix):
    """Squared singular values, largest first."""
    # Of the smaller Gram matrix: several times faster than a decomposition, and
    # squares lose nothing by it.
    matrix = np.asarray(matrix, np.float64)
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    return np.maximum(np.linalg.eigvalsh(wide @ wide.T)[::-1], 0.0)


def cheapest(parameters, energies, energy):
    """Index of the fewest parameters that keep a fraction of the energy.

    Args:
        parameters: Array of counts.
        energies: Array of fractions, of the same length.
        energy: Fraction wanted; the most there is where no entry has it.
    """
    # Rounding leaves a full rank a little short of 1.
    enough = energies >= min(energy, energies.max()) - 1e-12
    return int(np.argmin(np.where(enough, parameters, np.inf)))


def vbmf_rank(matrix):
    """Rank of a matrix under noise of unknown variance.

    The global solution of empirical variational Bayesian matrix factorization: the
    noise variance minimizes the free energy, found on a grid and refined, and a
    component counts if its singular value exceeds the threshold of that variance.

    Args:
        matrix: Array of shape `(rows, columns)`.

    Returns:
        Number of components, 0 for pure noise.

    Reference:
        Nakajima et al., "Global Analytic Solution of Fully-observed Variational
        Bayesian Matrix Factorization", JMLR 14, 2013; threshold, free energy and bounds
        of the variance in the form of Nakajima et al., "Perfect Dimensionality Recovery
        by Variational Bayesian PCA", NeurIPS 2012. Their zero of `phi` is 2.5129 times
        the root of the ratio, approximately; here it is computed.
    """
    squares = _squared_values(matrix)
    short, long = sorted(np.shape(matrix))
    ratio = short / long
    tau = _threshold_tau(ratio)
    threshold = (1 + tau) * (1 + ratio / tau)
    squares = squares / long
    most = min(int(np.ceil(short / (1 + ratio))) - 1, short - 1)
    low = max(squares[most] / threshold, squares[most:].mean())
    high = squares.sum() / short
    if low <= _NO_NOISE * high:
        # Without noise every component that is there counts.
        return int(np.sum(squares > _NO_NOISE * squares[0]))
    squares = np.maximum(squares, _NO_NOISE**2 * high)
    variance = _minimum(
        lambda v: _free_energy(squares / v, ratio, threshold), low, high
    )
    return int(np.sum(squares > threshold * variance))


def _threshold_tau(ratio):
    """Zero of `phi(t) + phi(t / ratio)` with `phi(z) = log(z + 1) / z - 1 / 2`."""

    def phi(z):
        return np.log1p(z) / z - 0.5

    low, high = 1e-9, 10.0
    for _ in range(100):
        middle = (low + high) / 2
        if phi(middle) + phi(middle / ratio) > 0:
            low = middle
        else:
            high = middle
    return middle


def _free_energy(x, ratio, threshold):
    """Free energy up to constants, of squared singular values over the variance."""
    total = np.sum(x - np.log(x), axis=-1)
    tau = x - (1 + ratio)
    tau = (tau + np.sqrt(np.maximum(tau**2 - 4 * ratio, 0.0))) / 2
    tau = np.where(x > threshold, tau, 0.0)
    return total + np.sum(np.log1p(tau) + ratio * np.log1p(tau / ratio) - tau, axis=-1)


def _minimum(function, low, high, *, points=400, rounds=4):
    """Where a function of a positive number is smallest, by ever finer grids."""
    for _ in range(rounds):
        grid = np.geomspace(low, high, points)
        best = int(np.argmin([function(v) for v in grid]))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, points - 1)]
    return grid[best]


def allocate(curves, budget):
    """Picks a point of each curve so that the most energy is kept within a budget.

    Every curve starts at its cheapest point. The step to another point that gains the
    most energy per parameter, of all curves and of those that fit what is left, is
    taken until none fits.

    Args:
        curves: List of `(parameters, energies)`, arrays of equal length.
        budget: Most parameters altogether.

    Returns:
        List with an index into each curve, or `None` if the cheapest points are more
        than the budget.
    """
    chosen = [int(np.lexsort((-e, p))[0]) for p, e in curves]
    left = budget - sum(p[i] for (p, _), i in zip(curves, chosen, strict=True))
    if left < 0:
        return None
    steps = [
        _best_step(*points, i, left) for points, i in zip(curves, chosen, strict=True)
    ]
    while any(slope > 0 for slope, _, _ in steps):
        curve = max(range(len(steps)), key=lambda i: steps[i][0])
        slope, cost, chosen[curve] = steps[curve]
        left -= cost
        for i, step in enumerate(steps):
            if i == curve or step[1] > left:
                steps[i] = _best_step(*curves[i], chosen[i], left)
    return chosen


def _best_step(parameters, energies, at, left):
    """`(energy per parameter, parameters, index)` of the best step that fits."""
    costs, gains = parameters - parameters[at], energies - energies[at]
    fits = (costs > 0) & (costs <= left)
    slopes = np.where(fits, gains / np.maximum(costs, 1), -1.0)
    best = int(np.argmax(slopes))
    return float(slopes[best]), int(costs[best]), best
