"""Losses by which a student learns from a teacher, one value per example.

Example:
    ```python
    loss = soft_labels(student_logits, teacher_logits, temperature=4.0)
    ```
"""

import math

import numpy as np
from keras import ops


def soft_labels(student_logits, teacher_logits, temperature):
    """Kullback-Leibler divergence of softened class probabilities, times T squared.

    Args:
        student_logits: Float tensor `(batch, ..., classes)`. Log-probabilities do as
            well: softmax does not see a shift.
        teacher_logits: Float tensor of the same shape.
        temperature: T, above 0. The factor T**2 keeps the size of the gradient
            independent of it.

    Returns:
        Float tensor `(batch, ...)`, zero where both agree.

    Reference:
        Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2.
        arXiv:1503.02531
    """
    teacher = ops.log_softmax(teacher_logits / temperature, axis=-1)
    student = ops.log_softmax(student_logits / temperature, axis=-1)
    divergence = ops.sum(ops.exp(teacher) * (teacher - student), axis=-1)
    return divergence * temperature**2


def hard_labels(student_logits, teacher_logits):
    """Cross-entropy with the class that the teacher finds most likely.

    Args:
        student_logits: Float tensor `(batch, ..., classes)`.
        teacher_logits: Float tensor of the same shape.

    Returns:
        Float tensor `(batch, ...)`.
    """
    chosen = ops.one_hot(
        ops.argmax(teacher_logits, axis=-1),
        teacher_logits.shape[-1],
        dtype=student_logits.dtype,
    )
    return -ops.sum(chosen * ops.log_softmax(student_logits, axis=-1), axis=-1)


def decoupled(student_logits, teacher_logits, target, temperature, alpha, beta):
    """Soft labels in two parts: is it the target class, and which of the others.

    Args:
        student_logits: Float tensor `(batch, ..., classes)`, three classes or more.
        teacher_logits: Float tensor of the same shape.
        target: One-hot labels of the same shape.
        temperature: T, above 0.
        alpha: Weight of the target part (TCKD).
        beta: Weight of the part among the other classes (NCKD).

    Returns:
        Float tensor `(batch, ...)`. `alpha=1, beta=1 - p`, with p the teacher's
        probability of the target, would be `soft_labels`.

    Reference:
        Zhao et al., "Decoupled Knowledge Distillation", 2022, eq. 7. arXiv:2203.08679
    """
    target = ops.cast(target, "bool")
    parts = []
    for logits in (teacher_logits, student_logits):
        logs = ops.log_softmax(logits / temperature, axis=-1)
        # Far below every logarithm, and yet finite: infinity times zero is no number.
        others = ops.where(target, -1e9, logs)
        both = [
            ops.sum(ops.where(target, logs, 0.0), axis=-1),
            ops.logsumexp(others, axis=-1),
        ]
        parts.append((both, ops.log_softmax(others, axis=-1)))
    (teacher_both, teacher_others), (student_both, student_others) = parts
    of_target = sum(
        ops.exp(t) * (t - s) for t, s in zip(teacher_both, student_both, strict=True)
    )
    difference = ops.where(target, 0.0, teacher_others - student_others)
    of_others = ops.sum(ops.exp(teacher_others) * difference, axis=-1)
    return (alpha * of_target + beta * of_others) * temperature**2


def logits_squared_error(student_logits, teacher_logits):
    """Mean squared difference of logits, each less its mean over the classes.

    Softmax does not see a shift of all logits, so neither does this: logarithms of
    probabilities do as well. Logits of mean zero give the loss of the paper.

    Args:
        student_logits: Float tensor `(batch, ..., classes)`.
        teacher_logits: Float tensor of the same shape.

    Returns:
        Float tensor `(batch, ...)`.

    Reference:
        Ba & Caruana, "Do Deep Nets Really Need to be Deep?", 2014, eq. 1.
        arXiv:1312.6184
    """
    difference = _centred(student_logits) - _centred(teacher_logits)
    return ops.mean(difference**2, axis=-1)


