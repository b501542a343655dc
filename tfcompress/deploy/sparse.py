"""Reads the sparse format of TFLite: constants of which only some blocks are stored.

Example:
    ```python
    dense = densified(values, shape, sparsity)
    ```

Reference:
    `SparsityParameters` in TFLite's schema, after Chou et al., "Format abstraction for
    sparse tensor algebra compilers", 2018. arXiv:1804.10112
"""

import math

import numpy as np

# A file says in a few bytes how large a dense tensor would be: not more than this many
# times what it stores, and these many numbers.
_MOST_RATIO, _MOST_EMPTY = 4096, 2**20


def densified(values, shape, sparsity):
    """A constant with its zeros.

    Args:
        values: What is stored, flat array.
        shape: Shape of the result.
        sparsity: `SparsityParametersT` of the tensor.

    Returns:
        Array of `shape`, in the type of `values`.

    Raises:
        ValueError: If the description does not fit the values.
    """
    size = math.prod(shape)
    if size > _MOST_EMPTY + _MOST_RATIO * values.size:
        raise ValueError(f"{values.size} stored values of {size}")
    rank = len(shape)
    order = [int(d) for d in sparsity.traversalOrder]
    blocks = [] if sparsity.blockMap is None else [int(d) for d in sparsity.blockMap]
    if sorted(order) != list(range(rank + len(blocks))):
        raise ValueError(f"traversal order {order} of {rank} dimensions")
    coordinates = _coordinates(order, sparsity.dimMetadata, size)
    if len(coordinates[0]) != values.size:
        raise ValueError(f"{len(coordinates[0])} places for {values.size} values")
    places = [np.zeros(values.size, np.int64)] * rank
    for dimension, along in zip(order, coordinates, strict=True):
        if dimension < rank:
            places[dimension] = along
    for number, dimension in enumerate(blocks):
        level = order.index(rank + number)
        places[dimension] = (
            places[dimension] * int(sparsity.dimMetadata[level].denseSize)
            + coordinates[level]
        )
    dense = np.zeros(shape, values.dtype)
    dense[tuple(places)] = values
    return dense


def _coordinates(order, levels, size):
    """For each level of the tree of coordinates, its index at each stored value."""
    found, count = [], 1
    for _, level in zip(order, levels, strict=True):
        if level.format == 0:
            if count * level.denseSize > size:
                raise ValueError(f"more than {size} places")
            indices = np.tile(np.arange(level.denseSize), count)
            parents = np.repeat(np.arange(count), level.denseSize)
        else:
            segments = np.asarray(level.arraySegments.values, np.int64)
            indices = np.asarray(level.arrayIndices.values, np.int64)
            lengths = np.diff(segments)
            if (
                len(lengths) != count
                or (lengths < 0).any()
                or segments[0] != 0
                or segments[-1] != len(indices)
                or (indices < 0).any()
            ):
                raise ValueError("segments that do not fit their indices")
            parents = np.repeat(np.arange(count), lengths)
        found = [along[parents] for along in found] + [indices]
        count = len(indices)
    return found
