"""Losses by which a student learns from a teacher, one value per example.

Example:
    ```python
    loss = soft_labels(student_logits, teacher_logits, temperature=4.0)
    ```
"""

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
