"""Which output of a student learns from which output of its teachers.

Example:
    ```python
    pairing = Pairing(student, [teacher], teacher_outputs="logits")
    pairing.indices(None)   # every output
    ```
"""

import dataclasses
import difflib

from tfcompress.passes.distillation.outputs import (
    Output,
    check_class_map,
    check_kind,
    describe_outputs,
)


@dataclasses.dataclass(frozen=True)
class OfTeacher:
    """An output of a teacher.

    Attributes:
        index: Its place in the order of `keras.tree.flatten`.
        output: `Output`.
    """

    index: int
    output: Output


class Pairing:
    """Outputs of a student with those of its teachers.

    Args:
        student: `keras.Model`.
        teachers: List of `keras.Model`, none for a student that teaches itself.
        student_outputs: Kind or kinds of the student's outputs (`describe_outputs`).
        teacher_outputs: The same of the teachers; a list with one for each of several.
        teacher_weights: List of numbers above 0; `None`: all alike.
        class_map: Teacher's class or classes of each class of the student; a dict by
            output's name where there are several.

    Raises:
        ValueError: If outputs do not correspond.
    """

    def __init__(
        self,
        student,
        teachers,
        *,
        student_outputs="auto",
        teacher_outputs="auto",
        teacher_weights=None,
        class_map=None,
    ):
        self.student, self.teachers = student, teachers
        self.student_outputs = describe_outputs(student, student_outputs, "student")
        self.teacher_weights = _check_weights(teacher_weights, teachers)
        declared = _of_each(teacher_outputs, teachers)
        self.described = [
            describe_outputs(teacher, kinds, "teacher")
            for teacher, kinds in zip(teachers, declared, strict=True)
        ]
        self._taught = [self._match(outputs) for outputs in self.described]
        self.class_map = self._class_maps(class_map)

    def of_teachers(self, index):
        """List of `OfTeacher`, one a teacher, for an output of the student."""
        return [taught[index] for taught in self._taught]

    def indices(self, output):
        """The outputs that a term means.

        Args:
            output: Name or number of an output; `None`: all of them.

        Raises:
            ValueError: If there is no such output.
        """
        names = [o.name for o in self.student_outputs]
        if output is None:
            return list(range(len(names)))
        if isinstance(output, int) and 0 <= output < len(names):
            return [output]
        if output in names:
            return [names.index(output)]
        near = difflib.get_close_matches(str(output), names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"`output`: the student has no output {output!r}.{hint} It has: {names}"
        )

    def check_classes(self, index, term):
        """Raises unless an output holds classes, the same for student and teachers.

        Args:
            index: Of the output.
            term: Name of the term, for messages.
        """
        student = self.student_outputs[index]
        check_kind(student, "student", term)
        for taught in self.of_teachers(index):
            teacher = taught.output
            check_kind(teacher, "teacher", term)
            if student.kind.startswith("binary") != teacher.kind.startswith("binary"):
                raise ValueError(
                    "Softmax and sigmoid cannot be compared: output "
                    f"{student.name!r} of the student is of {student.kind}, and of the "
                    f"teacher of {teacher.kind}. If one was told wrongly, declare "
                    "student_outputs='logits' or teacher_outputs='logits' (or another "
                    "kind)."
                )
            self._check_shapes(index, student, teacher)

    def check_values(self, index):
        """Raises unless an output has the same shape everywhere."""
        for taught in self.of_teachers(index):
            self._check_shapes(index, self.student_outputs[index], taught.output)

    def _check_shapes(self, index, student, teacher):
        shapes = student.shape, teacher.shape
        if None in shapes:
            return  # A subclassed model shows its output only in training.
        mapped = index in self.class_map
        same = len(shapes[0]) == len(shapes[1]) and all(
            a == b or None in (a, b)
            for a, b in zip(*(s[:-1] if mapped else s for s in shapes), strict=True)
        )
        if not same:
            raise ValueError(
                "Student and teacher must have outputs of one shape. Received: student "
                f"{shapes[0]}, teacher {shapes[1]}. If they have other classes, say "
                "which of the teacher's each of the student's is: class_map=[7, 2, "
                "[0, 4]]; a list adds up several."
            )

    def _match(self, outputs):
        """By name where both have the same names, else by position."""
        names = [o.name for o in self.student_outputs]
        known = {o.name: OfTeacher(i, o) for i, o in enumerate(outputs)}
        if len(names) > 1 and set(names) <= set(known):
            return [known[name] for name in names]
        if len(names) != len(outputs):
            raise ValueError(
                f"Student and teacher must have equally many outputs, or outputs of "
                f"the same names. Received: student {names}, teacher {sorted(known)}"
            )
        if len(names) > 1 and self.student_outputs[0].keyed != outputs[0].keyed:
            raise ValueError(
                "Student and teacher have several outputs, one of them a dict and the "
                "other a list, and no order says which belong together. Give them the "
                f"same names. Received: student {names}, teacher {sorted(known)}"
            )
        return [OfTeacher(i, output) for i, output in enumerate(outputs)]

    def _class_maps(self, class_map):
        if class_map is None:
            return {}
        if not isinstance(class_map, dict):
            if len(self.student_outputs) > 1:
                raise ValueError(
                    "`class_map` must be a dict by output's name where the student has "
                    f"several: {[o.name for o in self.student_outputs]}"
                )
            class_map = {self.student_outputs[0].name: class_map}
        found = {}
        for name, entries in class_map.items():
            (index,) = self.indices(name)
            for taught in self.of_teachers(index):
                found[index] = check_class_map(
                    entries, self.student_outputs[index], taught.output
                )
        return found


def _check_weights(weights, teachers):
    if weights is None:
        return [1.0] * len(teachers)
    weights = [float(w) for w in weights]
    if len(weights) != len(teachers) or not all(w > 0 for w in weights):
        raise ValueError(
            f"`teacher_weights` must be {len(teachers)} numbers above 0, one a teacher."
            f" Received: {weights}"
        )
    return weights


def _of_each(teacher_outputs, teachers):
    """Kinds for each teacher: one for all, or a list with one each."""
    if len(teachers) > 1 and isinstance(teacher_outputs, (list, tuple)):
        if len(teacher_outputs) != len(teachers):
            raise ValueError(
                f"`teacher_outputs` must be one for all teachers, or a list of "
                f"{len(teachers)}. Received: {teacher_outputs}"
            )
        return list(teacher_outputs)
    return [teacher_outputs] * len(teachers)
