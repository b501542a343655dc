"""Deep mutual learning: students that teach one another from the first step.

Example:
    ```python
    both = MutualDistiller([one, other], terms=[SoftLabels(1.0)], alpha=0.5)
    both.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    both.fit(x, y)
    one, other = both.students
    ```
"""

import keras

from tfcompress.passes.distillation.output_terms import OutputTerm
from tfcompress.passes.distillation.pairing import Pairing
from tfcompress.passes.distillation.scheduled import config_of, from_config
from tfcompress.passes.distillation.taught import Taught
from tfcompress.passes.distillation.term import Signals, copies


@keras.saving.register_keras_serializable(package="tfcompress")
class MutualDistiller(Taught):
    """Students that are trained together. Made by `distill_mutually`.

    Args:
        students: List of two models or more.
        terms: List of terms on outputs; copies are kept.
        alpha: Weight of the loss on the labels, a number or a schedule.
        student_outputs: Kinds of the outputs of all students, or a list with those of
            each.

    Attributes:
        students: The models.
    """

    def __init__(self, students, *, terms, alpha, student_outputs="auto", **kwargs):
        kwargs.setdefault("name", "mutual_distiller")
        super().__init__(alpha=alpha, **kwargs)
        self.students = list(students)
        self.student_outputs = student_outputs
        self._terms = copies(terms)
        for term in self._terms:
            if not isinstance(term, OutputTerm):
                raise ValueError(
                    "Students that teach one another take terms on outputs, for example"
                    f" SoftLabels(1). Received: {type(term).__name__}"
                )
        object.__setattr__(self, "_lessons", [*map(self._lesson, self.students)])
        self.distillation_loss = keras.metrics.Mean(name="distillation_loss")
        self.label_losses = [
            keras.metrics.Mean(name=f"student_{i}_loss") for i in range(len(students))
        ]
        self.built = True

    def _lesson(self, student):
        """What one student learns from the others: `(pairing, terms, others)`."""
        kinds = self.student_outputs
        if not isinstance(kinds, (list, tuple)):
            kinds = [kinds] * len(self.students)
        others = [i for i, s in enumerate(self.students) if s is not student]
        own = next(i for i, s in enumerate(self.students) if s is student)
        # A list for several teachers, the kinds themselves for one.
        theirs = [kinds[i] for i in others]
        pairing = Pairing(
            student,
            [self.students[i] for i in others],
            student_outputs=kinds[own],
            teacher_outputs=theirs if len(theirs) > 1 else theirs[0],
        )
        terms = copies(self._terms)
        for term in terms:
            term.prepare(pairing)
        return pairing, terms, others

    def call(self, inputs, training=False):
        return [student(inputs, training=training) for student in self.students]

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        labels = self._label_losses(x, y, y_pred, sample_weight, training)
        taught = self._taught(y, y_pred, sample_weight, training)
        self.log(
            [*self.label_losses, self.distillation_loss],
            [*labels, sum(taught) / len(taught)],
            y_pred,
        )
        if not training:
            return sum(labels) / len(labels)
        alpha = self.alpha_now()
        # Each of `labels` holds the regularizers of all, which count once.
        return (
            alpha * sum(labels)
            + (1 - alpha) * sum(taught)
            + (1 - alpha * len(labels)) * self.regularizers()
        )

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Of the compiled metrics the mean over students."""
        for outputs in y_pred:
            found = super().compute_metrics(x, y, outputs, sample_weight)
        return found

    def _label_losses(self, x, y, y_pred, sample_weight, training):
        return [
            super(MutualDistiller, self).compute_loss(
                x, y, outputs, sample_weight, training
            )
            for outputs in y_pred
        ]

    def _taught(self, y, y_pred, sample_weight, training):
        outputs = [keras.tree.flatten(found) for found in y_pred]
        losses = []
        for own, (pairing, terms, others) in zip(outputs, self._lessons, strict=True):
            signals = Signals(
                pairing=pairing,
                student_outputs=own,
                teacher_outputs=[outputs[i] for i in others],
                student_features={},
                teacher_features=[],
                labels=y,
                sample_weight=sample_weight,
                step=self.step(),
                training=training,
            )
            losses.append(
                sum(term.at("weight", signals) * term.loss(signals) for term in terms)
            )
        return losses

    def get_config(self):
        return {
            "name": self.name,
            "students": [keras.saving.serialize_keras_object(s) for s in self.students],
            "terms": [keras.saving.serialize_keras_object(t) for t in self._terms],
            "alpha": config_of(self.alpha),
            "student_outputs": self.student_outputs,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = {**config, "alpha": from_config(config["alpha"])}
        for key in ("students", "terms"):
            config[key] = [
                keras.saving.deserialize_keras_object(found, custom_objects)
                for found in config[key]
            ]
        return cls(**config)
