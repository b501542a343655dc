"""One row for each weight transform. A new transform adds a row here."""

from dataclasses import dataclass

import numpy as np

from tfcompress.layers import FakeQuantizeWeight, KeepZeros, Transform


@dataclass(frozen=True)
class Case:
    """A transform, and a weight that it has nothing to do with.

    Attributes:
        transform: The transform.
        untouched: Weight that comes out as it went in.
    """

    transform: Transform
    untouched: np.ndarray


def dense(*shape):
    """A weight without zeros, of both signs."""
    weight = np.random.default_rng(0).uniform(0.1, 1, shape).astype("float32")
    weight *= np.where(np.arange(weight.size).reshape(shape) % 2, 1, -1)
    return weight


def sparse(*shape):
    """A weight half of which is zero, with one channel of nothing but zeros."""
    weight = dense(*shape)
    weight.flat[::2] = 0
    weight[..., -1] = 0
    return weight


_ON_GRID = np.array([[-1.27, 1.0], [0.64, -7.0], [0.01, 3.0]], "float32")

CASES = {
    "keep zeros": Case(KeepZeros(), dense(6, 4)),
    "int8 per channel": Case(FakeQuantizeWeight(bits=8), _ON_GRID[:, :1]),
    "int4 per channel": Case(FakeQuantizeWeight(bits=4), _ON_GRID[:, 1:]),
    "int8 per tensor": Case(FakeQuantizeWeight(bits=8, axes=()), _ON_GRID[:, :1]),
    "int8 per row": Case(FakeQuantizeWeight(bits=8, axes=(0,)), np.ones((3, 1))),
}
