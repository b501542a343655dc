"""Where the largest or smallest value is, in the form that TFLite has.

Keras tells -0 from 0 by the bits of floats first, for which TFLite has no operation.

Example:
    ```python
    find = index_of(call.operation)            # `None` if it is another operation
    ```
"""

import keras
import tensorflow as tf

_FUNCTIONS = {"Argmax": tf.argmax, "Argmin": tf.argmin}


def index_of(operation):
    """The layer that stands for a `keras.ops.argmax` or `argmin` along an axis.

    Args:
        operation: Keras operation or layer.

    Returns:
        `IndexOf`, or `None` if `operation` is another or has no axis.
    """
    function = _FUNCTIONS.get(type(operation).__name__)
    if function is None or isinstance(operation, keras.layers.Layer):
        return None
    if operation.axis is None:
        return None
    return IndexOf(function, operation.axis, operation.keepdims)


class IndexOf(keras.layers.Layer):
    """Index of the extreme value along an axis, the first of several, int32.

    Args:
        function: `tf.argmax` or `tf.argmin`.
        axis: The axis.
        keepdims: Whether the axis stays, with length 1.
    """

    def __init__(self, function, axis, keepdims):
        super().__init__()
        self.function = function
        self.axis = axis
        self.keepdims = keepdims

    def call(self, x):
        index = self.function(x, axis=self.axis, output_type=tf.int32)
        return tf.expand_dims(index, self.axis) if self.keepdims else index
