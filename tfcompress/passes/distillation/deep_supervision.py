"""A network that teaches its own early layers.

Example:
    ```python
    term = tfc.distillation.DeepSupervision(["block1", "block2"])
    student = tfc.distill(model, terms=[term])
    ```
"""

import keras
from keras import ops

from tfcompress.graph import layer_paths
from tfcompress.numerics.distillation import soft_labels
from tfcompress.passes.distillation.features import pooled, without_masked
from tfcompress.passes.distillation.output_terms import one_hot_labels
from tfcompress.passes.distillation.scheduled import check_setting, config_of
from tfcompress.passes.distillation.term import Term
from tfcompress.selection import select_one


@keras.saving.register_keras_serializable(package="tfcompress")
class DeepSupervision(Term):
    """Classifiers on inner layers learn from the labels and from the last layer.

    Each is a linear layer on the mean over positions, trained beside the student and no
    part of what comes out. No teacher is needed. The value is the mean over the layers
    of `alpha * labels + (1 - alpha) * soft`.

    Args:
        student_layers: Paths of layers of the student, or regular expressions that each
            match one path.
        temperature: Of the soft labels, above 0, a number or a schedule.
        alpha: Weight of the labels' cross-entropy, in [0, 1]; at 0 none are needed.
        output: Name or number of the output that teaches; `None`: the only one.
        weight: Factor of the term, a number or a schedule.
        name: Name of its value in the logs.

    Raises:
        ValueError: If no layer is named, or the output holds no classes of a softmax.

    Reference:
        Zhang et al., "Be Your Own Teacher", 2019, eq. 6, without the hints: add `Hint`
        terms for those. arXiv:1905.08094
    """

    needs_teacher = False

    def __init__(
        self,
        student_layers,
        *,
        temperature=3.0,
        alpha=0.5,
        output=None,
        weight=1.0,
        name=None,
    ):
        super().__init__(weight=weight, name=name)
        if isinstance(student_layers, str) or not student_layers:
            raise ValueError(
                "`student_layers` must be a list of paths. Received: "
                f"{student_layers!r}"
            )
        self.patterns = list(student_layers)
        self.temperature = check_setting(temperature, "temperature", above=0)
        self.alpha = check_setting(alpha, "alpha", low=0, high=1)
        self.output_name = output
        self._layers_read = {}

    def prepare(self, pairing):
        indices = pairing.indices(self.output_name)
        if len(indices) != 1:
            raise ValueError(
                "DeepSupervision learns from one output. Name it with `output`, one of "
                f"{[o.name for o in pairing.student_outputs]}."
            )
        (self.index,) = indices
        output = pairing.student_outputs[self.index]
        if output.kind not in ("logits", "probabilities") or output.shape is None:
            raise ValueError(
                "DeepSupervision needs a student with symbolic outputs of a softmax or "
                f"its logits. Output {output.name!r} is of {output.kind}: "
                f"{output.found}, shape {output.shape}."
            )
        self.classes = output.shape[-1]
        self.output_rank = len(output.shape)
        paths = layer_paths(pairing.student)
        found = {}
        for pattern in self.patterns:
            path = select_one(paths, pattern, argument="student_layers")
            found[path] = paths[path]
        object.__setattr__(self, "_layers_read", found)

    def student_layers(self):
        return self._layers_read

    def build_for(self, student_shapes, teacher_shapes):
        self.heads = []
        for path in self._layers_read:
            head = keras.layers.Dense(self.classes, dtype="float32")
            head.build((None, student_shapes[path][-1]))
            self.heads.append(head)
        self.built = True

    def loss(self, signals):
        """Mean over the classifiers of their means over examples."""
        teacher = ops.stop_gradient(signals.student_logits(self.index))
        mask = signals.mask_of(self.index)
        losses = []
        for path, head in zip(self._layers_read, self.heads, strict=True):
            features = ops.cast(signals.student_features[path], "float32")
            values = self._values(head(self._fitted(features)), teacher, signals)
            losses.append(signals.mean(values, self.index, mask))
        return sum(losses) / len(losses)

    def _fitted(self, features):
        """One vector for each answer of the output."""
        if len(features.shape) == self.output_rank:
            return features
        mask = getattr(features, "_keras_mask", None)
        return pooled(without_masked(features, mask), mask)

    def _values(self, student, teacher, signals):
        soft = soft_labels(student, teacher, self.at("temperature", signals))
        labels = signals.labels_of(self.index)
        if labels is None and self.alpha == 0:
            return soft
        if labels is None:
            raise ValueError(
                "DeepSupervision needs labels, and the data have none. Pass alpha=0."
            )
        target = one_hot_labels(labels, student)
        hard = -ops.sum(target * ops.log_softmax(student, axis=-1), axis=-1)
        alpha = self.at("alpha", signals)
        return alpha * hard + (1 - alpha) * soft

    def get_config(self):
        return {
            **super().get_config(),
            "student_layers": self.patterns,
            "temperature": config_of(self.temperature),
            "alpha": config_of(self.alpha),
            "output": self.output_name,
        }
