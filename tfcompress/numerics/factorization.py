"""Kernels as products of smaller ones, in numpy.

Kernels are laid out as Keras does, `(*spatial, in, out)`. All arithmetic is float64.

Example:
    ```python
    left, right = low_rank(matrix, 8)        # matrix ~ left @ right
    first, core, last = tucker2(kernel, (16, 24))
    ```
"""

import numpy as np

_SMALLEST = np.finfo(np.float64).tiny


def low_rank(matrix, rank):
    """The nearest matrix of a rank, as a product of two.

    Args:
        matrix: Array of shape `(rows, columns)`.
        rank: Its new rank, from 1 to the smaller side.

    Returns:
        `(left, right)` of shapes `(rows, rank)` and `(rank, columns)`, of equal norms.
        No matrix of that rank is nearer: the distance is the next singular value in the
        operator norm, the root of the sum of squares of all further ones in the
        Frobenius norm.

    Reference:
        Eckart & Young, "The approximation of one matrix by another of lower rank",
        1936.
    """
    matrix = _float64(matrix)
    if matrix.shape[0] > matrix.shape[1]:
        left, right = low_rank(matrix.T, rank)
        return right.T, left.T
    # Projection on the leading left singular vectors, which those of the smaller Gram
    # matrix are: several times faster than the decomposition, and exact at full rank.
    left = _eigenvectors(matrix @ matrix.T)[:, :rank]
    right = left.T @ matrix
    values = np.linalg.norm(right, axis=1)
    root = np.sqrt(np.where(values > 0, values, 1.0))
    return left * root, right / root[:, None]


def spatial_svd(kernel, rank):
    """A convolution along the height, then one along the width.

    Args:
        kernel: Array of shape `(height, width, in, out)`.
        rank: Channels between the two, up to `min(height * in, width * out)`.

    Returns:
        `(vertical, horizontal)` of shapes `(height, 1, in, rank)` and
        `(1, width, rank, out)`, the best of that rank in the Frobenius norm.

    Reference:
        Jaderberg et al., "Speeding up Convolutional Neural Networks with Low Rank
        Expansions", 2014, scheme 2, eq. 5. arXiv:1405.3866; solved in closed form as by
        Tai et al., 2015, theorem 1. arXiv:1511.06067
    """
    height, width, inputs, outputs = kernel.shape
    left, right = low_rank(spatial_matrix(kernel), rank)
    vertical = left.reshape(height, 1, inputs, rank)
    horizontal = right.reshape(rank, 1, width, outputs)
    return vertical, np.transpose(horizontal, (1, 2, 0, 3))


def spatial_matrix(kernel):
    """A 2D kernel as the matrix `(height * in, width * out)` of `spatial_svd`."""
    height, width, inputs, outputs = kernel.shape
    ordered = np.transpose(kernel, (0, 2, 1, 3))
    return ordered.reshape(height * inputs, width * outputs)


def tucker2(kernel, ranks, *, iterations=10):
    """Fewer channels, a small kernel, and more channels again.

    Starts from the leading singular vectors of both channel unfoldings and improves
    one side given the other (higher-order orthogonal iteration).

    Args:
        kernel: Array of shape `(*spatial, in, out)`.
        ranks: `(channels into the core, channels out of it)`, up to `(in, out)`.
        iterations: Rounds of improvement; 0 is the truncated HOSVD.

    Returns:
        `(first, core, last)` of shapes `(in, r1)`, `(*spatial, r1, r2)`, `(r2, out)`.
        `first` has orthonormal columns, `last` rows.

    Reference:
        Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low
        Power Mobile Applications", 2015, eq. 5. arXiv:1511.06530; De Lathauwer et al.,
        "On the best rank-1 and rank-(R1, ..., RN) approximation", 2000.
    """
    flat = _float64(kernel).reshape(-1, *kernel.shape[-2:])
    into, out_of = ranks
    first = channel_basis(flat, 1)[:, :into]
    last = channel_basis(flat, 2)[:, :out_of]
    for _ in range(iterations):
        first = channel_basis(flat @ last, 1)[:, :into]
        last = channel_basis(np.swapaxes(first.T @ flat, 1, 2), 1)[:, :out_of]
    core = first.T @ flat @ last
    return first, core.reshape(*kernel.shape[:-2], into, out_of), last.T


def tucker2_energies(kernel):
    """The energy that the truncated HOSVD keeps, for every pair of ranks.

    Args:
        kernel: Array of shape `(*spatial, in, out)`, not all zeros.

    Returns:
        Array of shape `(in, out)`: at `[r1 - 1, r2 - 1]` the fraction of the sum of
        squares. `tucker2` keeps at least as much.
    """
    flat = _float64(kernel).reshape(-1, *kernel.shape[-2:])
    core = channel_basis(flat, 1).T @ flat @ channel_basis(flat, 2)
    energies = np.sum(core**2, axis=0).cumsum(axis=0).cumsum(axis=1)
    return energies / energies[-1, -1]


def channel_basis(flat, axis):
    """Left singular vectors of a channel unfolding, strongest first.

    Args:
        flat: Array of shape `(positions, in, out)`.
        axis: The channel axis, 1 or 2.
    """
    # By its Gram matrix, which is far smaller than the unfolding.
    unfolded = np.moveaxis(flat, axis, 0).reshape(flat.shape[axis], -1)
    return _eigenvectors(unfolded @ unfolded.T)


