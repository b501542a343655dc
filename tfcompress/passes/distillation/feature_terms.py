"""Terms on what layers inside student and teacher compute.

Example:
    ```python
    hint = tfc.distillation.Hint("block3", "conv4_block6_out", weight=0.5)
    student = tfc.distill(small, teacher, terms=[tfc.distillation.SoftLabels(), hint])
    ```
"""

import keras
from keras import ops

from tfcompress.graph import layer_paths
from tfcompress.numerics import feature_distillation as losses
from tfcompress.numerics.distillation import normalized
from tfcompress.passes.distillation.features import (
    aligned,
    check_alignable,
    fits,
    joined,
    joined_shape,
    pooled,
    without_masked,
)
from tfcompress.passes.distillation.scheduled import check_setting, config_of
from tfcompress.passes.distillation.term import Term
from tfcompress.selection import select_one


class FeatureTerm(Term):
    """Compares the outputs of two layers. Subclasses define `call(student, teacher)`.

    `call` gets float32 tensors `(batch, positions..., channels)`, zero where a mask is
    off, and returns values `(batch, ...)`. Features of several teachers are put beside
    one another.

    Args:
        student_layer: Path of a layer of the student, or a regular expression that
            matches one path.
        teacher_layer: The same of the teacher; a list with one a teacher for several,
            `None` for a teacher that is left out (a file has no layers to name).
        weight: Factor of the term, a number or a schedule.
        name: Name of its value in the logs.
    """

    def __init__(self, student_layer, teacher_layer, *, weight=1.0, name=None):
        super().__init__(weight=weight, name=name)
        self.student_layer = student_layer
        self.teacher_layer = teacher_layer
        self._student, self._teachers = {}, []

    def prepare(self, pairing):
        """Finds the layers."""
        if keras.config.image_data_format() == "channels_first":
            raise ValueError(
                f"{type(self).__name__} needs features with the channels last. Call "
                "keras.config.set_image_data_format('channels_last') and build both "
                "models anew."
            )
        # Not lists and dicts that Keras would track: the layers are the models' own.
        object.__setattr__(
            self, "_student", _found(pairing.student, self.student_layer, "student")
        )
        patterns = self.teacher_layer
        if isinstance(patterns, str) or not isinstance(patterns, (list, tuple)):
            patterns = [patterns] * len(pairing.teachers)
        if len(patterns) != len(pairing.teachers):
            raise ValueError(
                f"`teacher_layer` must be one for all of {len(pairing.teachers)} "
                f"teachers, or a list with one each. Received: {self.teacher_layer}"
            )
        if all(pattern is None for pattern in patterns):
            raise ValueError(
                "`teacher_layer` must name a layer of one teacher at least. Received: "
                f"{self.teacher_layer}"
            )
        found = [
            {} if pattern is None else _found(teacher, pattern, "teacher")
            for teacher, pattern in zip(pairing.teachers, patterns, strict=True)
        ]
        object.__setattr__(self, "_teachers", found)

    def student_layers(self):
        return self._student

    def teacher_layers(self):
        return self._teachers

    def build_for(self, student_shapes, teacher_shapes):
        (path,) = self._student
        student = student_shapes[path]
        teacher = joined_shape(
            [
                shapes[path]
                for shapes, paths in zip(teacher_shapes, self._teachers, strict=True)
                for path in paths
            ]
        )
        self.check_shapes(student, teacher)
        self.build(student, teacher)

    def check_shapes(self, student, teacher):
        """Raises unless the term can compare features of two static shapes."""

    def build(self, student_shape, teacher_shape):
        self.built = True

    def loss(self, signals):
        """Mean over examples."""
        (path,) = self._student
        student = signals.student_features[path]
        teachers = [
            features[path]
            for features, paths in zip(
                signals.teacher_features, self._teachers, strict=True
            )
            for path in paths
        ]
        masks = [getattr(x, "_keras_mask", None) for x in (student, *teachers)]
        mask = next((m for m in masks if m is not None), None)
        student = ops.cast(student, "float32")
        teacher = joined([ops.cast(x, "float32") for x in teachers])
        values = self.compare(student, ops.stop_gradient(teacher), mask, signals)
        of_values = mask is not None and len(values.shape) == len(mask.shape)
        return signals.mean(values, mask=mask if of_values else None)

    def compare(self, student, teacher, mask, signals):
        """Values for examples, of features as they are. By default of `call`."""
        return self.call(without_masked(student, mask), without_masked(teacher, mask))

    def get_config(self):
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "student_layer": self.student_layer,
            "teacher_layer": self.teacher_layer,
        }


def _found(model, pattern, which):
    if hasattr(model, "layers_described"):
        paths = model.layers_described()
    else:
        paths = layer_paths(model)
    path = select_one(paths, pattern, argument=f"{which}_layer")
    return {path: paths[path]}


