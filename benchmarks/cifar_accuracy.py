"""Prints the accuracy of ResNet-8 on CIFAR-10: float, int8, 4-bit weights.

MLPerf Tiny's network on the 10,000 training and 2,000 test images of `../shared/data`.
For each seed: train in float, then fine-tune with quantization for a few epochs; plain
calibration beside it. Integer accuracies are of the `.tflite` files.

Usage:
    python benchmarks/cifar_accuracy.py --seeds=3
"""

import argparse
import pathlib
import statistics

import keras
import numpy as np
import tensorflow as tf
from training_cost import resnet8

import tfcompress as tfc
from tfcompress.deploy.runtime import TFLiteRunner

DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
BATCH = 64

# Name -> (config, epochs, learning rate); 0 epochs is plain calibration.
VARIANTS = {
    "int8, calibration alone": ("int8", 0, 0.0),
    "int8, quantization-aware": ("int8", 4, 1e-4),
    "4-bit weights, calibration alone": ("int4_weights", 0, 0.0),
    "4-bit weights, quantization-aware": ("int4_weights", 8, 5e-4),
    "4-bit weights, learned step": (
        tfc.QuantizationConfig(weight_bits=4, weights="learned_step"),
        8,
        5e-4,
    ),
}


def load(name):
    """Images scaled to -1..1 and labels."""
    arrays = np.load(DATA / name)
    return arrays["x"].astype("float32") / 127.5 - 1.0, arrays["y"].astype("int32")


def augmented(x, y, seed):
    """Batches with random shifts of up to 4 pixels and flips."""

    def change(images, labels):
        padded = tf.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), constant_values=-1.0)
        moved = tf.image.random_crop(padded, (tf.shape(images)[0], 32, 32, 3))
        return tf.image.random_flip_left_right(moved), labels

    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=seed)
    data = data.batch(BATCH, drop_remainder=True).map(change).prefetch(2)
    return tfc.datasets.untuned(data)


def fitted(model, train, epochs, rate, callbacks=()):
    """Trains with Adam and a cosine decay."""
    steps = epochs * train.cardinality().numpy()
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(
        keras.optimizers.Adam(schedule),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(train, epochs=epochs, verbose=0, callbacks=list(callbacks))
    return model


def file_accuracy(model, path, x, y):
    """Exports to int8 and runs the file."""
    tfc.export_tflite(model, path, kind="int8")
    return 100 * np.mean(TFLiteRunner(path).predict([x])[0].argmax(1) == y)


def run(seed, folder, epochs):
    """Accuracies of one seed in percent, by name; trained models are kept."""
    (x, y), (x_test, y_test) = (
        load("cifar10_train_10k.npz"),
        load("cifar10_test_2k.npz"),
    )
    keras.utils.set_random_seed(seed)
    train = augmented(x, y, seed)
    path = folder / f"float_{seed}.keras"
    if path.exists():
        model = keras.models.load_model(path)
    else:
        model = fitted(resnet8(keras.layers, keras), train, epochs, 2e-3)
        model.save(path)
    found = {
        "float": 100 * np.mean(model.predict(x_test, verbose=0).argmax(1) == y_test)
    }
    for name, (config, fine, rate) in VARIANTS.items():
        path = folder / f"{name.replace(', ', '_').replace(' ', '_')}_{seed}.keras"
        if path.exists():
            qat = keras.models.load_model(path)
        else:
            qat = tfc.quantize_aware(model, config, calibration_data=x[:256])
            if fine:
                fitted(qat, train, fine, rate)
            qat.save(path)
        found[name] = file_accuracy(qat, folder / "model.tflite", x_test, y_test)
        print(f"seed {seed} {name}: {found[name]:.2f}", flush=True)
    return found


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--folder", default="cifar_models")
    args = parser.parse_args()
    folder = pathlib.Path(args.folder)
    folder.mkdir(exist_ok=True)
    runs = [run(seed, folder, args.epochs) for seed in range(args.seeds)]
    print("| | accuracy, mean (lowest to highest) | against float, points |")
    print("|---|---|---|")
    for name in runs[0]:
        values = [r[name] for r in runs]
        changes = [r[name] - r["float"] for r in runs]
        print(
            f"| {name} | {statistics.mean(values):.2f} % ({min(values):.2f} to "
            f"{max(values):.2f}) | {statistics.mean(changes):+.2f} "
            f"({min(changes):+.2f} to {max(changes):+.2f}) |"
        )


if __name__ == "__main__":
    main()
