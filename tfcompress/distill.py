"""Distillation: `distill` makes a student that learns from teachers inside `fit`.

Example:
    ```python
    student = tfc.distill(small, teacher=model, temperature=4, alpha=0.1)
    student.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    student.fit(x, y)
    small = student.student
    ```
"""

from tfcompress.checks import check_model
from tfcompress.deploy.teachers import as_teacher
from tfcompress.passes.distill import CACHED_KEYS, Distiller
from tfcompress.passes.distill_mutually import MutualDistiller
from tfcompress.passes.distillation import SoftLabels


def distill(
    student,
    teacher=None,
    *,
    terms=None,
    temperature=None,
    alpha=0.1,
    student_outputs="auto",
    teacher_outputs="auto",
    teacher_weights=None,
    class_map=None,
):
    """Wraps a student so that `fit` teaches it what a teacher knows as well.

    The loss of a training step is `alpha * labels + (1 - alpha) * sum of the terms`
    plus the student's regularizers: `labels` is the loss given to `compile`, each term
    its weight times its value. The student runs once a step, the teachers for
    inference. The loss of `evaluate` is the student's own, with `distillation_loss`
    beside it, and each term by its name where there are several; `predict` is the
    student's.

    Args:
        student: Built `keras.Model`, one that `quantize_aware` returned included. It is
            trained in place.
        teacher: Built `keras.Model`; the path of a `.tflite` file, a `.keras` file or a
            SavedModel folder; or a list of those. `None` if no term needs one. Not
            changed.
        terms: List of `tfc.distillation` terms; `None`: soft labels.
        temperature: Of the soft labels where `terms` is `None`: a number above 0, by
            default 4, or a schedule.
        alpha: Weight of the loss on the labels, in [0, 1], or a schedule. At 0 neither
            labels nor a loss are needed. Schedules count steps of the optimizer.
        student_outputs: `"logits"`, `"probabilities"` (after softmax),
            `"binary_logits"`, `"binary_probabilities"` (after sigmoid), `"values"`, or
            `"auto"` to read it from the last layer; a dict or list where there are
            several outputs.
        teacher_outputs: The same of the teacher; a list of those where there are
            several teachers.
        teacher_weights: Numbers above 0, one a teacher, by which their class
            probabilities (or values) are averaged; `None`: all alike.
        class_map: Where the classes differ: for each class of the student the teacher's
            class, or a list of classes whose probabilities are added. The teacher's
            other classes do not count.

    Returns:
        A `Distiller`, a `keras.Model` whose `student` is the model you passed.

    Raises:
        TypeError: If student or teacher is no Keras 3 model.
        ValueError: If the outputs differ in shape, a setting is out of range, a term
            names a layer that is not there, or it cannot be told whether outputs are
            logits.

    Reference:
        Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
        arXiv:1503.02531
    """
    check_model(student, argument="student")
    _check_inputs(student)
    if terms is None:
        terms = [SoftLabels(4.0 if temperature is None else temperature)]
    elif temperature is not None:
        raise ValueError(_TEMPERATURE.format(temperature))
    return Distiller(
        student,
        _teachers(student, teacher),
        terms=terms,
        alpha=alpha,
        student_outputs=student_outputs,
        teacher_outputs=teacher_outputs,
        teacher_weights=teacher_weights,
        class_map=class_map,
    )


def distill_mutually(
    students, *, terms=None, temperature=None, alpha=0.5, student_outputs="auto"
):
    """Trains students together, each with the others' answers for a teacher.

    The loss is the sum over students of `alpha * labels + (1 - alpha) * terms`, plus
    all regularizers; the mean of the others' class probabilities is what each learns
    from. All take their step at once, where the paper has them take turns. `evaluate`
    gives the mean of the students' losses and metrics, and `student_0_loss`, ...;
    `predict` a list with the outputs of each.

    Args:
        students: List of two or more built `keras.Model`s with equal inputs and
            outputs. They are trained in place.
        terms: List of `tfc.distillation` terms on outputs; `None`: soft labels.
        temperature: Of the soft labels where `terms` is `None`: a number above 0, by
            default 1, or a schedule.
        alpha: Weight of the labels, in [0, 1], or a schedule.
        student_outputs: As of `distill`; a list with those of each student.

    Returns:
        A `MutualDistiller`, a `keras.Model` whose `students` are the models you passed.

    Raises:
        TypeError: If a student is no Keras 3 model.
        ValueError: If there are fewer than two, or outputs or settings do not fit.

    Example:
        ```python
        both = tfc.distill_mutually([small, smaller])
        both.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        both.fit(x, y)
        ```

    Reference:
        Zhang et al., "Deep Mutual Learning", 2018, eq. 4 to 9. arXiv:1706.00384
    """
    if not isinstance(students, (list, tuple)) or len(students) < 2:
        raise ValueError(
            f"`students` must be a list of two models or more. Received: {students!r}"
        )
    for student in students:
        check_model(student, argument="students")
    if len({id(s) for s in students}) != len(students):
        raise ValueError("`students` must be different models: one is there twice.")
    if terms is None:
        terms = [SoftLabels(1.0 if temperature is None else temperature)]
    elif temperature is not None:
        raise ValueError(_TEMPERATURE.format(temperature))
    return MutualDistiller(
        students, terms=terms, alpha=alpha, student_outputs=student_outputs
    )


_TEMPERATURE = (
    "`temperature` is of the soft labels that are there without `terms`. Give it to "
    "the term: tfc.distillation.SoftLabels({})."
)


def _teachers(student, teacher):
    if teacher is None:
        return []
    found = teacher if isinstance(teacher, (list, tuple)) else [teacher]
    found = [as_teacher(t) for t in found]
    if any(t is student for t in found):
        raise ValueError(
            "The student cannot be its own teacher: both would change. For a born-again"
            " network pass a fresh one: tfc.distill(keras.models.clone_model(model), "
            "teacher=model). To learn from its own last layer see "
            "tfc.distillation.DeepSupervision."
        )
    learns = {id(v) for v in student.trainable_variables}
    for one in found:
        if any(id(v) in learns for v in one.weights):
            raise ValueError(
                f"Teacher {one.name!r} shares layers with the student, which would "
                "change it. Pass a copy: copy = keras.models.clone_model(teacher); "
                "copy.set_weights(teacher.get_weights())."
            )
    return found


def _check_inputs(student):
    inputs = getattr(student, "input", None) if getattr(student, "inputs", 0) else None
    if isinstance(inputs, dict) and set(inputs) == CACHED_KEYS:
        raise ValueError(
            f"The student's inputs are named {sorted(inputs)}, which datasets of "
            "`cache_teacher` use. Rename one of them."
        )