@keras.saving.register_keras_serializable(package="tfcompress")
class Hint(FeatureTerm):
    """A layer of the student predicts one of the teacher's (FitNets).

    Where the layers have different channels, a linear map from the student's to the
    teacher's is trained beside the student; positions are averaged to the fewer of the
    two, and to one where the ranks differ.

    Args:
        student_layer: Path of a layer of the student, or a regular expression that
            matches one path.
        teacher_layer: The same of the teacher; a list with one a teacher for several.
        weight: Factor of the term, a number or a schedule.
        name: Name of its value in the logs.

    Example:
        ```python
        tfc.distill(small, teacher, terms=[tfc.distillation.Hint("conv2", "conv4")])
        ```

    Reference:
        Romero et al., "FitNets: Hints for Thin Deep Nets", 2014. arXiv:1412.6550
    """

    def check_shapes(self, student, teacher):
        check_alignable(student, teacher)

    def build(self, student_shape, teacher_shape):
        self.projection = None
        if student_shape[-1] != teacher_shape[-1]:
            self.projection = keras.layers.Dense(teacher_shape[-1], dtype="float32")
            self.projection.build((None, student_shape[-1]))
        self.built = True

    def compare(self, student, teacher, mask, signals):
        student, teacher = aligned(student, teacher, mask)
        if self.projection is not None:
            student = self.projection(student)
        if mask is not None and not (
            len(mask.shape) == len(student.shape) - 1 and fits(mask, student)
        ):
            student, teacher = (without_masked(x, mask) for x in (student, teacher))
        return losses.squared_difference(student, teacher)


@keras.saving.register_keras_serializable(package="tfcompress")
class AttentionTransfer(FeatureTerm):
    """The maps of where features are large agree, whatever the channels.

    Its value is from 0 to 2 an example: a weight of about 1 to 10 sets it beside a
    cross-entropy.

    Args:
        student_layer: Path of a layer of the student, or a regular expression that
            matches one path.
        teacher_layer: The same of the teacher; a list with one a teacher for several.
        power: p of the map, the mean over channels of |x|**p.
        weight: Factor of the term, a number or a schedule.
        name: Name of its value in the logs.

    Example:
        ```python
        term = tfc.distillation.AttentionTransfer("conv2", "conv4", weight=5)
        tfc.distill(small, teacher, terms=[term])
        ```

    Reference:
        Zagoruyko & Komodakis, "Paying More Attention to Attention", 2016, eq. 2.
        arXiv:1612.03928
    """

    def __init__(self, student_layer, teacher_layer, *, power=2, **settings):
        super().__init__(student_layer, teacher_layer, **settings)
        self.power = check_setting(power, "power", above=0)

    def check_shapes(self, student, teacher):
        check_alignable(student, teacher)
        if min(len(student), len(teacher)) < 3 or len(student) != len(teacher):
            raise ValueError(
                "AttentionTransfer compares positions: both features must be (batch, "
                f"positions..., channels), of one rank. Received: student {student}, "
                f"teacher {teacher}"
            )

    def call(self, student, teacher):
        student, teacher = aligned(student, teacher)
        return losses.attention_transfer(student, teacher, self.power)

    def get_config(self):
        return {**super().get_config(), "power": self.power}


@keras.saving.register_keras_serializable(package="tfcompress")
class SimilarityPreserving(FeatureTerm):
    """Examples that are alike to the teacher are alike to the student.

    Under `tf.distribute` the examples of one replica are compared.

    Args:
        student_layer: Path of a layer of the student, or a regular expression that
            matches one path.
        teacher_layer: The same of the teacher; a list with one a teacher for several.
        weight: Factor of the term, a number or a schedule.
        name: Name of its value in the logs.

    Example:
        ```python
        term = tfc.distillation.SimilarityPreserving("conv2", "conv4", weight=1000)
        tfc.distill(small, teacher, terms=[term])
        ```

    Reference:
        Tung & Mori, "Similarity-Preserving Knowledge Distillation", 2019, eq. 4.
        arXiv:1907.09682
    """

    def call(self, student, teacher):
        return losses.similarity_preserving(student, teacher)


