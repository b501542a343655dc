"""What all terms of a distillation loss share, and what they are given each step.

Example:
    ```python
    class Margin(tfc.distillation.OutputTerm):
        def call(self, student, teacher):
            return keras.ops.mean(keras.ops.relu(teacher - student), axis=-1)
    ```
"""

import dataclasses
import re

import keras
import tensorflow as tf
from keras import ops

from tfcompress.graph import unused_name
from tfcompress.numerics.distillation import mean_prediction
from tfcompress.passes.distillation.outputs import as_logits, mapped
from tfcompress.passes.distillation.scheduled import (
    check_setting,
    config_of,
    from_config,
    value_at,
)


class Term(keras.layers.Layer):
    """A part of the loss that a student is taught with. Subclasses define `loss`.

    Terms hold settings; `distill` works on copies, which hold what is trained.

    Args:
        weight: Factor of the term, a number or a schedule of the optimizer's step.
        name: Name of its value in the logs.
    """

    needs_teacher = True
    # Trained beside the student and no part of it: pruning leaves it alone.
    auxiliary = True

    def __init__(self, *, weight=1.0, name=None):
        # Not Keras' own, which counts up: the same term has the same name in every log.
        default = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()
        super().__init__(name=name or default, dtype="float32")
        self.weight = check_setting(weight, "weight", low=0)

    def prepare(self, pairing):
        """Finds what the term reads in student and teachers, and checks that it fits.

        Args:
            pairing: `Pairing`.
        """

    def student_layers(self):
        """Dict from path to layer of the student whose outputs the term reads."""
        return {}

    def teacher_layers(self):
        """The same of the teachers, a list with one dict each."""
        return []

    def build_for(self, student_shapes, teacher_shapes):
        """Makes what is trained beside the student, once shapes are known.

        Args:
            student_shapes: Dict from path to shape.
            teacher_shapes: List of such dicts, one a teacher.
        """

    def loss(self, signals):
        """The term's value over a batch, not weighted.

        Args:
            signals: `Signals`.

        Returns:
            float32 scalar.
        """
        raise NotImplementedError

    def at(self, name, signals):
        """The value of a setting, which may be a schedule, at this step."""
        return value_at(getattr(self, name), signals.step)

    def get_config(self):
        """Returns the constructor's arguments."""
        return {"name": self.name, "weight": config_of(self.weight)}

    @classmethod
    def from_config(cls, config):
        """Rebuilds the term from `get_config()`."""
        return cls(**{key: from_config(value) for key, value in config.items()})

    def get_build_config(self):
        """Nothing: the distiller knows the shapes."""
        return None


@dataclasses.dataclass(frozen=True)
class Signals:
    """What one step gives the terms.

    Attributes:
        pairing: `Pairing` of the outputs.
        student_outputs: List of tensors.
        teacher_outputs: List with a list of tensors for each teacher.
        student_features: Dict from path to tensor.
        teacher_features: List of such dicts, one for each teacher.
        labels: As they came with the data, or `None`.
        sample_weight: The same.
        step: The optimizer's step, an integer scalar.
        training: Whether this is a step of training.
    """

    pairing: object
    student_outputs: list
    teacher_outputs: list
    student_features: dict
    teacher_features: list
    labels: object
    sample_weight: object
    step: object
    training: bool

    def student_logits(self, index):
        """Logits of an output of the student."""
        kind = self.pairing.student_outputs[index].kind
        return as_logits(self.student_outputs[index], kind)

    def teacher_logits(self, index):
        """Logits of what the teachers together say of that output."""
        found = []
        for teacher, outputs in zip(
            self.pairing.of_teachers(index), self.teacher_outputs, strict=True
        ):
            logits = as_logits(outputs[teacher.index], teacher.output.kind)
            found.append(mapped(logits, self.pairing.class_map.get(index)))
        if len(found) == 1:
            return found[0]
        return mean_prediction(found, self.pairing.teacher_weights)

    def student_values(self, index):
        """An output of the student as it is, float32."""
        return ops.cast(self.student_outputs[index], "float32")

    def teacher_values(self, index):
        """The teachers' mean of that output."""
        weights = self.pairing.teacher_weights
        return sum(
            w / sum(weights) * ops.cast(outputs[teacher.index], "float32")
            for w, teacher, outputs in zip(
                weights,
                self.pairing.of_teachers(index),
                self.teacher_outputs,
                strict=True,
            )
        )

    def labels_of(self, index):
        """Labels of an output; `None` if there are none."""
        return self._of_output(self.labels, index)

    def mean(self, values, index=None, mask=None):
        """Mean over examples, weighted and masked as Keras does for its losses.

        Args:
            values: float32 tensor `(batch, ...)`.
            index: Output whose sample weights count; `None` takes the mean of those of
                all outputs.
            mask: Boolean tensor of the leading axes of `values`, or `None`.

        Returns:
            float32 scalar, divided by the number of replicas.
        """
        if index is None:
            weights = keras.tree.flatten(self.sample_weight)
            weights = [_of_examples(w) for w in weights if w is not None]
            weight = sum(weights) / len(weights) if weights else None
        else:
            weight = self._of_output(self.sample_weight, index)
        return mean_over_examples(values, weight, mask)

    def mask_of(self, index):
        """Keras' mask of an output of the student, or `None`."""
        return getattr(self.student_outputs[index], "_keras_mask", None)

    def _of_output(self, struct, index):
        names = [output.name for output in self.pairing.student_outputs]
        if isinstance(struct, dict):
            return struct.get(names[index])
        if isinstance(struct, (list, tuple)):
            return struct[index] if len(struct) == len(names) else None
        return struct


def mean_over_examples(values, sample_weight=None, mask=None):
    """As Keras: the weighted sum over the number of values, not over the weights."""
    if mask is not None:
        mask = _to_rank(ops.cast(mask, values.dtype), len(values.shape))
        share = ops.mean(mask)
        values = values * mask / ops.where(share > 0, share, 1.0)
    if sample_weight is not None:
        weight = ops.cast(sample_weight, values.dtype)
        values = values * _to_rank(weight, len(values.shape))
    # Gradients of replicas are added up.
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return ops.mean(values) / replicas


def _to_rank(weight, rank):
    while len(weight.shape) > rank and weight.shape[-1] == 1:
        weight = ops.squeeze(weight, axis=-1)
    while len(weight.shape) > rank:
        weight = ops.mean(weight, axis=-1)
    while len(weight.shape) < rank:
        weight = ops.expand_dims(weight, axis=-1)
    return weight


def _of_examples(weight):
    return _to_rank(ops.cast(weight, "float32"), 1)


def copies(terms):
    """Copies with names of their own: what is trained is one distiller's alone.

    Args:
        terms: List of `Term`.

    Raises:
        TypeError: If one is no `Term`.
        ValueError: If there is none.
    """
    if not isinstance(terms, (list, tuple)) or not terms:
        raise ValueError(
            "`terms` must be a list of one or more of tfc.distillation, for example "
            f"[tfc.distillation.SoftLabels(4)]. Received: {terms!r}"
        )
    copied, names = [], set()
    for term in terms:
        if not isinstance(term, Term):
            raise TypeError(
                "`terms` must be of tfc.distillation, for example SoftLabels(4). "
                f"Received: {term!r} (of type {type(term).__name__})"
            )
        name = unused_name(term.name, names)
        names.add(name)
        copied.append(type(term).from_config({**term.get_config(), "name": name}))
    return copied
