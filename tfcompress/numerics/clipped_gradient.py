"""The gradient of a cut to a range, in one pass over the values.

Example:
    ```python
    dx = pass_within(dy, x, low, high, compiled=is_compiled())
    ```
"""

import tensorflow as tf
from tensorflow.python.ops import control_flow_util


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
