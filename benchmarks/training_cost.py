"""Prints what a compressed training step costs, against plain `fit`.

`--technique` is quantization (the default), clustering (16 values a kernel) or pruning.
Of pruning the masks change
every 30 steps, as they do when 64 updates are spread over 2,000 steps, and the first
epoch of a `fit`, in which the train function is traced again, does not count.

Keras 3 does not compile with XLA on a CPU unless told to: `--jit_compile=ours` compiles
the quantization-aware step alone, as a user may, `--jit_compile=plain,ours` both.

One process, the two models alternating epoch by epoch after a hundred steps of each,
medians of the ratio within a round. Peak memory of each comes from a process of its
own. TFMOT is measured in its own process, on tf_keras, against a plain tf_keras fit of
the same network.

Usage:
    python benchmarks/training_cost.py --rounds=9
    python benchmarks/training_cost.py --only=resnet8 --skip_tfmot
    python benchmarks/training_cost.py --technique=pruning --rounds=9
    python benchmarks/training_cost.py --technique=clustering --only=resnet8
    python benchmarks/training_cost.py --only=transformer --jit_compile=ours
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

NETWORKS = ("resnet8", "mobilenetv2", "transformer")


def resnet8(layers, keras):
    """MLPerf Tiny's ResNet-8 on 32x32 images (Banbury et al., 2021)."""
    inputs = keras.Input((32, 32, 3))

    def conv(x, filters, size, strides=1):
        x = layers.Conv2D(filters, size, strides=strides, padding="same")(x)
        return layers.BatchNormalization()(x)

    x = layers.Activation("relu")(conv(inputs, 16, 3))
    for filters, strides in ((16, 1), (32, 2), (64, 2)):
        y = layers.Activation("relu")(conv(x, filters, 3, strides))
        y = conv(y, filters, 3)
        if strides > 1:
            x = layers.Conv2D(filters, 1, strides=strides, padding="same")(x)
        x = layers.Activation("relu")(layers.Add()([x, y]))
    x = layers.Flatten()(layers.AveragePooling2D(8)(x))
    outputs = layers.Dense(10, activation="softmax")(x)
    return keras.Model(inputs, outputs)


def mobilenetv2(layers, keras):
    """MobileNetV2, 96 px."""
    return keras.applications.MobileNetV2(
        weights=None, input_shape=(96, 96, 3), classes=10
    )


def transformer(layers, keras, *, length=64, width=128, heads=4, blocks=2):
    """Two pre-norm encoder blocks over a sequence of vectors."""
    inputs = keras.Input((length, 32))
    x = layers.Dense(width)(inputs)
    for _ in range(blocks):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(heads, width // heads)(y, y)])
        y = layers.LayerNormalization()(x)
        y = layers.Dense(2 * width, activation="relu")(y)
        x = layers.Add()([x, layers.Dense(width)(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x))


def size_of_epoch(name, technique="quantization"):
    """Steps and batch size of an epoch of a network."""
    prunes = technique == "pruning"
    if name == "mobilenetv2":
        return 20 if prunes else 6, 16
    return 60 if prunes else 20, 32


def _data(model, examples, batch):
    import numpy as np
    import tensorflow as tf

    import tfcompress as tfc

    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples, *model.inputs[0].shape[1:])).astype("float32")
    y = rng.integers(0, 10, examples)
    # Cached tensors: what is measured is the step, not the input pipeline.
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch).cache()
    # Else an epoch of 0.7 s takes 1.26 s every other time.
    return tfc.datasets.untuned(dataset), x


def _compiled(model, keras, **options):
    optimizer = keras.optimizers.SGD(0.01)
    model.compile(optimizer, "sparse_categorical_crossentropy", **options)
    return model


def _alternate(models, dataset, rounds):
    """Seconds of one epoch of each model, a list for each round."""
    # Traced, and past the batches at which quantizers look at every one.
    warm = 100 // dataset.cardinality().numpy() + 1
    for model in models:
        model.fit(dataset, verbose=0, epochs=warm)
    found = []
    for number in range(rounds):
        times = {}
        order = list(enumerate(models))
        for index, model in order if number % 2 else order[::-1]:
            wall, cpu = time.perf_counter(), time.process_time()
            model.fit(dataset, verbose=0)
            times[index] = (time.perf_counter() - wall, time.process_time() - cpu)
        found.append([times[i] for i in range(len(models))])
    return found


