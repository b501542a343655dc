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
import numpy as np
import tensorflow as tf

from tfcompress.graph import allow_depth
from tfcompress.numerics import activation_range, affine
from tfcompress.numerics.branch import cheapest_cond, is_small, values_of_example
from tfcompress.numerics.clipped_gradient import is_compiled
from tfcompress.numerics.joined_relu import relu_before

# The first batches are all looked at; then one in so many, which is enough for a moving
# average and saves two passes over every activation.
_ALL_OF_FIRST = 100
_ONE_IN = 4
# Calibration counts as so many: training finds other ranges soon enough.
_CALIBRATED = 20


@keras.saving.register_keras_serializable(package="tfcompress")
class FakeQuant(keras.layers.Layer):
    """Rounds activations to a grid of `2**bits` values.

    While training, each site averages the range it sees: a plain mean over the first
    hundred batches, so that nothing pulls toward a start value, then a moving average
    over one batch in four. Rounding does not wait for the range of its own batch: a
    site that has seen none, and was not calibrated, is not rounded.

    Args:
        bits: Width of the integers, 2 to 16.
        sites: Number of tensors whose ranges are observed.
        momentum: Share of the old range in the moving average, in [0, 1).
        fixed_range: `(low, high)` that is known beforehand (softmax, sigmoid); nothing
            is observed then.
        symmetric: Whether the integer of 0 is 0.
        power_of_two: Whether the scale is a power of two (and the grid symmetric).
        ends_on_grid: Whether a range is widened so that both ends lie on the grid,
            where that costs little (see `activation_range.grid`).
        in_training: Whether to round while training. Off for the probabilities that a
            loss reads: rounded to zero, their logarithm has no gradient of use.
        joins_relu: Whether a ReLU whose output comes in is computed together with the
            rounding while training, where that costs less. The gradient then goes to
            what the ReLU read, and none to its output: for ReLUs of the same model.

    Call arguments:
        inputs: Float tensor, any shape.
        site: Which tensor of the group this is; `None` rounds without observing.
        training: Whether ranges are learned.

    Attributes:
        observed: Variable `(3, sites)`: lowest value, highest value and number of
            batches seen by each site.
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
        ends_on_grid=False,
        in_training=True,
        joins_relu=False,
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
        self.ends_on_grid = ends_on_grid
        self.in_training = in_training
        self.joins_relu = joins_relu
        # In one variable, for a step has hundreds of these to read and to write.
        self.observed = self._state("observed", 0.0, (3, sites))
        self.rounding = self._state("rounding", 1.0)
        self.observing = self._state("observing", 1.0)
        self.built = True
        # Here, for `load_model` too builds the graph that it makes deeper.
        allow_depth()

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
        relu = self._joined(inputs) if training else None
        if self.fixed_range is not None:
            low, high = self.fixed_range
        else:
            # The range of the batches before: rounding need not wait for this one's.
            observed = tf.convert_to_tensor(self.observed.value)
            if training and site is not None:
                self._observe(inputs, relu, site, observed)
                rounds &= observed[2, site] > 0
            low, high, seen = self._grid(observed)
            rounds &= seen > 0
        return affine.fake_quantize(
            inputs, low, high, bits=self.bits, active=rounds, relu=relu
        )

    def _joined(self, inputs):
        """The ReLU that is computed together with the rounding, or `None`."""
        symmetric = self.symmetric or self.power_of_two
        if not self.joins_relu or symmetric or is_small(values_of_example(inputs)):
            return None
        return None if is_compiled() else relu_before(inputs)

    def _grid(self, observed):
        """Lowest and highest value of the grid, and batches seen by any site."""
        if self.sites == 1:
            low, high, seen = tf.unstack(tf.reshape(observed, (3,)))
        else:
            low, high, seen = tf.unstack(observed)
            low, high = tf.reduce_min(low), tf.reduce_max(high)
            seen = tf.reduce_max(seen)
        low, high = activation_range.grid(
            low,
            high,
            bits=self.bits,
            symmetric=self.symmetric,
            power_of_two=self.power_of_two,
            ends_on_grid=self.ends_on_grid,
        )
        return low, high, seen

    def _observe(self, x, relu, site, before):
        here = np.arange(self.sites) == site
        seen = before[2, site]
        # Below 1: replicas of which one overflowed leave a fraction.
        due = (seen < _ALL_OF_FIRST) | (tf.math.floormod(seen, _ONE_IN) < 1)
        observing = self.observing.value

        x, function = (x, tf.identity) if relu is None else (relu.source, relu.function)
        x = tf.stop_gradient(x)

        def looked():
            low, high, found = _extremes(x, function)
            share = found * tf.maximum(1.0 / (seen + 1.0), 1.0 - self.momentum)
            step = tf.stack(
                [
                    share * (low - before[0, site]),
                    share * (high - before[1, site]),
                    found,
                ]
            )
            return before + step[:, None] * here.astype("float32")

        counted = np.outer([0, 0, 1], here).astype("float32")
        after = cheapest_cond(
            values_of_example(x),
            due & (observing > 0),
            looked,
            lambda: before + counted * observing,
        )
        self.observed.assign(after)

    def set_range(self, site, low, high):
        """Sets the range of a site from calibration; it counts as many batches.

        Args:
            site: The site.
            low: Lowest activation; 0 is included in any case.
            high: Highest activation; 0 is included in any case.
        """
        observed = self.observed.numpy()
        observed[:, site] = min(float(low), 0.0), max(float(high), 0.0), _CALIBRATED
        self.observed.assign(observed)

    def range(self):
        """Returns `(low, high)` of the grid, or `None` if nothing was seen yet."""
        if self.fixed_range is not None:
            return self.fixed_range
        low, high, seen = map(float, self._grid(self.observed.numpy()))
        return (low, high) if seen > 0 else None

    def range_of_zeros(self):
        """Returns the `(low, high)` that the grid would have, had 1 been seen too."""
        zeros_and_one = np.array([[0.0], [1.0], [1.0]], "float32")
        low, high, _ = map(float, self._grid(np.tile(zeros_and_one, self.sites)))
        return low, high

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
            "ends_on_grid": self.ends_on_grid,
            "in_training": self.in_training,
            "joins_relu": self.joins_relu,
        }


def _extremes(x, function):
    """Extremes of `function(x)`, a rising one, and of 0; 1.0 if they are numbers."""
    low, high = x, x
    if is_compiled() and (x.shape.rank or 0) > 1:
        # Over all axes at once XLA takes one value at a time.
        rows = list(range(x.shape.rank - 1))
        low, high = tf.reduce_min(low, rows), tf.reduce_max(high, rows)
    low = tf.cast(function(tf.reduce_min(low)), tf.float32)
    high = tf.cast(function(tf.reduce_max(high)), tf.float32)
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