def channel_unfoldings(kernel):
    """The matrices `(in, *spatial * out)` and `(out, *spatial * in)` of a kernel."""
    flat = _float64(kernel).reshape(-1, *kernel.shape[-2:])
    return [np.moveaxis(flat, a, 0).reshape(flat.shape[a], -1) for a in (1, 2)]


def cp(kernel, rank, *, iterations=200, tolerance=1e-8, seed=0):
    """A sum of outer products: 1x1, depthwise and 1x1 convolutions.

    Alternating least squares over three modes: all positions, inputs, outputs. It
    starts from the leading singular vectors of the channel unfoldings, random where
    these are too few, and finds a local optimum.

    Args:
        kernel: Array of shape `(*spatial, in, out)`.
        rank: Number of terms.
        iterations: Most rounds of least squares.
        tolerance: Stops when a round lowers the relative error by less.
        seed: Of the random start.

    Returns:
        `(first, depthwise, last)` of shapes `(in, rank)`, `(*spatial, rank)`,
        `(rank, out)`; the three factors of a term have equal norms.

    Reference:
        Lebedev et al., "Speeding-up Convolutional Neural Networks Using Fine-tuned
        CP-Decomposition", 2014, eq. 3, arXiv:1412.6553; positions as one mode as in
        Astrid & Lee, 2017. arXiv:1701.07148
    """
    flat = _float64(kernel).reshape(-1, *kernel.shape[-2:])
    rng = np.random.default_rng(seed)
    inputs, outputs = (_leading(flat, axis, rank, rng) for axis in (1, 2))
    norm, error = np.linalg.norm(flat), np.inf
    for _ in range(iterations):
        over_outputs = flat @ outputs
        places = _solved(np.einsum("pir,ir->pr", over_outputs, inputs), inputs, outputs)
        inputs = _solved(np.einsum("pir,pr->ir", over_outputs, places), places, outputs)
        over_inputs = np.swapaxes(flat, 1, 2) @ inputs
        product = np.einsum("por,pr->or", over_inputs, places)
        outputs = _solved(product, places, inputs)
        previous, error = error, _cp_error(norm, product, places, inputs, outputs)
        if previous - error < tolerance:
            break
    places, inputs, outputs = _balanced(places, inputs, outputs)
    return inputs, places.reshape(*kernel.shape[:-2], rank), outputs.T


def separable(kernel, multiplier=1):
    """A depthwise convolution and a 1x1 convolution, the nearest there are.

    The kernel of each input channel, a matrix of positions by outputs, is approximated
    by itself: what the channels add to the squared distance does not interact, so the
    best of each is the best of all.

    Args:
        kernel: Array of shape `(*spatial, in, out)`.
        multiplier: Depthwise outputs of each input channel, up to the smaller of
            positions and outputs.

    Returns:
        `(depthwise, pointwise)` of shapes `(*spatial, in, multiplier)` and
        `(in * multiplier, out)`.

    Reference:
        Guo et al., "Network Decoupling: From Regular to Depthwise Separable
        Convolutions", 2018, eq. 4. arXiv:1808.05517
    """
    spatial, (inputs, outputs) = kernel.shape[:-2], kernel.shape[-2:]
    by_channel = np.moveaxis(_float64(kernel).reshape(-1, inputs, outputs), 1, 0)
    left, values, right = np.linalg.svd(by_channel, full_matrices=False)
    root = np.sqrt(values[:, :multiplier])
    depthwise = np.moveaxis(left[:, :, :multiplier] * root[:, None], 0, 1)
    pointwise = root[:, :, None] * right[:, :multiplier]
    return (
        depthwise.reshape(*spatial, inputs, multiplier),
        pointwise.reshape(inputs * multiplier, outputs),
    )


def relative_error(kernel, approximation):
    """Frobenius norm of the difference over that of the kernel; 0 for zeros."""
    norm = np.linalg.norm(_float64(kernel))
    return float(np.linalg.norm(kernel - approximation) / norm) if norm else 0.0


def _eigenvectors(gram):
    """As columns, that of the largest eigenvalue first."""
    return np.linalg.eigh(gram)[1][:, ::-1]


def _float64(array):
    return np.asarray(array, np.float64)


def _leading(flat, axis, rank, rng):
    basis = channel_basis(flat, axis)[:, :rank]
    missing = rank - basis.shape[1]
    return np.hstack([basis, rng.normal(size=(len(basis), missing))])


def _solved(product, one, other):
    """Least squares for one factor matrix: `product @ inv(gram)`."""
    gram = (one.T @ one) * (other.T @ other)
    # A trace of ridge: collinear terms would make the system singular.
    gram[np.diag_indices_from(gram)] += 1e-12 * np.trace(gram) + _SMALLEST
    return np.linalg.solve(gram, product.T).T


def _cp_error(norm, product, places, inputs, outputs):
    """Relative error, from what the last least squares computed anyway."""
    gram = (places.T @ places) * (inputs.T @ inputs) * (outputs.T @ outputs)
    square = norm**2 - 2 * np.sum(product * outputs) + gram.sum()
    return np.sqrt(max(square, 0.0)) / max(norm, _SMALLEST)


def _balanced(*factors):
    """The factors with each column of the geometric mean of its norms."""
    norms = [np.maximum(np.linalg.norm(f, axis=0), _SMALLEST) for f in factors]
    mean = np.cbrt(norms[0] * norms[1] * norms[2])
    return [f / n * mean for f, n in zip(factors, norms, strict=True)]
