"""Fake quantization of activations, with ranges that are learned from what passes.

A `FakeQuant` serves a *group* of tensors that TFLite gives one scale (the inputs of a
concatenation, the input and output of a pooling). Each tensor has a *site*, which keeps
the range of that tensor alone; the grid spans them all.

Example:
    ```python
    quantizer = FakeQuant(sites=2)
    joined = keras.layers.Concatenate()([quantizer(a, site=0), quantizer(b, site=1)])
    ```
"""

import keras
import tensorflow as tf

from tfcompress.numerics import affine


@keras.saving.register_keras_serializable(package="tfcompress")
class FakeQuant(keras.layers.Layer):
    """Rounds activations to a grid of `2**bits` values.

    While training, each site averages the range it sees: a plain mean over the first
    batches, so that nothing pulls toward a start value, then a moving average. Until
    the first range is seen the layer is the identity.

    Args:
        bits: Width of the integers, 2 to 16.
        sites: Number of tensors whose ranges are observed.
        momentum: Share of the old range in the moving average, in [0, 1).
        fixed_range: `(low, high)` that is known beforehand (softmax, sigmoid); nothing
            is observed then.
        in_training: Whether to round while training. Off for the probabilities that a
            loss reads: rounded to zero, their logarithm has no gradient of use.

    Call arguments:
        inputs: Float tensor, any shape.
        site: Which tensor of the group this is; `None` rounds without observing.
        training: Whether ranges are learned.

    Reference:
        Jacob et al., 2017, section 3.1 (moving averages of ranges). arXiv:1712.05877
    """

    def __init__(
        self,
        bits=8,
        *,
        sites=1,
        momentum=0.99,
        fixed_range=None,
        in_training=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.bits = bits
        self.sites = sites
        self.momentum = momentum
        self.fixed_range = None if fixed_range is None else tuple(fixed_range)
        self.in_training = in_training
        low, high = self.fixed_range or (0.0, 0.0)
        self.low = self._state("low", low)
        self.high = self._state("high", high)
        self.batches_seen = self._state("batches_seen", 0.0)
        self.built = True

    def _state(self, name, value):
        return self.add_weight(
            name=name,
            shape=(self.sites,),
            initializer=keras.initializers.Constant(value),
            trainable=False,
            dtype="float32",
            autocast=False,
            aggregation="mean",
        )

    def call(self, inputs, site=0, training=False):
        if training and not self.in_training:
            return inputs
        if self.fixed_range is not None:
            return affine.fake_quantize(inputs, *self.fixed_range, bits=self.bits)
        if training and site is not None:
            self._observe(inputs, site)
        low, high = tf.reduce_min(self.low.value), tf.reduce_max(self.high.value)
        return tf.cond(
            tf.reduce_max(self.batches_seen.value) > 0,
            lambda: affine.fake_quantize(inputs, low, high, bits=self.bits),
            lambda: tf.identity(inputs),
        )

    def _observe(self, inputs, site):
        x = tf.stop_gradient(inputs)
        low = tf.cast(tf.minimum(tf.reduce_min(x), 0), tf.float32)
        high = tf.cast(tf.maximum(tf.reduce_max(x), 0), tf.float32)
        # A batch that overflowed (half precision) says nothing of the range.
        finite = tf.cast(tf.math.is_finite(low) & tf.math.is_finite(high), tf.float32)
        low, high = (tf.where(finite > 0, v, 0.0) for v in (low, high))
        here = finite * tf.one_hot(site, self.sites)
        seen = self.batches_seen.value
        share = here * tf.maximum(1.0 / (seen + 1.0), 1.0 - self.momentum)
        self.low.assign(self.low.value + share * (low - self.low.value))
        self.high.assign(self.high.value + share * (high - self.high.value))
        self.batches_seen.assign(seen + here)

    def set_range(self, site, low, high):
        """Sets the range of a site from calibration; it counts as many batches.

        Args:
            site: The site.
            low: Lowest activation; 0 is included in any case.
            high: Highest activation; 0 is included in any case.
        """
        for variable, value in (
            (self.low, min(float(low), 0.0)),
            (self.high, max(float(high), 0.0)),
            (self.batches_seen, round(1 / (1 - self.momentum))),
        ):
            values = variable.numpy()
            values[site] = value
            variable.assign(values)

    def range(self):
        """Returns `(low, high)` of the grid, or `None` if nothing was seen yet."""
        if self.fixed_range is not None:
            return self.fixed_range
        if not self.batches_seen.numpy().any():
            return None
        return float(self.low.numpy().min()), float(self.high.numpy().max())

    def compute_output_spec(self, inputs, site=0, training=False):
        return keras.KerasTensor(inputs.shape, inputs.dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "bits": self.bits,
            "sites": self.sites,
            "momentum": self.momentum,
            "fixed_range": self.fixed_range,
            "in_training": self.in_training,
        }


@keras.saving.register_keras_serializable(package="tfcompress")
class ConstantFakeQuant(keras.layers.Layer):
    """Fake quantization with a range that is part of the graph, as exporters need it.

    Args:
        low: Lowest value of the grid, at most 0.
        high: Highest value of the grid, at least 0.
        bits: Width of the integers, 2 to 16.
    """

    def __init__(self, low, high, bits=8, **kwargs):
        super().__init__(**kwargs)
        self.low = low
        self.high = high
        self.bits = bits
        self.built = True

    def call(self, inputs):
        return tf.quantization.fake_quant_with_min_max_args(
            inputs, min=self.low, max=self.high, num_bits=self.bits
        )

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, inputs.dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "low": self.low,
            "high": self.high,
            "bits": self.bits,
        }
