"""Prints what a step of distillation costs, against its parts.

The parts are a training step of the student alone and an inference of the teacher
alone, each compiled into one function as `fit` and `predict` do. One process, the
measurements alternating, medians over rounds of the ratio within a round.

Usage:
    python benchmarks/distillation_cost.py --rounds=9
"""

import argparse
import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import tfcompress as tfc

d = tfc.distillation

# Name -> terms; layers are those of `resnet`.
TERMS = {
    "soft labels": lambda: None,
    "decoupled soft labels": lambda: [d.DecoupledSoftLabels()],
    "soft labels, hints": lambda: [d.SoftLabels(), d.Hint("block_2", "block_2")],
    "soft labels, attention": lambda: [
        d.SoftLabels(),
        d.AttentionTransfer("block_1", "block_1"),
    ],
    "soft labels, distances": lambda: [
        d.SoftLabels(),
        d.Relational("pool", "pool", angle=0),
    ],
    "soft labels, contrast": lambda: [d.SoftLabels(), d.Contrastive("pool", "pool")],
}


def resnet(width, name):
    """A ResNet-8 (Banbury et al., 2021) of any width on 32x32 images."""
    inputs = keras.Input((32, 32, 3))

    def conv(x, filters, size, strides=1):
        x = layers.Conv2D(filters, size, strides=strides, padding="same")(x)
        return layers.BatchNormalization()(x)

    x = layers.Activation("relu")(conv(inputs, width, 3))
    for number, strides in enumerate((1, 2, 2)):
        filters = width * 2**number
        y = layers.Activation("relu")(conv(x, filters, 3, strides))
        y = conv(y, filters, 3)
        if strides > 1:
            x = layers.Conv2D(filters, 1, strides=strides, padding="same")(x)
        x = layers.Activation("relu", name=f"block_{number}")(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(10, activation="softmax")(x)
    return keras.Model(inputs, outputs, name=name)


def compiled(model):
    """Compiles a student, alone or taught."""
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    return model


def seconds(run):
    """Wall and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(terms, args):
    """Ratios of a round of each: `(wall, cpu)` pairs."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(args.steps * args.batch, 32, 32, 3)).astype("float32")
    y = rng.integers(0, 10, len(x))
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(args.batch).cache()
    data = tfc.datasets.untuned(data)
    teacher = resnet(args.teacher_width, "teacher")
    alone = compiled(resnet(16, "student"))
    pupil = compiled(tfc.distill(resnet(16, "student"), teacher, terms=terms()))
    infer = tf.function(lambda batch: teacher(batch, training=False))
    batches = [tf.constant(batch.numpy()) for batch, _ in data]

    def ask():
        # As the student's step: one call a batch, its answer waited for.
        for batch in batches:
            infer(batch)[0, 0].numpy()

    runs = {
        "alone": lambda: alone.fit(data, verbose=0, shuffle=False),
        "teacher": ask,
        "taught": lambda: pupil.fit(data, verbose=0, shuffle=False),
    }
    for run in runs.values():
        run()
        run()
    ratios = []
    for number in range(args.rounds):
        order = list(runs) if number % 2 else list(runs)[::-1]
        took = {name: seconds(runs[name]) for name in order}
        parts = [a + b for a, b in zip(took["alone"], took["teacher"], strict=True)]
        ratios.append([t / p for t, p in zip(took["taught"], parts, strict=True)])
    return ratios, took


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--teacher_width", type=int, default=32)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    print(
        "| terms | wall, median (range), against student step + teacher inference | "
        "CPU | student alone, ms a step | teacher, ms |"
    )
    print("|---|---|---|---|---|")
    for name, terms in TERMS.items():
        if args.only not in name:
            continue
        ratios, took = measure(terms, args)
        wall, cpu = zip(*ratios, strict=True)
        alone, teacher = (
            1000 * took[part][0] / args.steps for part in ("alone", "teacher")
        )
        print(
            f"| {name} | {statistics.median(wall):.2f}x ({min(wall):.2f} to "
            f"{max(wall):.2f}) | {statistics.median(cpu):.2f}x | {alone:.1f} | "
            f"{teacher:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
