"""Distillation: a student that learns from a teacher inside its own `fit`.

Example:
    ```python
    student = tfc.distill(small, teacher=model, temperature=4, alpha=0.1)
    student.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    student.fit(x, y)
    small = student.student
    ```
"""

import keras
from keras import ops

from tfcompress.checks import check_model
from tfcompress.graph import Graph, activation_name, functional
from tfcompress.numerics.distillation import soft_labels

_KINDS = ("auto", "logits", "probabilities")


def distill(
    student,
    teacher,
    *,
    temperature=4.0,
    alpha=0.1,
    student_outputs="auto",
    teacher_outputs="auto",
):
    """Wraps a student so that `fit` teaches it the teacher's soft labels as well.

    The loss of a training step is `alpha * hard + (1 - alpha) * soft` plus the
    student's regularizers: `hard` is the loss given to `compile`, `soft` is `T**2`
    times the Kullback-Leibler divergence from the teacher's class probabilities at
    temperature T. The student runs once a step. The loss of `evaluate` is the
    student's own, with `distillation_loss` beside it; `predict` is the student's.

    Args:
        student: Built `keras.Model` with one output `(batch, ..., classes)`, a model
            that `quantize_aware` returned included. It is trained in place.
        teacher: Built `keras.Model` with an output of the same shape. Not changed.
        temperature: T, above 0; higher shows more of the wrong classes.
        alpha: Weight of the hard loss, in [0, 1].
        student_outputs: `"logits"`, `"probabilities"` (after softmax), or `"auto"` to
            read it from the last layer.
        teacher_outputs: The same of the teacher.

    Returns:
        A `Distiller`, a `keras.Model` whose `student` is the model you passed.

    Raises:
        TypeError: If student or teacher is no Keras 3 model.
        ValueError: If the outputs differ in shape, a setting is out of range, or it
            cannot be told whether outputs are logits.

    Reference:
        Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
        arXiv:1503.02531
    """
    check_model(student, argument="student")
    check_model(teacher, argument="teacher")
    if temperature <= 0:
        raise ValueError(f"`temperature` must be above 0. Received: {temperature}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` must be in [0, 1]. Received: alpha={alpha}")
    _check_shapes(student, teacher)
    return Distiller(
        student,
        teacher,
        temperature=temperature,
        alpha=alpha,
        student_outputs=_output_kind(student, student_outputs, "student"),
        teacher_outputs=_output_kind(teacher, teacher_outputs, "teacher"),
    )


