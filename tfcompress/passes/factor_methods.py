"""The ways in which `tfc.factorize` takes a kernel apart.

A method knows the ranks there are, what each costs and keeps, and the parts of one.

Example:
    ```python
    curve = METHODS["svd"].curve(kernel)
    parts, kernel = METHODS["svd"].parts(layer, kernel, curve.ranks[7])
    ```
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import layers

from tfcompress.numerics import factorization, ranks
from tfcompress.passes.factor_layers import Part, equal_strides, point, whole


@dataclass(frozen=True, eq=False)
class Curve:
    """Ranks of a kernel, from the fewest parameters on.

    Attributes:
        ranks: List of ranks: numbers, or pairs for Tucker.
        parameters: Array, what each costs.
        energies: Array, the fraction of the sum of squares that each keeps.
    """

    ranks: list
    parameters: Any
    energies: Any


class Svd:
    """The kernel over fewer outputs, then a 1x1 convolution; Dense into two."""

    def refuses(self, layer):
        """Why it does not apply to a layer; `None` if it does."""
        return None

    def curve(self, kernel):
        """The `Curve` of a kernel."""
        matrix = self._matrix(kernel)
        return _curve_of_matrix(matrix)

    def full(self, kernel):
        """The largest rank there is."""
        return min(self._matrix(kernel).shape)

    def vbmf(self, kernel):
        """The rank that variational Bayes finds."""
        return ranks.vbmf_rank(self._matrix(kernel))

    def parameters(self, shape, rank):
        """Weights of the factors of a kernel of a shape."""
        return rank * (int(np.prod(shape[:-1])) + shape[-1])

    def parts(self, layer, kernel, rank):
        """The `Part`s, and the kernel that they make up."""
        left, right = factorization.low_rank(self._matrix(kernel), rank)
        first = left.reshape(*kernel.shape[:-1], rank)
        found = [Part(first, geometry=whole(layer)), point(layer, right)]
        return found, (left @ right).reshape(kernel.shape)

    def _matrix(self, kernel):
        return kernel.reshape(-1, kernel.shape[-1])


class Spatial:
    """A convolution along the height, then one along the width."""

    def refuses(self, layer):
        two = isinstance(layer, layers.Conv2D) and min(layer.kernel_size) > 1
        return None if two else "spatial SVD needs a Conv2D of more than 1x1"

    def curve(self, kernel):
        return _curve_of_matrix(factorization.spatial_matrix(kernel))

    def full(self, kernel):
        return min(factorization.spatial_matrix(kernel).shape)

    def vbmf(self, kernel):
        return ranks.vbmf_rank(factorization.spatial_matrix(kernel))

    def parameters(self, shape, rank):
        height, width, inputs, outputs = shape
        return rank * (height * inputs + width * outputs)

    def parts(self, layer, kernel, rank):
        vertical, horizontal = factorization.spatial_svd(kernel, rank)
        found = [Part(vertical, geometry=(0,)), Part(horizontal, geometry=(1,))]
        # (height, 1, in, rank) @ (1, width, rank, out)
        return found, vertical @ horizontal


class Tucker:
    """A 1x1 convolution to fewer channels, a small kernel, a 1x1 convolution."""

    def refuses(self, layer):
        if isinstance(layer, layers.Dense) or max(layer.kernel_size) == 1:
            return "Tucker-2 needs a convolution of more than 1x1"
        return None

    def curve(self, kernel):
        energies = factorization.tucker2_energies(kernel)
        into, out_of = np.indices(energies.shape) + 1
        costs = self.parameters(kernel.shape, (into, out_of))
        order = np.lexsort((-energies.ravel(), costs.ravel()))
        kept = energies.ravel()[order]
        # Only pairs that keep more than everything cheaper.
        better = kept > np.concatenate([[-1.0], np.maximum.accumulate(kept)[:-1]])
        order = order[better]
        pairs = np.stack([into.ravel()[order], out_of.ravel()[order]], axis=1)
        return Curve(
            [tuple(p) for p in pairs.tolist()], costs.ravel()[order], kept[better]
        )

    def full(self, kernel):
        return kernel.shape[-2:]

    def vbmf(self, kernel):
        return tuple(map(ranks.vbmf_rank, factorization.channel_unfoldings(kernel)))

    def parameters(self, shape, rank):
        into, out_of = rank
        places = int(np.prod(shape[:-2]))
        return shape[-2] * into + places * into * out_of + shape[-1] * out_of

    def parts(self, layer, kernel, rank):
        first, core, last = factorization.tucker2(kernel, rank)
        found = [
            point(layer, first),
            Part(core, geometry=whole(layer)),
            point(layer, last),
        ]
        return found, first @ core @ last


class Cp:
    """A 1x1 convolution, a depthwise convolution, a 1x1 convolution."""

    # Ranks tried, as shares of the largest that is smaller than the kernel: each takes
    # a run of least squares.
    _SHARES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 0.999)

    def refuses(self, layer):
        if not isinstance(layer, (layers.Conv1D, layers.Conv2D)) or (
            max(layer.kernel_size) == 1
        ):
            return "CP needs a Conv1D or Conv2D of more than 1x1"
        if layer.padding == "causal":
            return "CP needs another padding than 'causal', which depthwise ones lack"
        if not equal_strides(layer):
            return "CP needs equal strides, as depthwise convolutions do"
        return None

    def curve(self, kernel):
        most = kernel.size / self.parameters(kernel.shape, 1)
        tried = sorted({max(int(most * share), 1) for share in self._SHARES})
        errors = [
            factorization.relative_error(kernel, self._together(kernel, rank)[1])
            for rank in tried
        ]
        costs = [self.parameters(kernel.shape, rank) for rank in tried]
        return Curve(tried, np.array(costs), 1 - np.square(errors))

    def full(self, kernel):
        return min(kernel.shape[-2:])

    def vbmf(self, kernel):
        return max(map(ranks.vbmf_rank, factorization.channel_unfoldings(kernel)))

    def parameters(self, shape, rank):
        return rank * (shape[-2] + int(np.prod(shape[:-2])) + shape[-1])

    def parts(self, layer, kernel, rank):
        (first, depthwise, last), together = self._together(kernel, rank)
        found = [
            point(layer, first),
            Part(depthwise[..., None], depthwise=True, geometry=whole(layer)),
            point(layer, last),
        ]
        return found, together

    def _together(self, kernel, rank):
        first, depthwise, last = factors = factorization.cp(kernel, rank)
        return factors, first * depthwise[..., None, :] @ last


METHODS = {"svd": Svd(), "tucker": Tucker(), "spatial": Spatial(), "cp": Cp()}


def _curve_of_matrix(matrix):
    energies = ranks.svd_energies(matrix)
    found = np.arange(1, len(energies) + 1)
    return Curve(found.tolist(), found * sum(matrix.shape), energies)