@keras.saving.register_keras_serializable(package="tfcompress")
class Relational(FeatureTerm):
    """Distances and angles between examples agree (RKD).

    Under `tf.distribute` the examples of one replica are compared.

    Args:
        student_layer: Path of a layer of the student, or a regular expression that
            matches one path.
        teacher_layer: The same of the teacher; a list with one a teacher for several.
        distance: Weight of the distances of pairs.
        angle: Weight of the angles of triples, which take memory for batch**3 numbers;
            0 leaves them out.
        weight: Factor of the term, a number or a schedule.
        name: Name of its value in the logs.

    Example:
        ```python
        term = tfc.distillation.Relational("embedding", "avg_pool", angle=2)
        tfc.distill(small, teacher, terms=[term])
        ```

    Reference:
        Park et al., "Relational Knowledge Distillation", 2019, eq. 4 to 9.
        arXiv:1904.05068
    """

    def __init__(
        self, student_layer, teacher_layer, *, distance=1.0, angle=2.0, **settings
    ):
        super().__init__(student_layer, teacher_layer, **settings)
        self.distance = float(check_setting(distance, "distance", low=0))
        self.angle = float(check_setting(angle, "angle", low=0))
        if not self.distance and not self.angle:
            raise ValueError("`distance` and `angle` are both 0: nothing is compared.")

    def call(self, student, teacher):
        parts = []
        if self.distance:
            parts.append(self.distance * losses.relational_distance(student, teacher))
        if self.angle:
            parts.append(self.angle * losses.relational_angle(student, teacher))
        return sum(parts)

    def get_config(self):
        config = super().get_config()
        return {**config, "distance": self.distance, "angle": self.angle}


@keras.saving.register_keras_serializable(package="tfcompress")
class Contrastive(FeatureTerm):
    """A student's embedding finds its own example among the teacher's (CRD).

    Features are averaged over positions and mapped to embeddings by linear layers that
    are trained beside the student. The examples of earlier batches to tell it from wait
    in a memory of fixed length, the oldest leaving first; it is saved with the
    distiller. Under `tf.distribute` it takes in the first replica's examples.

    Args:
        student_layer: Path of a layer of the student, or a regular expression that
            matches one path.
        teacher_layer: The same of the teacher; a list with one a teacher for several.
        size: Length of the embeddings.
        memory: Number of embeddings kept: `4 * memory * size` bytes.
        temperature: Of the softmax over similarities, a number or a schedule.
        weight: Factor of the term, a number or a schedule.
        name: Name of its value in the logs.

    Example:
        ```python
        term = tfc.distillation.Contrastive("embedding", "avg_pool", memory=8192)
        tfc.distill(small, teacher, terms=[tfc.distillation.SoftLabels(), term])
        ```

    Reference:
        Tian et al., "Contrastive Representation Distillation", 2019, with a queue and
        InfoNCE in place of an index of all examples. arXiv:1910.10699
    """

    def __init__(
        self,
        student_layer,
        teacher_layer,
        *,
        size=128,
        memory=4096,
        temperature=0.07,
        **settings,
    ):
        super().__init__(student_layer, teacher_layer, **settings)
        for name, value in (("size", size), ("memory", memory)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"`{name}` must be a whole number above 0. Received: {value!r}"
                )
        self.size, self.memory = size, memory
        self.temperature = check_setting(temperature, "temperature", above=0)

    def check_shapes(self, student, teacher):
        check_alignable(student, (*student[:-1], teacher[-1]))

    def build(self, student_shape, teacher_shape):
        self.projections = []
        for shape in (student_shape, teacher_shape):
            projection = keras.layers.Dense(self.size, dtype="float32")
            projection.build((None, shape[-1]))
            self.projections.append(projection)
        first = {"trainable": False, "aggregation": "only_first_replica"}
        self.queue = self.add_weight(
            name="queue",
            shape=(self.memory, self.size),
            initializer="zeros",
            dtype="float32",
            autocast=False,
            **first,
        )
        self.taken_in = self.add_weight(
            name="taken_in", shape=(), initializer="zeros", dtype="int64", **first
        )
        self.built = True

    def compare(self, student, teacher, mask, signals):
        student, teacher = (
            normalized(projection(pooled(x, mask)))
            for projection, x in zip(self.projections, (student, teacher), strict=True)
        )
        filled = ops.minimum(self.taken_in, self.memory)
        queue = ops.convert_to_tensor(self.queue)
        temperature = self.at("temperature", signals)
        values = losses.contrastive(student, teacher, queue, filled, temperature)
        if signals.training:
            self._take_in(ops.stop_gradient(teacher))
        return values

    def _take_in(self, embeddings):
        """Puts a batch in place of the oldest; of a larger one the last examples."""
        embeddings = embeddings[-self.memory :]
        count = ops.shape(embeddings)[0]
        places = (ops.arange(count, dtype="int64") + self.taken_in) % self.memory
        self.queue.assign(ops.scatter_update(self.queue, places[:, None], embeddings))
        self.taken_in.assign_add(ops.cast(count, "int64"))

    def get_config(self):
        return {
            **super().get_config(),
            "size": self.size,
            "memory": self.memory,
            "temperature": config_of(self.temperature),
        }
