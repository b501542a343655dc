"""The gradient of a cut to a range, in one pass over the values.

Example:
    ```python
    source, least, most = relu_source(x)       # x itself where there was no ReLU
    dsource = pass_within(
        dy, x, tf.maximum(low, least), tf.minimum(high, most), compiled=is_compiled()
    )
    ```
"""

import numpy as np
import tensorflow as tf
from tensorflow.python.ops import control_flow_util

# Where a ReLU passes a gradient: above 0, and below its highest value.
_ABOVE_ZERO = float(np.finfo(np.float32).tiny)
_RELUS = {
    "Relu": (_ABOVE_ZERO, float("inf")),
    "Relu6": (_ABOVE_ZERO, float(np.nextafter(np.float32(6), np.float32(0)))),
}


def pass_within(gradient, x, low, high, *, compiled):
    """`gradient` where `low <= x <= high`, zero elsewhere.

    Args:
        gradient: Float tensor of `x`'s shape and dtype.
        x: Float tensor, any shape.
        low: Scalar float32 tensor; minus infinity for no limit.
        high: Scalar float32 tensor; infinity for no limit.
        compiled: What `is_compiled()` was when `x` was computed: a gradient may be
            traced later, when TensorFlow no longer tells.

    Returns:
        Tensor of `x`'s shape and dtype.
    """
    low, high = (tf.cast(bound, x.dtype) for bound in (low, high))
    if x.dtype != tf.float32 or compiled:
        # XLA makes one loop of these, and has no kernel for the one below.
        return tf.where((x >= low) & (x <= high), gradient, tf.zeros_like(gradient))
    # The gradient of TensorFlow's fake-quantization kernel sums up gradients of the
    # range too, in two more passes.
    return tf.raw_ops.QuantizeAndDequantizeV4Grad(
        gradients=gradient, input=x, input_min=low, input_max=high, axis=-1
    )[0]


def is_compiled():
    """Whether what is traced now is for XLA."""
    graph = tf.compat.v1.get_default_graph()
    return control_flow_util.GraphOrParentsInXlaContext(graph)


def relu_source(x):
    """What a ReLU read to give `x`, so that one mask serves both gradients.

    Args:
        x: Tensor.

    Returns:
        `(source, least, most)`: the tensor that the ReLU read, and between which values
        of `x` it passes a gradient. If `x` does not come straight from a ReLU of the
        graph that is traced now, in float32: `x`, minus infinity and infinity.
    """
    here = not tf.executing_eagerly() and x.graph is tf.compat.v1.get_default_graph()
    if here and x.dtype == tf.float32:
        bounds = _RELUS.get(x.op.type)
        if bounds is not None:
            return x.op.inputs[0], *bounds
    return x, -float("inf"), float("inf")