@keras.saving.register_keras_serializable(package="tfcompress")
class Distiller(keras.Model):
    """A student with its teacher, trained by `fit`. Made by `distill`.

    Attributes:
        student: The model that learns.
        teacher: The model it learns from, run for inference only.
    """

    def __init__(
        self,
        student,
        teacher,
        *,
        temperature,
        alpha,
        student_outputs,
        teacher_outputs,
        **kwargs,
    ):
        kwargs.setdefault("name", f"{student.name}_distilled")
        super().__init__(**kwargs)
        self.student = student
        self.teacher = teacher
        self.temperature = temperature
        self.alpha = alpha
        self.student_outputs = student_outputs
        self.teacher_outputs = teacher_outputs
        self.distillation_loss = keras.metrics.Mean(name="distillation_loss")
        self.built = True

    @property
    def inputs(self):
        """Symbolic inputs of the student, where it has them."""
        return getattr(self.student, "inputs", None)

    # The teacher is part of the model, so that it is saved, but nothing of it learns
    # or is regularized; its own `trainable` flags stay as the user set them.
    @property
    def trainable_variables(self):
        return self.student.trainable_variables

    @property
    def trainable_weights(self):
        return self.student.trainable_weights

    @property
    def losses(self):
        return self.student.losses

    def call(self, inputs, training=False):
        return self.student(inputs, training=training)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        teacher = _logits(self.teacher(x, training=False), self.teacher_outputs)
        student = _logits(y_pred, self.student_outputs)
        per_example = soft_labels(
            ops.cast(student, "float32"),
            ops.cast(ops.stop_gradient(teacher), "float32"),
            self.temperature,
        )
        soft = _mean(per_example, sample_weight)
        self.distillation_loss.update_state(soft)
        regularizers = sum(self.losses) if self.losses else 0.0
        if training and self.alpha == 0:
            return soft + regularizers  # Needs neither labels nor a loss.
        hard = super().compute_loss(x, y, y_pred, sample_weight, training)
        if not training:
            return hard
        # `hard` holds the regularizers already: alpha weighs the label's loss only.
        return (
            self.alpha * (hard - regularizers) + regularizers + (1 - self.alpha) * soft
        )

    def get_config(self):
        return {
            "name": self.name,
            "student": keras.saving.serialize_keras_object(self.student),
            "teacher": keras.saving.serialize_keras_object(self.teacher),
            "temperature": self.temperature,
            "alpha": self.alpha,
            "student_outputs": self.student_outputs,
            "teacher_outputs": self.teacher_outputs,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for key in ("student", "teacher"):
            config[key] = keras.saving.deserialize_keras_object(
                config[key], custom_objects
            )
        return cls(**config)


def _mean(per_example, sample_weight):
    if sample_weight is None:
        return ops.mean(per_example)
    weight = ops.cast(sample_weight, per_example.dtype)
    while len(weight.shape) > len(per_example.shape) and weight.shape[-1] == 1:
        weight = ops.squeeze(weight, axis=-1)
    while len(weight.shape) < len(per_example.shape):
        weight = ops.expand_dims(weight, axis=-1)
    # As Keras does: weighted sum over the number of values, not the sum of weights.
    return ops.mean(per_example * weight)


def _logits(outputs, kind):
    if kind == "logits":
        return outputs
    return ops.log(ops.maximum(outputs, keras.backend.epsilon()))


def _check_shapes(student, teacher):
    """Compares what is known: a subclassed model shows its output only in training."""
    known = {}
    for name, model in (("student", student), ("teacher", teacher)):
        if functional(model) is None:
            continue
        if len(model.outputs) != 1:
            raise ValueError(
                f"`{name}` must have one output. Received: {len(model.outputs)} outputs"
            )
        known[name] = tuple(model.outputs[0].shape)
        if known[name][-1] == 1:
            raise ValueError(
                f"`{name}` has one output value, and soft labels need two classes or "
                "more. Give it two outputs and a softmax. Received: output shape "
                f"{known[name]}"
            )
    if len(set(known.values())) > 1:
        raise ValueError(
            "Student and teacher must have outputs of one shape. Received: student "
            f"{known['student']}, teacher {known['teacher']}"
        )


def _output_kind(model, declared, argument):
    if declared not in _KINDS:
        raise ValueError(
            f"`{argument}_outputs` must be one of {_KINDS}. Received: {declared!r}"
        )
    if declared != "auto":
        return declared
    last = _last_activation(model)
    if last == "softmax":
        return "probabilities"
    if last == "linear":
        return "logits"
    found = "a subclassed model" if last is None else f"an output of {last!r}"
    raise ValueError(
        f"Cannot tell whether `{argument}` {model.name!r} gives logits or softmax "
        f"probabilities: it is {found}. Say {argument}_outputs='logits' or "
        f"{argument}_outputs='probabilities'."
    )


def _last_activation(model):
    """Name of the activation behind the output; quantizers are looked through."""
    if functional(model) is None:
        return None
    graph = Graph(model)
    tensor = graph.outputs[0]
    while (call := graph.producer(tensor)) is not None:
        operation = getattr(call.operation, "layer", call.operation)
        if type(operation).__name__ == "Softmax":
            return "softmax"
        if type(operation).__name__ not in (
            "FakeQuant",
            "Reshape",
            "Identity",
            "Flatten",
        ):
            return activation_name(operation)
        tensor = call.input_tensors[0]
    return "linear"
