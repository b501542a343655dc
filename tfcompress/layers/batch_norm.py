"""Batch normalization by TensorFlow's fused kernel.

Keras 3 normalizes with a dozen separate operations on TensorFlow; the fused kernel
computes the same in one, and its gradient in another.

Example:
    ```python
    y = FusedBatchNormalization()(x)   # as keras.layers.BatchNormalization, cheaper
    ```
"""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="tfcompress")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` over the last axis, fused, which can freeze.

    It takes the same arguments, computes the same and has the same weights, and one
    more: `frozen`. From the step on at which it is not zero, training normalizes with
    the moving statistics and leaves them as they are, while gamma and beta learn on.

    Reference:
        Ioffe & Szegedy, 2015, algorithm 1. arXiv:1502.03167; freezing late in
        quantization-aware training as in Krishnamoorthi, 2018, section 3.2.2.
        arXiv:1806.08342
    """

    def build(self, input_shape):
        super().build(input_shape)
        self.frozen = self.add_weight(
            name="frozen",
            shape=(),
            initializer="zeros",
            dtype="float32",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
        )

    def call(self, inputs, training=None, mask=None):
        if not self._fuses(inputs) or mask is not None:
            return self._unfused(inputs, training, mask)
        x = tf.reshape(inputs, (-1, 1, 1, inputs.shape[-1]))
        if inputs.shape.rank == 4:
            x = inputs
        if training and self.trainable:
            y = self._train(x)
        else:
            y = self._infer(x)
        if inputs.shape.rank != 4:
            y = tf.ensure_shape(tf.reshape(y, tf.shape(inputs)), inputs.shape)
        return tf.cast(y, self.compute_dtype)

    def _unfused(self, inputs, training, mask):
        if not (training and self.trainable):
            return super().call(inputs, training=False, mask=mask)
        moving = (self.moving_mean, self.moving_variance)
        before = [tf.convert_to_tensor(v.value) for v in moving]
        inferred = super().call(inputs, training=False, mask=mask)
        trained = super().call(inputs, training=True, mask=mask)
        frozen = self.frozen.value > 0
        for variable, old in zip(moving, before, strict=True):
            variable.assign(tf.where(frozen, old, variable.value))
        return tf.where(frozen, inferred, trained)

    def _fuses(self, inputs):
        return (
            self.axis in (-1, len(inputs.shape) - 1)
            and inputs.dtype != tf.float64
            and not self.synchronized
            and not getattr(self, "renorm", False)
        )

    def _gamma_beta(self):
        channels = self.moving_mean.shape
        gamma = tf.cast(self.gamma, tf.float32) if self.scale else tf.ones(channels)
        beta = tf.cast(self.beta, tf.float32) if self.center else tf.zeros(channels)
        return gamma, beta

    def _fused(self, x, moving=None):
        """Normalizes by `moving` or by the batch; returns what it normalized by too."""
        scale, offset = self._gamma_beta()
        # The public function would put another epsilon in the place of a small one.
        y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=scale,
            offset=offset,
            mean=() if moving is None else moving[0],
            variance=() if moving is None else moving[1],
            epsilon=self.epsilon,
            is_training=moving is None,
        )
        return y, mean, variance

    def _infer(self, x):
        moving = (self.moving_mean, self.moving_variance)
        y, *_ = self._fused(x, [tf.cast(v, tf.float32) for v in moving])
        return y

    def _train(self, x):
        moving = [self.moving_mean.value, self.moving_variance.value]
        y, mean, variance = tf.cond(
            self.frozen.value > 0,
            lambda: (self._infer(x), *moving),
            lambda: self._normalize_batch(x, *moving),
        )
        self.moving_mean.assign(mean)
        self.moving_variance.assign(variance)
        return y

    def _normalize_batch(self, x, moving_mean, moving_variance):
        y, mean, variance = self._fused(x)
        # The kernel returns the unbiased variance; Keras averages the biased one.
        count = tf.cast(tf.size(x), tf.float32) / x.shape[-1]
        variance *= (count - 1) / count
        return (
            y,
            self._average(moving_mean, mean),
            self._average(moving_variance, variance),
        )

    def _average(self, old, found):
        found = tf.cast(tf.stop_gradient(found), old.dtype)
        return old * self.momentum + found * (1.0 - self.momentum)
