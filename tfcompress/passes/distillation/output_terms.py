"""Terms on what student and teacher answer.

Example:
    ```python
    terms = [
        tfc.distillation.SoftLabels(temperature=4),
        tfc.distillation.LogitsCosine(weight=0.5),
    ]
    student = tfc.distill(small, teacher, terms=terms)
    ```
"""

import keras
from keras import ops

from tfcompress.numerics import distillation as losses
from tfcompress.passes.distillation.scheduled import check_setting, config_of
from tfcompress.passes.distillation.term import Term


class OutputTerm(Term):
    """Compares outputs. Subclasses define `call(student, teacher, **settings)`.

    `call` gets float32 tensors `(batch, ..., classes)`, logits whatever the models give
    (a binary output is two classes), and returns values `(batch, ...)`. Of the names
    in `scheduled` it gets the value at this step, and `labels` if `needs_labels`.

    Args:
        output: Name or number of the output; `None`: each of them, added up.
        weight: Factor of the term, a number or a schedule.
        name: Name of its value in the logs.
    """

    scheduled = ()
    needs_labels = False
    on_classes = True

    def __init__(self, *, output=None, weight=1.0, name=None):
        super().__init__(weight=weight, name=name)
        self.output_name = output
        self.indices = None

    def prepare(self, pairing):
        """Finds the outputs and checks that they are comparable."""
        self.indices = pairing.indices(self.output_name)
        for index in self.indices:
            if self.on_classes:
                pairing.check_classes(index, type(self).__name__)
            else:
                pairing.check_values(index)
        self.built = True

    def loss(self, signals):
        """Sum over the outputs of the mean over examples."""
        return sum(self._loss_of(signals, index) for index in self.indices)

    def _loss_of(self, signals, index):
        settings = {name: self.at(name, signals) for name in self.scheduled}
        if self.on_classes:
            student = signals.student_logits(index)
            teacher = signals.teacher_logits(index)
        else:
            student = signals.student_values(index)
            teacher = signals.teacher_values(index)
        if self.needs_labels:
            labels = signals.labels_of(index)
            if labels is None:
                raise ValueError(
                    f"{type(self).__name__} needs labels, and the data have none for "
                    f"output {signals.pairing.student_outputs[index].name!r}."
                )
            settings["labels"] = labels
        values = self.call(student, ops.stop_gradient(teacher), **settings)
        return signals.mean(values, index, signals.mask_of(index))

    def get_config(self):
        """Returns the constructor's arguments."""
        settings = {name: config_of(getattr(self, name)) for name in self.scheduled}
        return {**super().get_config(), "output": self.output_name, **settings}


@keras.saving.register_keras_serializable(package="tfcompress")
class SoftLabels(OutputTerm):
    """The teacher's class probabilities at a temperature, in the student's place.

    `T**2` times the Kullback-Leibler divergence. Sigmoid outputs are each taken as two
    classes.

    Args:
        temperature: T, above 0, a number or a schedule; higher shows more of the wrong
            classes.
        output: Name or number of the output; `None`: each of them, added up.
        weight: Factor of the term, a number or a schedule.
        name: Name of its value in the logs.

    Example:
        ```python
        cooling = tfc.schedules.Polynomial(8, 2, end=1000, power=1)
        tfc.distill(small, teacher, terms=[tfc.distillation.SoftLabels(cooling)])
        ```

    Reference:
        Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
        arXiv:1503.02531
    """

    scheduled = ("temperature",)

    def __init__(self, temperature=4.0, *, output=None, weight=1.0, name=None):
        super().__init__(output=output, weight=weight, name=name)
        self.temperature = check_setting(temperature, "temperature", above=0)

    def call(self, student, teacher, temperature):
        return losses.soft_labels(student, teacher, temperature)


@keras.saving.register_keras_serializable(package="tfcompress")
class HardLabels(OutputTerm):
    """Cross-entropy with the class that the teacher finds most likely.

    Args:
        output: Name or number of the output; `None`: each of them, added up.
        weight: Factor of the term, a number or a schedule.
        name: Name of its value in the logs.

    Example:
        ```python
        tfc.distill(small, teacher, alpha=0, terms=[tfc.distillation.HardLabels()])
        ```
    """

    def call(self, student, teacher):
        return losses.hard_labels(student, teacher)


