"""TFMOT's rows of `pareto.py`, in a process of its own: it runs on tf_keras.

Started by `pareto.py`; importing TFMOT turns `tf.keras` into the legacy package.
"""

import argparse
import os
import pathlib

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import tensorflow_model_optimization as tfmot  # noqa: E402
import tf_keras  # noqa: E402
from _pareto_tasks import TASKS, batches, set_named_weights  # noqa: E402

RATE, FINE_RATE = 1e-3, 3e-4
CLUSTERS = 16
_combine = tfmot.experimental.combine
# Name -> (sparsity, clusters, quantization-aware). Without the last, the file is made
# by calibration after training.
ROWS = {
    "int8, calibration": (0.0, None, None),
    "QAT": (0.0, None, "plain"),
    "pruning 80 %": (0.8, None, None),
    "pruning 90 %": (0.9, None, None),
    "PQAT 50 %": (0.5, None, "prune"),
    "PQAT 80 %": (0.8, None, "prune"),
    "PQAT 90 %": (0.9, None, "prune"),
    "clustering 16": (0.0, CLUSTERS, None),
    "PCQAT 50 %, 16": (0.5, CLUSTERS, "cluster"),
    "PCQAT 80 %, 16": (0.8, CLUSTERS, "cluster"),
    "PCQAT 90 %, 16": (0.9, CLUSTERS, "cluster"),
}
_SCHEMES = {
    "plain": None,
    "prune": _combine.Default8BitPrunePreserveQuantizeScheme,
    "cluster": lambda: _combine.Default8BitClusterPreserveQuantizeScheme(
        preserve_sparsity=True
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--row", choices=ROWS, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--examples", type=int)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    task = TASKS[args.task]
    tf_keras.utils.set_random_seed(args.seed)
    (x, y), _ = task.load()
    x, y = x[: args.examples], y[: args.examples]
    model = task.build(tf_keras.layers, tf_keras)
    with np.load(args.weights) as file:
        set_named_weights(model, file)
    train = batches(task, x, y, args.seed)
    model = compressed(model, train, ROWS[args.row], args.epochs)
    calibration = None if ROWS[args.row][2] else x[:256]
    pathlib.Path(args.output).write_bytes(converted(model, calibration))


def compressed(model, train, row, epochs):
    """Runs the stages of a row, which share the epochs equally."""
    sparsity, clusters, quantized = row
    count = bool(sparsity) + bool(clusters) + bool(quantized)
    for left in range(count, 0, -1):
        share = epochs // left
        epochs -= share
        if sparsity and left == count:
            model = pruned(model, train, sparsity, share)
        elif quantized and left == 1:
            model = quantization_aware(model, train, quantized, share)
        else:
            model = clustered(model, train, clusters, bool(sparsity), share)
    return model


def pruned(model, train, sparsity, epochs):
    steps = epochs * len(train)
    ramp = tfmot.sparsity.keras.PolynomialDecay(
        0.0, sparsity, 0, max(1, steps // 2), frequency=max(1, steps // 128)
    )
    model = tfmot.sparsity.keras.prune_low_magnitude(model, pruning_schedule=ramp)
    fit(model, train, epochs, RATE, [tfmot.sparsity.keras.UpdatePruningStep()])
    return tfmot.sparsity.keras.strip_pruning(model)


def clustered(model, train, clusters, sparse, epochs):
    settings = {
        "number_of_clusters": clusters,
        "cluster_centroids_init": (
            tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS
        ),
    }
    if sparse:
        # Documented, and in no public module of 0.8.
        from tensorflow_model_optimization.python.core.clustering.keras.experimental import (  # noqa: E501
            cluster,
        )

        model = cluster.cluster_weights(model, preserve_sparsity=True, **settings)
    else:
        model = tfmot.clustering.keras.cluster_weights(model, **settings)
    fit(model, train, epochs, FINE_RATE)
    return tfmot.clustering.keras.strip_clustering(model)


def quantization_aware(model, train, kind, epochs):
    quantization = tfmot.quantization.keras
    annotated = quantization.quantize_annotate_model(model)
    scheme = _SCHEMES[kind]
    if scheme is None:
        model = quantization.quantize_apply(annotated)
    else:
        model = quantization.quantize_apply(annotated, scheme())
    fit(model, train, epochs, FINE_RATE)
    return model


def fit(model, train, epochs, rate, callbacks=()):
    decay = tf_keras.optimizers.schedules.CosineDecay(rate, epochs * len(train))
    model.compile(tf_keras.optimizers.Adam(decay), "sparse_categorical_crossentropy")
    model.fit(train, epochs=epochs, verbose=0, callbacks=list(callbacks))


def converted(model, calibration):
    """An int8 file with float inputs and outputs, of one example a batch."""
    shape = model.inputs[0].shape[1:]
    spec = tf.TensorSpec((1, *shape), model.inputs[0].dtype)
    function = tf.function(lambda x: model(x, training=False))
    concrete = function.get_concrete_function(spec)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if calibration is not None:
        converter.representative_dataset = lambda: ([row[None]] for row in calibration)
    return converter.convert()


if __name__ == "__main__":
    main()
