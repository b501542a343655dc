"""What is looked at before a run: the door, and a rehearsal without training.

Example:
    ```python
    check_door(stages, model, data, objective)          # raises in an instant
    rehearse(stages, model, teacher, data, objective)   # raises in the first minute
    ```
"""

import pathlib
import tempfile

import keras
import numpy as np

from tfcompress.callbacks import Pruning
from tfcompress.callbacks.chosen_weights import choose
from tfcompress.checks import batches
from tfcompress.deploy.onnx import export_onnx
from tfcompress.deploy.tflite import export_tflite
from tfcompress.measure import accuracy_of, keras_runner
from tfcompress.passes.export_graph import is_quantization_aware
from tfcompress.recipes.actions import (
    act,
    copied,
    examples_for,
    made_callbacks,
    named,
    wrapped,
)
from tfcompress.recipes.order import check_order, made_in
from tfcompress.recipes.stages import HELD, PASSES, TRAINING, checked

# Examples of a data set whose labels are looked at.
_LABELS = 256


def with_export(stages):
    """The stages with an export at the end, if they have none."""
    if any(stage.verb in (export_tflite, export_onnx) for stage in stages):
        return list(stages)
    kind = "float32"
    for stage in stages:
        if stage.name == "quantize_aware":
            config = stage.arguments().get("config", "int8")
            bits = getattr(config, "activation_bits", 16 if config == "int16x8" else 8)
            kind = "int16x8" if bits == 16 else "int8"
    return [*stages, checked({"export_tflite": {"kind": kind}}, "export")]


def check_door(stages, model, data, objective):
    """Raises for what is known to go wrong before anything is done.

    Args:
        stages: List of `Stage`.
        model: The model that the recipe starts from.
        data: `RunData` to train on.
        objective: As of `Fit.compile`.

    Raises:
        ValueError: Names the stage.
    """
    made = made_in(model)
    check_order(stages, made)
    held, quantized, exported = {}, "quantization" in made, False
    # Quantizers may be around codebooks: the callback will see.
    clustered = quantized or "clusters" in made
    for number, stage in enumerate(stages, start=1):
        quantized = quantized or stage.name == "quantize_aware"
        clustered = clustered or stage.name == "cluster"
        exported = exported or stage.name == "export_tflite"
        if stage.name in HELD:
            held[stage.name] = number
        elif stage.name == "fit":
            if "QuantizationSchedule" in held and not quantized:
                raise ValueError(
                    f"Stage {held['QuantizationSchedule']}, `QuantizationSchedule`: "
                    "there are no quantizers in that `fit`. Put `quantize_aware` "
                    "before it."
                )
            if "ClusteringSchedule" in held and not clustered:
                raise ValueError(
                    f"Stage {held['ClusteringSchedule']}, `ClusteringSchedule`: there "
                    "are no codebooks in that `fit`. Put `cluster` before it."
                )
            plan = stage.verb(**stage.arguments())
            with named(number, stage):
                objective(plan.loss)
                data.check_batch_size(plan.batch_size)
            held = {}
        elif stage.name == "check_edgetpu" and not exported:
            raise ValueError(
                f"Stage {number}, `check_edgetpu`: there is no file to check. Put "
                "{'export_tflite': {'kind': 'int8'}} before it."
            )
    for name, number in held.items():
        raise ValueError(
            f"Stage {number}, `{name}`: acts in training, and no `fit` follows. Put "
            "one behind it: {'fit': {'epochs': 5}}."
        )


def has_accuracy(model, test):
    """Whether test data have an accuracy: one output, and labels that are classes.

    Classes are whole numbers from 0 (0 and 1 where the output is one value), or rows
    that add up to 1. Of arrays all labels are looked at, of a data set the first.

    Args:
        model: The model that the recipe starts from.
        test: `RunData`.

    Raises:
        ValueError: If the data do not fit the model.
    """
    found = test.first(test.rows if test.is_arrays else _LABELS)
    if len(found) != 2:
        raise ValueError("`test_data` must give labels as well: tuples (x, y).")
    one = keras.tree.map_structure(lambda a: a[:1], found)
    inputs, _ = next(batches(model, one, argument="test_data"))
    outputs = keras_runner(model)(inputs)
    if len(outputs) != 1 or not _are_classes(found[1], outputs[0].shape):
        return False
    accuracy_of(lambda _: outputs, model, one)  # Raises if shapes differ.
    return True


def _are_classes(labels, shape):
    labels = np.asarray(labels)
    if labels.dtype.kind not in "biuf":
        return True  # No numbers: for the check of shapes.
    if shape[-1] > 1 and labels.shape[1:] == shape[1:]:
        sums = labels.sum(axis=-1)
        return bool(np.all(labels >= 0) and np.allclose(sums, 1, atol=1e-3))
    if shape[-1] == 1:
        return bool(np.isin(labels, (0, 1)).all())
    return bool(np.all((labels >= 0) & (labels == np.round(labels))))


def rehearse(stages, original, teacher, data, objective):
    """Runs everything but the training, so that hours later nothing is refused.

    Args:
        stages: List of `Stage`.
        original: The model that the recipe starts from; it is not changed.
        teacher: `keras.Model` for `distill`.
        data: `RunData` to train on.
        objective: As of `Fit.compile`.

    Raises:
        TypeError: As the verbs; names the stage.
        ValueError: As the verbs; names the stage.
    """
    model, held = copied(original), []
    for number, stage in enumerate(stages, start=1):
        with named(number, stage):
            if stage.name in HELD:
                held.append(stage)
            elif stage.name in PASSES:
                model, _ = act(stage, model, data, objective)
            elif stage.name in TRAINING:
                _rehearse_training(stage, held, model, teacher, data, objective)
                held = []
            elif stage.settings.get("kind", "float32") != "float32":
                # Integers are what may not exist for an operation.
                with tempfile.TemporaryDirectory() as folder:
                    path = pathlib.Path(folder) / "model.tflite"
                    export_tflite(model, path, **export_settings(stage, model, data))


def _rehearse_training(stage, held, model, teacher, data, objective):
    for callback in made_callbacks(held, data):
        if isinstance(callback, Pruning):
            callback.set_model(model)
            choose(callback)
    plan = stage.verb(**stage.arguments())
    plan.compile(wrapped(held, model, teacher), data, objective)


def export_settings(stage, model, data):
    """Arguments of an export; examples where the model has no ranges of its own.

    Args:
        stage: `Stage` of an `export_tflite`.
        model: The model to export.
        data: `RunData` to take examples from.
    """
    settings = stage.arguments()
    integers = settings.get("kind", "float32") != "float32"
    if integers and not is_quantization_aware(model):
        settings |= examples_for(stage, data)
    return settings
