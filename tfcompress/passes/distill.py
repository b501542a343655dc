"""Distillation: a student that learns from teachers inside its own `fit`.

Example:
    ```python
    student = Distiller(small, [model], terms=[SoftLabels(4.0)], alpha=0.1)
    student.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    student.fit(x, y)
    small = student.student
    ```
"""

import keras
from keras import ops

from tfcompress.graph import layer_shapes, one_tensor, recorded
from tfcompress.passes.distillation.fingerprint import fingerprint
from tfcompress.passes.distillation.pairing import Pairing
from tfcompress.passes.distillation.scheduled import (
    config_of,
    from_config,
    is_always,
)
from tfcompress.passes.distillation.taught import Taught
from tfcompress.passes.distillation.term import Signals, copies

# Under which a dataset of `cache_teacher` carries what a teacher said of its inputs.
CACHED_KEYS = {"inputs", "teacher_outputs"}


@keras.saving.register_keras_serializable(package="tfcompress")
class Distiller(Taught):
    """A student with its teachers, trained by `fit`. Made by `distill`.

    Args:
        student: The model that learns.
        teachers: List of models that it learns from, run for inference only.
        terms: List of `tfc.distillation.Term`; copies are kept.
        alpha: Weight of the loss on the labels, a number or a schedule.
        student_outputs: Kinds of the student's outputs.
        teacher_outputs: Kinds of the teachers' outputs.
        teacher_weights: Numbers above 0, one a teacher, or `None`.
        class_map: Classes of the teacher for each class of the student, or `None`.

    Attributes:
        student: The model that learns.
        teachers: The models it learns from.
        terms: What it is taught with; terms may hold trained projections.
    """

    def __init__(
        self,
        student,
        teachers,
        *,
        terms,
        alpha,
        student_outputs="auto",
        teacher_outputs="auto",
        teacher_weights=None,
        class_map=None,
        **kwargs,
    ):
        kwargs.setdefault("name", f"{student.name}_distilled")
        super().__init__(alpha=alpha, **kwargs)
        self.student = student
        self.teachers = list(teachers)
        self._settings = {
            "student_outputs": student_outputs,
            "teacher_outputs": teacher_outputs,
            "teacher_weights": teacher_weights,
            "class_map": class_map,
        }
        self.terms = copies(terms)
        # Not an attribute that Keras would look into: the models in it are above.
        object.__setattr__(
            self, "_pairing", Pairing(student, self.teachers, **self._settings)
        )
        self._prepare()
        self.distillation_loss = keras.metrics.Mean(name="distillation_loss")
        self.term_losses = []
        if len(self.terms) > 1:
            self.term_losses = [keras.metrics.Mean(name=t.name) for t in self.terms]
        self.built = True

    def _prepare(self):
        """Finds the layers that terms read, and builds what is trained beside."""
        mine, theirs = {}, [{} for _ in self.teachers]
        for term in self.terms:
            if term.needs_teacher and not self.teachers:
                raise ValueError(
                    f"{type(term).__name__} needs a teacher. Received: teacher=None"
                )
            term.prepare(self._pairing)
            mine.update(term.student_layers())
            for found, layers in zip(theirs, term.teacher_layers(), strict=False):
                found.update(layers)
        object.__setattr__(self, "_student_layers", mine)
        object.__setattr__(self, "_teacher_layers", theirs)
        own_shapes = _shapes(self.student, mine)
        their_shapes = [
            _shapes(t, layers) for t, layers in zip(self.teachers, theirs, strict=True)
        ]
        for term in self.terms:
            term.build_for(own_shapes, their_shapes)

    @property
    def teacher(self):
        """The teacher; the list of several; `None` if there is none."""
        if len(self.teachers) == 1:
            return self.teachers[0]
        return self.teachers or None

    @property
    def inputs(self):
        """Symbolic inputs of the student, where it has them."""
        return getattr(self.student, "inputs", None)

    # The teachers are part of the model, so that they are saved, but nothing of them
    # learns or is regularized; their own `trainable` flags stay as the user set them.
    @property
    def trainable_variables(self):
        beside = [v for term in self.terms for v in term.trainable_variables]
        return self.student.trainable_variables + beside

    @property
    def trainable_weights(self):
        return self.trainable_variables

    @property
    def losses(self):
        return self.student.losses

    def fit(self, x=None, *args, **kwargs):
        """As of any model; a cached dataset must be of this distiller's teachers."""
        self._check_cached(x)
        return super().fit(x, *args, **kwargs)

    def evaluate(self, x=None, *args, **kwargs):
        """As of any model; a cached dataset must be of this distiller's teachers."""
        self._check_cached(x)
        return super().evaluate(x, *args, **kwargs)

    def _check_cached(self, data):
        spec = getattr(data, "element_spec", None)
        _, cached = without_cached(spec[0] if isinstance(spec, tuple) else spec)
        if cached is not None and set(cached) != {fingerprint(self.teachers)}:
            raise ValueError(
                "The dataset has the answers of another teacher, or of other weights "
                "of it. Pass the teachers of this distiller to tfc.cache_teacher, in "
                "the same order."
            )

    def call(self, inputs, training=False):
        inputs, _ = without_cached(inputs)
        with recorded(self._student_layers) as seen:
            outputs = self.student(inputs, training=training)
        # On the tensor, as Keras' masks are: `compute_loss` is handed nothing else.
        first = keras.tree.flatten(outputs)[0]
        first._tfcompress_features = seen
        return outputs

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        flat = keras.tree.flatten(y_pred)
        seen = getattr(flat[0], "_tfcompress_features", None)
        if seen is None and not training:
            # Keras finds out shapes before the first step; nothing is computed.
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        if not seen and self._student_layers:
            raise ValueError(
                "Terms that read layers of the student need its outputs as the "
                "distiller's own call returned them."
            )
        if training:
            self._check_compiled()
        soft = self._taught(x, y, flat, seen or {}, sample_weight, training)
        if is_always(self.alpha, 0) and training:
            return soft + self.regularizers()  # Needs neither labels nor a loss.
        if not training:
            if self.loss is None or (y is None and is_always(self.alpha, 0)):
                return soft
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        # With the regularizers, which alpha shall not weigh.
        hard = super().compute_loss(x, y, y_pred, sample_weight, training)
        alpha = self.alpha_now()
        return alpha * hard + (1 - alpha) * (soft + self.regularizers())

    def _taught(self, x, y, outputs, seen, sample_weight, training):
        """The weighted sum of the terms, which the logs see too."""
        inputs, cached = without_cached(x)
        of_teachers, their_features = self._ask_teachers(inputs, cached)
        signals = Signals(
            pairing=self._pairing,
            student_outputs=outputs,
            teacher_outputs=of_teachers,
            student_features={
                path: one_tensor(found, path) for path, found in seen.items()
            },
            teacher_features=their_features,
            labels=y,
            sample_weight=sample_weight,
            step=self.step(),
            training=training,
        )
        losses = [term.loss(signals) for term in self.terms]
        total = sum(
            term.at("weight", signals) * loss
            for term, loss in zip(self.terms, losses, strict=True)
        )
        self.log([self.distillation_loss], [total], outputs)
        if self.term_losses:
            self.log(self.term_losses, losses, outputs)
        return total

    def _ask_teachers(self, inputs, cached):
        outputs, features = [], []
        for number, (teacher, layers) in enumerate(
            zip(self.teachers, self._teacher_layers, strict=True)
        ):
            if cached is None:
                found = teacher_signals(teacher, layers, inputs)
            else:
                count = len(self._pairing.described[number])
                found = _from_cache(cached, number, count, layers)
            outputs.append(found[0])
            features.append(found[1])
        return outputs, features

    def _check_compiled(self):
        if self.loss is None and not is_always(self.alpha, 0):
            raise ValueError(
                f"With alpha={self.alpha} the labels count: compile with their loss, "
                "for example loss='sparse_categorical_crossentropy'. Without labels "
                "pass alpha=0 to `distill`."
            )

    def get_config(self):
        return {
            "name": self.name,
            "student": keras.saving.serialize_keras_object(self.student),
            "teachers": [keras.saving.serialize_keras_object(t) for t in self.teachers],
            "terms": [keras.saving.serialize_keras_object(t) for t in self.terms],
            "alpha": config_of(self.alpha),
            **self._settings,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        def back(found):
            return keras.saving.deserialize_keras_object(found, custom_objects)

        config = dict(config)
        config["student"] = back(config["student"])
        config["alpha"] = from_config(config["alpha"])
        for key in ("teachers", "terms"):
            config[key] = [back(found) for found in config[key]]
        return cls(**config)


def teacher_signals(teacher, layers, inputs):
    """What a teacher says of a batch, and what its layers compute.

    Args:
        teacher: `keras.Model` or a layer that stands for one.
        layers: Dict from path to layer.
        inputs: A batch.

    Returns:
        `(outputs, features)`: a list of tensors in the order of `keras.tree.flatten`,
        and a dict from path to tensor. No gradient flows into them.
    """
    with recorded(layers) as seen:
        outputs = keras.tree.flatten(teacher(inputs, training=False))
    features = {path: one_tensor(found, path) for path, found in seen.items()}
    return [ops.stop_gradient(x) for x in outputs], features


def without_cached(x):
    """Splits the inputs of a batch from what `cache_teacher` added to them.

    Args:
        x: Inputs of a batch, of a cached dataset or of any other.

    Returns:
        `(inputs, cached)`; `cached` is `None` for any other.
    """
    if isinstance(x, dict) and set(x) == CACHED_KEYS:
        return x["inputs"], x["teacher_outputs"]
    return x, None


def cached_name(teacher, output=None, layer=None):
    """The name of a tensor in a cache.

    Args:
        teacher: Number of the teacher.
        output: Number of its output; or
        layer: Path of its layer.
    """
    return f"{teacher}/{'layer' if layer else 'output'}/{layer or output}"


def _from_cache(cached, teacher, outputs, layers):
    (cached,) = cached.values()  # By the fingerprint of the teachers.
    names = [cached_name(teacher, output=i) for i in range(outputs)]
    names += [cached_name(teacher, layer=path) for path in layers]
    missing = [name for name in names if name not in cached]
    if missing:
        raise ValueError(
            f"The cache of the teacher has no {missing}. It has {sorted(cached)}. "
            "Write it again with the layers that the terms name: "
            f"tfc.cache_teacher(..., layers={sorted(layers)})."
        )
    found = [cached[name] for name in names]
    return found[:outputs], dict(zip(layers, found[outputs:], strict=True))


def _shapes(model, layers):
    if not layers:
        return {}
    if hasattr(model, "shapes_described"):
        return model.shapes_described(layers)
    return layer_shapes(model, layers)
