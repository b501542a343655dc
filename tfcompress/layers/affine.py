"""A scale and a shift for each channel: what normalization is once it is trained.

Example:
    ```python
    y = Affine()(x)   # x * scale + shift over the last axis
    ```
"""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="tfcompress")
class Affine(keras.layers.Layer):
    """Computes `x * scale + shift` over the last axis.

    As a 1x1 depthwise convolution it is one integer operation of TFLite, with a scale
    of its own for each channel's only weight: nothing is lost by rounding it.

    Args:
        use_scale: Whether there is a scale.
        use_shift: Whether there is a shift.
        as_convolution: Whether to compute as the depthwise convolution, as exporters
            need it; inputs of rank 2 to 5 with a known last axis.
    """

    def __init__(self, use_scale=True, use_shift=True, as_convolution=False, **kwargs):
        super().__init__(**kwargs)
        self.use_scale = use_scale
        self.use_shift = use_shift
        self.as_convolution = as_convolution

    def build(self, input_shape):
        shape = (input_shape[-1],)
        self.scale = self.shift = None
        if self.use_scale:
            self.scale = self.add_weight(name="scale", shape=shape, initializer="ones")
        if self.use_shift:
            self.shift = self.add_weight(name="shift", shape=shape, initializer="zeros")

    def call(self, inputs):
        if self.as_convolution:
            return self._convolve(inputs)
        outputs = inputs if self.scale is None else inputs * self.scale
        return outputs if self.shift is None else outputs + self.shift

    def _convolve(self, inputs):
        if not inputs.dtype.is_floating:
            # Images of integers, which Keras passes on as they are.
            inputs = tf.cast(inputs, self.compute_dtype)
        channels = inputs.shape[-1]
        scale = tf.ones(channels) if self.scale is None else self.scale.value
        x = inputs
        if inputs.shape.rank != 4:
            inner = inputs.shape[1:-1].num_elements() or 1
            x = tf.reshape(inputs, (-1, 1, inner, channels))
        y = tf.nn.depthwise_conv2d(
            x, tf.reshape(scale, (1, 1, channels, 1)), (1, 1, 1, 1), "VALID"
        )
        if self.shift is not None:
            y = tf.nn.bias_add(y, self.shift.value)
        if inputs.shape.rank != 4:
            y = tf.reshape(y, (-1, *inputs.shape[1:]))
        return y

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "use_scale": self.use_scale,
            "use_shift": self.use_shift,
            "as_convolution": self.as_convolution,
        }
