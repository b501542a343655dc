"""Gradients of a model's own loss on data at hand, between two steps of training.

Example:
    ```python
    gradients = LossGradients(model, (x, y))
    gradients.of(variables)                  # numpy arrays
    gradients.hessian_products(variables)    # the Hessian times the gradient
    ```
"""

import keras
import numpy as np
import tensorflow as tf

_BATCH = 32


class LossGradients:
    """Computes gradients of `model.compute_loss` and leaves the model as it was.

    The model runs as in training, with the statistics of each batch; what that changes
    (moving statistics, seeds, metrics) is put back.

    Args:
        model: Compiled `keras.Model`.
        data: `(x, y)` or `(x, y, sample_weight)` of arrays, or a batched, finite
            `tf.data.Dataset` of such tuples.
        loss_of: Compiled model whose loss it is; `None`: the model's own.

    Raises:
        TypeError: If `data` are something else.
        ValueError: If they have no labels, no batch or no end.
    """

    def __init__(self, model, data, loss_of=None):
        self.model = model
        self.compiled = model if loss_of is None else loss_of
        self.data = _dataset(data)
        self._step = tf.function(self._compute, reduce_retracing=True)
        self._product = tf.function(self._multiply, reduce_retracing=True)

    def of(self, variables):
        """Mean gradients over all batches, a list of float32 arrays.

        Args:
            variables: List of `keras.Variable`, trainable or not.
        """
        return self._mean(self._step, [v.value for v in variables])

    def hessian_products(self, variables):
        """The loss's Hessian times its gradient, up to one positive factor for all.

        Both are of the mean loss over all batches, in two passes over the data.

        Args:
            variables: As of `of`.

        Returns:
            List of float32 arrays, one for each variable.
        """
        gradients = self.of(variables)
        # Of length one: a loss scale squared would not fit in half precision.
        length = sum(float(np.vdot(g, g)) for g in gradients) ** 0.5 or 1.0
        direction = [tf.constant(g / length) for g in gradients]
        values = [v.value for v in variables]
        return self._mean(self._product, values, direction)

    def _mean(self, step, values, *arguments):
        touched = [
            *self.model.non_trainable_variables,
            *self.compiled.metrics_variables,
        ]
        before = [v.numpy() for v in touched]
        try:
            return self._mean_over_batches(step, values, *arguments)
        finally:
            for variable, value in zip(touched, before, strict=True):
                variable.assign(value)

    def _mean_over_batches(self, step, values, *arguments):
        sums, count = [np.zeros(v.shape, "float32") for v in values], 0
        for batch in self.data:
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
            found = step(values, x, y, sample_weight, *arguments)
            for total, array in zip(sums, found, strict=True):
                total += np.asarray(array, "float32")
            count += 1
        if not count:
            raise ValueError("`data` is empty: it gave no batch.")
        for total in sums:
            total /= count
        return sums

    def _multiply(self, variables, x, y, sample_weight, direction):
        with tf.GradientTape() as tape:
            gradients = self._compute(variables, x, y, sample_weight)
            along = tf.add_n(
                [
                    tf.reduce_sum(tf.cast(g, tf.float32) * d)
                    for g, d in zip(gradients, direction, strict=True)
                ]
            )
        zero = tf.UnconnectedGradients.ZERO
        found = tape.gradient(along, variables, unconnected_gradients=zero)
        return [tf.convert_to_tensor(g) for g in found]

    def _compute(self, variables, x, y, sample_weight):
        with tf.GradientTape() as tape:
            # Those of frozen layers are not watched by themselves.
            tape.watch(variables)
            loss = self.compiled.compute_loss(
                x=x,
                y=y,
                y_pred=self.model(x, training=True),
                sample_weight=sample_weight,
                training=True,
            )
            # In half precision gradients would vanish; what ranks does not mind.
            loss = self.compiled.optimizer.scale_loss(loss)
        zero = tf.UnconnectedGradients.ZERO
        found = tape.gradient(loss, variables, unconnected_gradients=zero)
        return [tf.convert_to_tensor(g) for g in found]


def _dataset(data):
    if isinstance(data, tf.data.Dataset):
        if data.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(
                "`data` repeats without end. Take a part of it: data.take(10)."
            )
    elif isinstance(data, (tuple, list)):
        data = tf.data.Dataset.from_tensor_slices(_tuples(tuple(data))).batch(_BATCH)
    else:
        raise TypeError(
            "`data` must be `(x, y)` or a tf.data.Dataset of such batches. Received: "
            f"{type(data).__name__}"
        )
    spec = data.element_spec
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise ValueError(
            "`data` must have labels, `(x, y)` or `(x, y, sample_weight)`, for the "
            f"loss is computed on them. Received: {spec}"
        )
    return data


def _tuples(data):
    """Lists of inputs as tuples: tf.data takes a list for one array."""
    if isinstance(data, (tuple, list)):
        return tuple(map(_tuples, data))
    if isinstance(data, dict):
        return {key: _tuples(value) for key, value in data.items()}
    return data
