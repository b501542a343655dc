"""Where the centroids of a codebook start, and k-means, in numpy.

Example:
    ```python
    centroids = initial_centroids(kernel, clusters=16)   # (15,): zero is one more
    centroids = kmeans_step(kernel, centroids)
    ```

Reference:
    Han et al., "Deep Compression", 2015, section 3.2. arXiv:1510.00149
"""

import math

import numpy as np

from tfcompress.numerics.affine import reduced_axes

STARTS = ("kmeans++", "linear", "density", "quantile", "random")
# Weights looked at together, so that copies stay small.
_CHUNK = 1 << 20
# Weights among which k-means++ draws.
_DRAWN_FROM = 1 << 17
# Starts of k-means++ of which the best counts.
_DRAWS = 3
# Spread of the centroids of a weight that is all zeros.
_SPREAD = 0.05


def initial_centroids(
    weight, clusters=16, *, axes=(), start="kmeans++", steps=20, seed=0
):
    """Centroids from which training starts.

    A weight that has no more than `clusters` different values gets just these. Zeros
    have no say, as zero is in every codebook; nor are there any of a weight of nothing
    but zeros, whose centroids are spread evenly over ±0.05.

    Args:
        weight: Float array, any shape.
        clusters: Number of values, zero included, 2 or more.
        axes: Axes that have codebooks of their own; `()` for one.
        start: `"linear"` (evenly from the least to the largest weight), `"density"`
            (equally many weights between them, the extremes included), `"quantile"`
            (each the median of equally many weights), `"random"` (weights drawn at
            random) or `"kmeans++"` (drawn by squared distance to those drawn before;
            the best of three starts).
        steps: Steps of k-means (Lloyd's) after that; fewer if nothing moves any more.
        seed: Of what is drawn.

    Returns:
        Float32 array `(codebooks * (clusters - 1),)`, each codebook in rising order.

    Reference:
        Han et al., 2015, section 3.2 for linear, density and random; Arthur &
        Vassilvitskii, "k-means++", 2007
    """
    rng = np.random.default_rng(seed)
    rows = _numpy_rows(weight, axes)
    books = [_initial_row(row, clusters - 1, start, steps, rng) for row in rows]
    return np.concatenate(books).astype("float32")


def _initial_row(row, count, start, steps, rng):
    values = np.sort(row[row != 0])
    different = few_values(values, count)
    if different is not None:
        if not different.size:
            points = np.linspace(-_SPREAD, _SPREAD, count + 1)
            return _without_least(points)
        # Repeated ones have no members until the first has moved away.
        return np.pad(different, (0, count - different.size), mode="edge")
    values = values.astype("float64")
    sums = np.concatenate([[0.0], np.cumsum(values)])
    best, most = None, -np.inf
    for _ in range(_DRAWS if start == "kmeans++" else 1):
        points = _STARTS[start](values, count, rng)
        for _ in range(steps):
            before, points = points, _lloyd(values, sums, points)
            if np.array_equal(before, points):
                break
        explained = _explained(values, sums, points)
        if explained > most:
            best, most = points, explained
    return best


def few_values(values, most):
    """The different values of an array in rising order; `None` if more than `most`."""
    found = np.empty(0, values.dtype)
    for begin in range(0, values.size, _CHUNK):
        found = np.union1d(found, values.ravel()[begin : begin + _CHUNK])
        if found.size > most:
            return None
    return found


def _members(values, sums, points):
    """The book with zero, and the number and sum of the values nearest to each."""
    book = np.sort(np.append(points, 0.0))
    ends = np.searchsorted(values, (book[1:] + book[:-1]) / 2, side="right")
    ends = np.concatenate([[0], ends, [values.size]])
    return book, np.diff(ends), np.diff(sums[ends])


def _explained(values, sums, points):
    """By how much the squared error is less than that of zero alone."""
    book, number, total = _members(values, sums, points)
    return float(np.sum(book * (2 * total - number * book)))


def _lloyd(values, sums, points):
    """One step of k-means on sorted values, beside a centroid that stays at zero."""
    book, number, total = _members(values, sums, points)
    means = total / np.maximum(number, 1)
    book = np.where((number > 0) & (book != 0), means, book)
    return np.sort(np.delete(book, np.argmin(np.abs(book))))


def _without_least(points):
    """Leaves out the point for which zero stands."""
    return np.delete(points, np.argmin(np.abs(points)))


def _linear(values, count, rng):
    return _without_least(np.linspace(values[0], values[-1], count + 1))


def _density(values, count, rng):
    return _without_least(np.quantile(values, np.linspace(0, 1, count + 1)))


def _quantile(values, count, rng):
    middle = (np.arange(count + 1) + 0.5) / (count + 1)
    return _without_least(np.quantile(values, middle))


def _random(values, count, rng):
    return np.sort(rng.choice(values, count, replace=False))


def _kmeans_plus_plus(values, count, rng):
    if values.size > _DRAWN_FROM:
        values = rng.choice(values, _DRAWN_FROM, replace=False)
    distance = values**2
    points = []
    for _ in range(count):
        # Of several the one that leaves the least error, or some side of zero may
        # stay without a centroid.
        share = np.cumsum(distance)
        drawn = np.searchsorted(share, rng.random(2 + int(np.log(count))) * share[-1])
        found = values[np.minimum(drawn, values.size - 1)]
        left = [np.minimum(distance, (values - point) ** 2) for point in found]
        best = np.argmin([distance.sum() for distance in left])
        points.append(found[best])
        distance = left[best]
    return np.sort(points)


_STARTS = {
    "linear": _linear,
    "density": _density,
    "quantile": _quantile,
    "random": _random,
    "kmeans++": _kmeans_plus_plus,
}


def kmeans_step(weight, centroids, *, axes=()):
    """Moves each centroid to the mean of the weights that are nearest to it.

    Linear in the weights. Zero stays where it is, and so does a centroid of no weight.

    Args:
        weight: Float array, any shape.
        centroids: Array as `initial_centroids` gives it.
        axes: As of `initial_centroids`.

    Returns:
        Float32 array of the shape of `centroids`.
    """
    rows = _numpy_rows(weight, axes)
    books = np.asarray(centroids, "float64").reshape(len(rows), -1)
    moved = [_kmeans_row(row, book) for row, book in zip(rows, books, strict=True)]
    return np.concatenate(moved).astype("float32")


def _kmeans_row(row, points):
    book = np.append(0.0, points)
    order = np.argsort(book, kind="stable")
    borders = (book[order][1:] + book[order][:-1]) / 2
    sums, number = np.zeros(book.size), np.zeros(book.size)
    for begin in range(0, row.size, _CHUNK):
        part = row[begin : begin + _CHUNK].astype("float64")
        member = order[np.searchsorted(borders, part)]
        # A weight that is zero belongs to zero, wherever borders lie.
        member[part == 0] = 0
        sums += np.bincount(member, part, minlength=book.size)
        number += np.bincount(member, minlength=book.size)
    return np.where(number > 0, sums / np.maximum(number, 1), book)[1:]


def _numpy_rows(weight, axes):
    """As `_Rows`, of an array."""
    weight = np.asarray(weight, "float32")
    kept = [a for a in range(weight.ndim) if a not in reduced_axes(weight, axes)]
    rows = np.moveaxis(weight, kept, range(len(kept)))
    return rows.reshape(math.prod(weight.shape[axis] for axis in kept), -1)
