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

from tfcompress.numerics import activation_range, affine

# The first batches are all looked at; then one in so many, which is enough for a moving
# average and saves two passes over every activation.
_ALL_OF_FIRST = 100
_ONE_IN = 4
# Calibration counts as so many: training finds other ranges soon enough.
_CALIBRATED = 20
# Values of one example below which no branch is built.
_SMALL = 2048


@keras.saving.register_keras_serializable(package="tfcompress")
class FakeQuant(keras.layers.Layer):
    """Rounds activations to a grid of `2**bits` values.

    While training, each site averages the range it sees: a plain mean over the first
    hundred batches, so that nothing pulls toward a start value, then a moving average
    over one batch in four. Until the first range is seen the layer is the identity.

    Args:
        bits: Width of the integers, 2 to 16.
        sites: Number of tensors whose ranges are observed.
        momentum: Share of the old range in the moving average, in [0, 1).
        fixed_range: `(low, high)` that is known beforehand (softmax, sigmoid); nothing
            is observed then.
        symmetric: Whether the integer of 0 is 0.
        power_of_two: Whether the scale is a power of two (and the grid symmetric).
        in_training: Whether to round while training. Off for the probabilities that a
            loss reads: rounded to zero, their logarithm has no gradient of use.

    Call arguments:
        inputs: Float tensor, any shape.
        site: Which tensor of the group this is; `None` rounds without observing.
        training: Whether ranges are learned.

    Attributes:
        rounding: Variable; the layer is the identity while it is 0.
        observing: Variable; ranges stay as they are while it is 0.

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
        symmetric=False,
        power_of_two=False,
        in_training=True,
        **kwargs,
    ):
        # Whatever comes in goes out in its own dtype, mixed precision or not.
        super().__init__(**{"dtype": "float32", "autocast": False} | kwargs)
        self.bits = bits
        self.sites = sites
        self.momentum = momentum
        self.fixed_range = None if fixed_range is None else tuple(fixed_range)
        self.symmetric = symmetric
        self.power_of_two = power_of_two
        self.in_training = in_training
        low, high = self.fixed_range or (0.0, 0.0)
        self.low = self._state("low", low, (sites,))
        self.high = self._state("high", high, (sites,))
        self.batches_seen = self._state("batches_seen", 0.0, (sites,))
        self.rounding = self._state("rounding", 1.0)
        self.observing = self._state("observing", 1.0)
        self.built = True

    def _state(self, name, value, shape=()):
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=keras.initializers.Constant(value),
            trainable=False,
            dtype="float32",
            autocast=False,
            aggregation="mean",
        )

    def call(self, inputs, site=0, training=False):
        if training and not self.in_training:
            return inputs
        rounds = self.rounding.value > 0
        if self.fixed_range is None:
            if training and site is not None:
                self._observe(inputs, site)
            rounds &= tf.reduce_max(self.batches_seen.value) > 0
        low, high = self._grid()
        return _choose(
            inputs,
            rounds,
            lambda: affine.fake_quantize(inputs, low, high, bits=self.bits),
            lambda: tf.identity(inputs),
        )

    def _grid(self):
        if self.fixed_range is not None:
            return self.fixed_range
        return activation_range.grid(
            tf.reduce_min(self.low.value),
            tf.reduce_max(self.high.value),
            bits=self.bits,
            symmetric=self.symmetric,
            power_of_two=self.power_of_two,
        )

    def _observe(self, inputs, site):
        x = tf.stop_gradient(inputs)
        seen = self.batches_seen.value[site]
        # Below 1: replicas of which one overflowed leave `seen` a fraction.
        due = (self.observing.value > 0) & (
            (seen < _ALL_OF_FIRST) | (tf.math.floormod(seen, _ONE_IN) < 1)
        )
        low, high, found = _choose(
            x, due, lambda: _extremes(x), lambda: (0.0, 0.0, 0.0)
        )
        here = tf.one_hot(site, self.sites)
        share = here * found * tf.maximum(1.0 / (seen + 1.0), 1.0 - self.momentum)
        self.low.assign(self.low.value + share * (low - self.low.value))
        self.high.assign(self.high.value + share * (high - self.high.value))
        counts = tf.where(due, found, self.observing.value)
        self.batches_seen.assign(self.batches_seen.value + here * counts)

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
            (self.batches_seen, _CALIBRATED),
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
        return tuple(float(bound) for bound in self._grid())

    def compute_output_spec(self, inputs, site=0, training=False):
        return keras.KerasTensor(inputs.shape, inputs.dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "bits": self.bits,
            "sites": self.sites,
            "momentum": self.momentum,
            "fixed_range": self.fixed_range,
            "symmetric": self.symmetric,
            "power_of_two": self.power_of_two,
            "in_training": self.in_training,
        }


def _choose(x, condition, first, second):
    """`tf.cond`; of small tensors both are computed, as a branch costs more than they.

    A recurrent network has a hundred of them, and branches take long to build.
    """
    if x.shape[1:].is_fully_defined() and x.shape[1:].num_elements() <= _SMALL:
        return tf.nest.map_structure(
            lambda a, b: tf.where(condition, a, b), first(), second()
        )
    return tf.cond(
        condition, first, lambda: tf.nest.map_structure(tf.convert_to_tensor, second())
    )


def _extremes(x):
    """Lowest and highest value with 0 between them, and 1.0 if they are numbers."""
    low = tf.cast(tf.reduce_min(x), tf.float32)
    high = tf.cast(tf.reduce_max(x), tf.float32)
    # A batch that overflowed (half precision) says nothing of the range, nor does an
    # empty one (the last batch on several devices), whose extremes cross.
    found = tf.math.is_finite(low) & tf.math.is_finite(high) & (low <= high)
    return (
        tf.where(found, tf.minimum(low, 0.0), 0.0),
        tf.where(found, tf.maximum(high, 0.0), 0.0),
        tf.cast(found, tf.float32),
    )


@keras.saving.register_keras_serializable(package="tfcompress")
class ConstantFakeQuant(keras.layers.Layer):
    """Fake quantization with a range that is part of the graph, as exporters need it.

    Args:
        low: Lowest value of the grid, at most 0.
        high: Highest value of the grid, at least 0.
        bits: Width of the integers, 2 to 16.
    """

    def __init__(self, low, high, bits=8, **kwargs):
        super().__init__(**{"dtype": "float32", "autocast": False} | kwargs)
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
