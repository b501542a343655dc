"""What models have in common that train others inside their own `fit`.

Example:
    ```python
    class Distiller(Taught):
        def compute_loss(self, *args, **kwargs):
            return self.alpha_now() * super().compute_loss(*args, **kwargs)
    ```
"""

import keras
import tensorflow as tf
from keras import ops

from tfcompress.passes.distillation.scheduled import check_setting, value_at


class Taught(keras.Model):
    """A model around students, which cast their inputs themselves.

    Args:
        alpha: Weight of the loss on the labels, a number or a schedule.
    """

    def __init__(self, *, alpha, **kwargs):
        super().__init__(**kwargs)
        # The students cast their inputs, or do not: a policy of half precision would
        # round large ones, and ids, before.
        self._convert_input_args = False
        self._allow_non_tensor_positional_args = True
        self.alpha = check_setting(alpha, "alpha", low=0, high=1)

    def step(self):
        """The step of training that schedules are at: 0 before the first."""
        optimizer = getattr(self, "optimizer", None)
        return 0 if optimizer is None else optimizer.iterations

    def alpha_now(self):
        """`alpha` at this step."""
        return value_at(self.alpha, self.step())

    def regularizers(self):
        """The part of each replica in the penalties of the students' layers."""
        return sum(ops.sum(loss) for loss in self.losses) / self.replicas()

    def log(self, metrics, losses, outputs):
        """Updates means over examples, as Keras' own: the last batch may be smaller."""
        examples = ops.shape(keras.tree.flatten(outputs)[0])[0]
        for metric, loss in zip(metrics, losses, strict=True):
            metric.update_state(loss * self.replicas(), sample_weight=examples)

    @staticmethod
    def replicas():
        """How many devices share a batch; Keras divides the loss of each by it."""
        return tf.distribute.get_strategy().num_replicas_in_sync
