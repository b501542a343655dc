"""Tensors of a functional model that depend on no input: weights and constants.

Keras' functional graph knows tensors that come from other tensors. A weight that an
operation reads by itself (`ops.matmul(x, self.w)` in a custom layer) enters the graph
as the output of a `Parameter`, which is called on any tensor and ignores it.

Example:
    ```python
    w = Parameter((64, 10))
    y = keras.ops.matmul(x, w(x))
    ```
"""

import keras
import numpy as np


@keras.saving.register_keras_serializable(package="tfcompress")
class Parameter(keras.layers.Layer):
    """A weight as a tensor of the graph.

    Args:
        shape: Shape of the weight, and of the output: there is no batch axis.
        trainable: Whether it is trained.
    """

    def __init__(self, shape, **kwargs):
        super().__init__(**kwargs)
        self.shape = tuple(shape)
        self.value = self.add_weight(
            name="value", shape=self.shape, initializer="zeros"
        )
        self.built = True

    def call(self, anchor):
        # Not `convert_to_tensor` with a dtype: within a layer it casts no variable.
        return keras.ops.cast(self.value.value, self.compute_dtype)

    def compute_output_spec(self, anchor):
        return keras.KerasTensor(self.shape, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "shape": self.shape}


@keras.saving.register_keras_serializable(package="tfcompress")
class ConstantTensor(keras.layers.Layer):
    """A constant as a tensor of the graph.

    Args:
        value: Array, or nested lists of numbers.
        value_dtype: Its dtype; `None` is that of `value`.
    """

    def __init__(self, value, value_dtype=None, **kwargs):
        super().__init__(**kwargs)
        value = np.asarray(value)
        self.value = value.astype(value_dtype or value.dtype)
        self.built = True

    def call(self, anchor):
        return keras.ops.convert_to_tensor(self.value)

    def compute_output_spec(self, anchor):
        return keras.KerasTensor(self.value.shape, self.value.dtype.name)

    def get_config(self):
        return {
            **super().get_config(),
            "value": self.value.tolist(),
            "value_dtype": self.value.dtype.name,
        }