@keras.saving.register_keras_serializable(package="tfcompress")
class DecoupledSoftLabels(OutputTerm):
    """DKD: the target's probability and those among the others, weighted apart.

    It reads the labels, as integers or one-hot.

    Args:
        temperature: T, above 0, a number or a schedule.
        target_weight: Weight of the target class (the paper's alpha).
        others_weight: Weight of the other classes (the paper's beta).
        output: Name or number of the output; `None`: each of them, added up.
        weight: Factor of the term, a number or a schedule; the paper warms it up.
        name: Name of its value in the logs.

    Raises:
        ValueError: If an output has two classes: there is one other, always certain.

    Example:
        ```python
        term = tfc.distillation.DecoupledSoftLabels(others_weight=8)
        tfc.distill(small, teacher, terms=[term])
        ```

    Reference:
        Zhao et al., "Decoupled Knowledge Distillation", 2022, eq. 7. arXiv:2203.08679
    """

    scheduled = ("temperature", "target_weight", "others_weight")
    needs_labels = True

    def __init__(
        self,
        temperature=4.0,
        *,
        target_weight=1.0,
        others_weight=8.0,
        output=None,
        weight=1.0,
        name=None,
    ):
        super().__init__(output=output, weight=weight, name=name)
        self.temperature = check_setting(temperature, "temperature", above=0)
        self.target_weight = check_setting(target_weight, "target_weight", low=0)
        self.others_weight = check_setting(others_weight, "others_weight", low=0)

    def prepare(self, pairing):
        super().prepare(pairing)
        for index in self.indices:
            output = pairing.student_outputs[index]
            if output.kind.startswith("binary") or (output.shape or (3,))[-1] < 3:
                raise ValueError(
                    "DecoupledSoftLabels needs three classes or more, of a softmax. "
                    f"Output {output.name!r} is of {output.kind}, shape {output.shape}."
                    " Take SoftLabels."
                )

    def call(self, student, teacher, temperature, target_weight, others_weight, labels):
        target = one_hot_labels(labels, student)
        return losses.decoupled(
            student, teacher, target, temperature, target_weight, others_weight
        )


@keras.saving.register_keras_serializable(package="tfcompress")
class LogitsMSE(OutputTerm):
    """Mean squared difference of the logits, each less its mean over the classes.

    Args:
        output: Name or number of the output; `None`: each of them, added up.
        weight: Factor of the term, a number or a schedule.
        name: Name of its value in the logs.

    Example:
        ```python
        tfc.distill(small, teacher, terms=[tfc.distillation.LogitsMSE()])
        ```

    Reference:
        Ba & Caruana, "Do Deep Nets Really Need to be Deep?", 2014. arXiv:1312.6184
    """

    def call(self, student, teacher):
        return losses.logits_squared_error(student, teacher)


@keras.saving.register_keras_serializable(package="tfcompress")
class LogitsCosine(OutputTerm):
    """One minus the cosine between the logits, each less its mean over the classes.

    Args:
        output: Name or number of the output; `None`: each of them, added up.
        weight: Factor of the term, a number or a schedule.
        name: Name of its value in the logs.

    Example:
        ```python
        tfc.distill(small, teacher, terms=[tfc.distillation.LogitsCosine()])
        ```
    """

    def call(self, student, teacher):
        return losses.logits_cosine(student, teacher)


@keras.saving.register_keras_serializable(package="tfcompress")
class Regression(OutputTerm):
    """The teacher's values as targets, for outputs that are no classes.

    Args:
        error: `"squared"`, `"absolute"` or `"huber"`.
        margin: `None`, or m, 0 or more: then the term is the student's squared error
            against the labels, where it plus m exceeds the teacher's, else 0. A teacher
            that is wrong itself does no harm.
        output: Name or number of the output; `None`: each of them, added up.
        weight: Factor of the term, a number or a schedule.
        name: Name of its value in the logs.

    Raises:
        ValueError: If `error` is unknown, or both it and a margin are given.

    Example:
        ```python
        term = tfc.distillation.Regression(margin=0.1)
        tfc.distill(small, teacher, terms=[term])
        ```

    Reference:
        Margin: Chen et al., "Learning Efficient Object Detection Models with Knowledge
        Distillation", 2017, eq. 4.
    """

    on_classes = False

    def __init__(
        self, error="squared", *, margin=None, output=None, weight=1.0, name=None
    ):
        super().__init__(output=output, weight=weight, name=name)
        if error not in losses.ERRORS:
            raise ValueError(
                f"`error` must be one of {sorted(losses.ERRORS)}. Received: {error!r}"
            )
        if margin is not None and error != "squared":
            raise ValueError(
                "With `margin` the error is squared. Received: "
                f"error={error!r}, margin={margin}"
            )
        self.error = error
        self.margin = margin
        if margin is not None:
            check_setting(margin, "margin", low=0)
            self.scheduled, self.needs_labels = ("margin",), True

    def call(self, student, teacher, labels=None, margin=None):
        if labels is None:
            return losses.regression(student, teacher, self.error)
        labels = ops.reshape(ops.cast(labels, "float32"), ops.shape(student))
        return losses.bounded_regression(student, teacher, labels, margin)

    def get_config(self):
        config = super().get_config()
        return {**config, "error": self.error, "margin": config_of(self.margin)}


def one_hot_labels(labels, logits):
    """Labels as ones and zeros in the shape of logits.

    Args:
        labels: Integers `(batch, ...)` or `(batch, ..., 1)`, or one-hot already.
        logits: Tensor `(batch, ..., classes)`.
    """
    classes = logits.shape[-1]
    rank = len(logits.shape)
    if len(labels.shape) == rank and labels.shape[-1] == classes:
        return ops.cast(labels, "float32")
    if len(labels.shape) == rank and labels.shape[-1] == 1:
        labels = ops.squeeze(labels, axis=-1)
    if len(labels.shape) != rank - 1:
        raise ValueError(
            "Labels must be integers, one for each answer, or one-hot. Received: shape "
            f"{tuple(labels.shape)} for logits of shape {tuple(logits.shape)}"
        )
    return ops.one_hot(ops.cast(labels, "int32"), classes, dtype="float32")