def _ratios(rounds):
    wall = [r[1][0] / r[0][0] for r in rounds]
    cpu = [r[1][1] / r[0][1] for r in rounds]
    return {
        "wall": statistics.median(wall),
        "wall_range": [min(wall), max(wall)],
        "cpu": statistics.median(cpu),
        # What other programs do to the machine lengthens epochs and never shortens one.
        "fastest": min(r[1][0] for r in rounds) / min(r[0][0] for r in rounds),
        "plain_seconds": statistics.median(r[0][0] for r in rounds),
    }


def compare_pruning(name, rounds, steps, batch):
    """Steps under our pruning callback against plain Keras 3."""
    import keras
    from keras import layers

    import tfcompress as tfc

    plain, pruned = (_compiled(globals()[name](layers, keras), keras) for _ in "ab")
    dataset, _ = _data(plain, steps * batch, batch)

    def callbacks():
        return [tfc.Pruning(0.8, frequency=_MASKS_EVERY)]

    return _ratios(_alternate_fits(keras, plain, pruned, callbacks, dataset, rounds))


def compare_pruning_tfmot(name, rounds, steps, batch):
    """Steps under TFMOT's pruning wrappers against plain tf_keras."""
    import tensorflow_model_optimization as mot
    import tf_keras as keras

    sparsity = mot.sparsity.keras
    plain, wrapped = (globals()[name](keras.layers, keras) for _ in "ab")
    dataset, _ = _data(plain, steps * batch, batch)
    schedule = sparsity.PolynomialDecay(
        0.0, 0.8, 0, rounds * _EPOCHS * steps // 2, frequency=_MASKS_EVERY
    )
    wrapped = sparsity.prune_low_magnitude(wrapped, pruning_schedule=schedule)
    models = [_compiled(plain, keras), _compiled(wrapped, keras)]

    def callbacks():
        return [sparsity.UpdatePruningStep()]

    return _ratios(_alternate_fits(keras, *models, callbacks, dataset, rounds))


# Epochs of a `fit`, of which the first does not count.
_EPOCHS = 4
_MASKS_EVERY = 30
_CLUSTERS = 16


def _alternate_fits(keras, plain, other, callbacks, dataset, rounds):
    """Seconds of the epochs but the first of fits in turn, a list for each round."""

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.wall, self.cpu = time.perf_counter(), time.process_time()

        def on_epoch_end(self, epoch, logs=None):
            # The last, so that what other callbacks do at the end does not count.
            if epoch == _EPOCHS - 1:
                self.took = (
                    time.perf_counter() - self.wall,
                    time.process_time() - self.cpu,
                )

    def took(model, extra):
        clock = Clock()
        model.fit(dataset, epochs=_EPOCHS, verbose=0, callbacks=[*extra, clock])
        return clock.took

    found = []
    for number in range(rounds):
        first = [took(plain, [])] if number % 2 else []
        second = took(other, callbacks())
        found.append([*(first or [took(plain, [])]), second])
    return found


def compare(name, rounds, steps, batch, jit_compile=()):
    """Our quantization-aware step against plain Keras 3, with XLA where said."""
    import keras
    from keras import layers

    import tfcompress as tfc

    make = globals()[name]
    plain = make(layers, keras)
    dataset, x = _data(plain, steps * batch, batch)
    qat = tfc.quantize_aware(plain, calibration_data=x[:batch])
    models = [
        _compiled(model, keras, jit_compile=who in jit_compile)
        for who, model in (("plain", plain), ("ours", qat))
    ]
    return _ratios(_alternate(models, dataset, rounds))


def compare_tfmot(name, rounds, steps, batch):
    """TFMOT's quantization-aware step against plain tf_keras."""
    import tensorflow_model_optimization as mot
    import tf_keras as keras

    plain = globals()[name](keras.layers, keras)
    dataset, _ = _data(plain, steps * batch, batch)
    qat = mot.quantization.keras.quantize_model(plain)
    models = [_compiled(plain, keras), _compiled(qat, keras)]
    return _ratios(_alternate(models, dataset, rounds))


