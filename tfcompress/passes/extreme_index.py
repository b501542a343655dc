"""Where the largest or smallest value is, in the form that TFLite has.

Keras tells -0 from 0 by the bits of floats first, for which TFLite has no operation.

Example:
    ```python
    index = index_of(call.operation)(x) if is_index(call.operation) else ...
    ```
"""

import keras
import tensorflow as tf

_FUNCTIONS = {"Argmax": tf.argmax, "Argmin": tf.argmin}


def is_index(operation):
    """Whether it is a `keras.ops.argmax` or `argmin` along an axis."""
    is_layer = isinstance(operation, keras.layers.Layer)
    if is_layer or type(operation).__name__ not in _FUNCTIONS:
        return False
    return operation.axis is not None


def index_of(operation):
    """The layer that stands for an operation for which `is_index` is true."""
    function = _FUNCTIONS[type(operation).__name__]
    name = operation.name
    return IndexOf(function, operation.axis, operation.keepdims, name=name)


class IndexOf(keras.layers.Layer):
    """Index of the extreme value along an axis, the first of several, int32.

    Args:
        function: `tf.argmax` or `tf.argmin`.
        axis: The axis.
        keepdims: Whether the axis stays, with length 1.
    """

    def __init__(self, function, axis, keepdims, **kwargs):
        # Values are compared as they come in, whatever the global policy.
        super().__init__(**{"dtype": "float32", "autocast": False} | kwargs)
        self.function = function
        self.axis = axis
        self.keepdims = keepdims

    def call(self, x):
        index = self.function(x, axis=self.axis, output_type=tf.int32)
        return tf.expand_dims(index, self.axis) if self.keepdims else index
