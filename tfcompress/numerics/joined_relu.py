"""The ReLU before a rounding, so that both are one pass over the values, not two.

Rounding to a grid that begins at 0 cuts what is negative too, and the gradient of its
cut is zero where the ReLU's is: reading what the ReLU read, it does the work of both.

Example:
    ```python
    relu = relu_before(x)                      # `None` if there is none
    low = relu.function(tf.reduce_min(relu.source))
    ```
"""

import collections.abc
import dataclasses

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Relu:
    """A ReLU of the graph that is traced.

    Attributes:
        source: Float32 tensor that it reads.
        function: What it computes.
        highest: Its highest value.
    """

    source: tf.Tensor
    function: collections.abc.Callable
    highest: float

    def slope_range(self, low, high):
        """Between which sources the ReLU and a cut to `low` to `high` have a slope."""
        # A ReLU has none at its ends.
        above = np.finfo(np.float32).tiny
        below = np.nextafter(np.float32(self.highest), np.float32(0))
        below = below if np.isfinite(self.highest) else self.highest
        return tf.maximum(low, above), tf.minimum(high, below)


_RELUS = {"Relu": (tf.nn.relu, float("inf")), "Relu6": (tf.nn.relu6, 6.0)}


def relu_before(x):
    """The ReLU whose output `x` is, as a `Relu`.

    Args:
        x: Tensor.

    Returns:
        `None` if `x` does not come straight from a ReLU of the graph that is traced
        now, in float32.
    """
    if not tf.is_symbolic_tensor(x):
        return None
    if x.graph is not tf.compat.v1.get_default_graph():
        return None
    if x.dtype != tf.float32 or x.op.type not in _RELUS:
        return None
    return Relu(x.op.inputs[0], *_RELUS[x.op.type])