def compare_clustering(name, rounds, steps, batch):
    """Our clustered step against plain Keras 3."""
    import keras
    from keras import layers

    import tfcompress as tfc

    plain = globals()[name](layers, keras)
    dataset, _ = _data(plain, steps * batch, batch)
    models = [plain, tfc.cluster(plain, _CLUSTERS)]
    models = [_compiled(model, keras) for model in models]
    return _ratios(_alternate(models, dataset, rounds))


def compare_clustering_tfmot(name, rounds, steps, batch):
    """TFMOT's clustered step against plain tf_keras."""
    import tensorflow_model_optimization as mot
    import tf_keras as keras

    plain, other = (globals()[name](keras.layers, keras) for _ in "ab")
    dataset, _ = _data(plain, steps * batch, batch)
    clustered = mot.clustering.keras.cluster_weights(
        other,
        _CLUSTERS,
        mot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS,
    )
    models = [_compiled(model, keras) for model in (plain, clustered)]
    return _ratios(_alternate(models, dataset, rounds))


def peak(name, which, steps, batch):
    """Peak resident memory in MiB of building and two epochs, above the imports."""
    import keras
    from keras import layers

    import tfcompress as tfc

    model = globals()[name](layers, keras)
    dataset, x = _data(model, steps * batch, batch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if which == "quantization":
        model = tfc.quantize_aware(model, calibration_data=x[:batch])
    if which == "clustering":
        model = tfc.cluster(model, _CLUSTERS)
    callbacks = [tfc.Pruning(0.8)] if which == "pruning" else []
    _compiled(model, keras).fit(dataset, verbose=0, epochs=2, callbacks=callbacks)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"mib": (after - before) / 1024}


def _child(**arguments):
    command = [sys.executable, __file__, f"--child={json.dumps(arguments)}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1][:160]}
    return json.loads(lines[-1])


def _line(name, what, found, memory=""):
    if "error" in found:
        return f"| {name} | {what} | {found['error']} | | | | |"
    low, high = found["wall_range"]
    return (
        f"| {name} | {what} | {found['wall']:.2f}x ({low:.2f} to {high:.2f}) | "
        f"{found['fastest']:.2f}x | {found['cpu']:.2f}x | "
        f"{found['plain_seconds']:.2f} | {memory} |"
    )


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="")
    parser.add_argument(
        "--technique",
        choices=("quantization", "pruning", "clustering"),
        default="quantization",
    )
    parser.add_argument(
        "--jit_compile",
        choices=("ours", "plain,ours"),
        help="whose step of `--technique=quantization` XLA compiles (neither)",
    )
    parser.add_argument("--skip_tfmot", action="store_true")
    parser.add_argument("--skip_memory", action="store_true")
    parser.add_argument("--child", default="")
    args = parser.parse_args()
    if args.jit_compile and args.technique != "quantization":
        parser.error("--jit_compile is of --technique=quantization")
    if args.child:
        call = json.loads(args.child)
        print(json.dumps(globals()[call.pop("function")](**call)))
        return
    print(
        "| network | step | wall, median (range) | wall, fastest epochs | CPU | "
        "plain epoch, s | peak memory, MiB |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in NETWORKS:
        if args.only not in name:
            continue
        suffix = "" if args.technique == "quantization" else f"_{args.technique}"
        steps, batch = size_of_epoch(name, args.technique)
        size = {"steps": steps, "batch": batch}
        jit = args.jit_compile.split(",") if args.jit_compile else []
        options = {**size, "jit_compile": jit} if jit else size
        found = _child(
            function=f"compare{suffix}", name=name, rounds=args.rounds, **options
        )
        memory = ""
        if not (args.skip_memory or jit):
            both = [
                _child(function="peak", name=name, which=which, **size)
                for which in ("plain", args.technique)
            ]
            memory = " against ".join(f"{b.get('mib', 0):.0f}" for b in both[::-1])
        what = "ours / Keras 3" + (f", jit_compile: {' and '.join(jit)}" if jit else "")
        print(_line(name, what, found, memory), flush=True)
        if not (args.skip_tfmot or jit):
            found = _child(
                function=f"compare{suffix}_tfmot",
                name=name,
                rounds=args.rounds,
                **size,
            )
            print(_line(name, "TFMOT / tf_keras", found), flush=True)


if __name__ == "__main__":
    main()