def logits_cosine(student_logits, teacher_logits):
    """One minus the cosine of the angle between logits, each less its mean.

    Args:
        student_logits: Float tensor `(batch, ..., classes)`.
        teacher_logits: Float tensor of the same shape.

    Returns:
        Float tensor `(batch, ...)` in [0, 2].
    """
    pair = [normalized(_centred(x)) for x in (student_logits, teacher_logits)]
    return 1.0 - ops.sum(pair[0] * pair[1], axis=-1)


def _centred(logits):
    return logits - ops.mean(logits, axis=-1, keepdims=True)


def normalized(x, axis=-1):
    """`x` scaled to length 1 along an axis or axes; zero stays zero, gradient too."""
    squares = ops.sum(x**2, axis=axis, keepdims=True)
    return x * ops.rsqrt(ops.maximum(squares, 1e-12))


ERRORS = {
    "squared": lambda difference: difference**2,
    "absolute": ops.abs,
    "huber": lambda difference: ops.where(
        ops.abs(difference) < 1, 0.5 * difference**2, ops.abs(difference) - 0.5
    ),
}


def regression(student, teacher, error="squared"):
    """Mean error of a student's values against the teacher's.

    Args:
        student: Float tensor `(batch, ..., values)`.
        teacher: Float tensor of the same shape.
        error: `"squared"`, `"absolute"`, or `"huber"` (squared halves below 1).

    Returns:
        Float tensor `(batch, ...)`.
    """
    return ops.mean(ERRORS[error](student - teacher), axis=-1)


def bounded_regression(student, teacher, labels, margin):
    """Squared error against the labels, where the teacher is better by a margin.

    Args:
        student: Float tensor `(batch, ..., values)`.
        teacher: Float tensor of the same shape.
        labels: Float tensor of the same shape.
        margin: m, 0 or more, in the square of the labels' unit.

    Returns:
        Float tensor `(batch, ...)`: mean squared error over the values where it plus
        `margin` exceeds the teacher's, else 0.

    Reference:
        Chen et al., "Learning Efficient Object Detection Models with Knowledge
        Distillation", 2017, eq. 4 (with means where the paper has sums).
    """
    own = regression(student, labels)
    return ops.where(own + margin > regression(teacher, labels), own, 0.0)


def mean_prediction(logits, weights):
    """Logits of the weighted mean of the class probabilities of several teachers.

    Args:
        logits: List of float tensors `(batch, ..., classes)`, one a teacher.
        weights: List of floats above 0, one a teacher.

    Returns:
        Float tensor `(batch, ..., classes)`: logarithms of probabilities.
    """
    total = sum(weights)
    logs = [
        ops.log_softmax(x, axis=-1) + math.log(w / total)
        for x, w in zip(logits, weights, strict=True)
    ]
    return ops.logsumexp(ops.stack(logs, axis=0), axis=0)


def merged_classes(logits, groups):
    """Logits of classes that are made of groups of a teacher's classes.

    Args:
        logits: Float tensor `(batch, ..., teacher_classes)`.
        groups: List of lists of teacher classes, one for each student class. Classes
            in no group are left out, as if the teacher had excluded them.

    Returns:
        Float tensor `(batch, ..., student_classes)`: a softmax over it gives the sums
        of the teacher's probabilities of each group, over the sum of all groups.
    """
    length = max(map(len, groups))
    rows = np.array([g + g[:1] * (length - len(g)) for g in groups])
    missing = np.array([[i >= len(g) for i in range(length)] for g in groups])
    taken = ops.take(logits, rows.reshape(-1), axis=-1)
    taken = ops.reshape(taken, (*ops.shape(logits)[:-1], *rows.shape))
    return ops.logsumexp(ops.where(missing, -1e9, taken), axis=-1)
