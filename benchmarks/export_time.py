"""Prints how long calibration and export take, beside the TFLite converter alone.

MobileNetV2 at 224 px with random weights, 100 random images; medians over repeats. The
converter is given the float Keras model (`TFLiteConverter.from_keras_model`), and the
two take turns.

Usage:
    python benchmarks/export_time.py --repeats=5
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf

import tfcompress as tfc


def timed(function, *args, **kwargs):
    """Seconds of a call, and what it returned."""
    start = time.perf_counter()
    result = function(*args, **kwargs)
    return time.perf_counter() - start, result


def main():
    """Prints the two figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int, default=224)
    args = parser.parse_args()
    model = keras.applications.MobileNetV2(
        weights=None, input_shape=(args.size, args.size, 3)
    )
    shape = (100, args.size, args.size, 3)
    images = np.random.default_rng(0).uniform(-1, 1, shape).astype("float32")

    def converted():
        with contextlib.redirect_stdout(io.StringIO()):
            return tf.lite.TFLiteConverter.from_keras_model(model).convert()

    found = {name: [] for name in ("prepared", "calibrated", "exported", "converter")}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.repeats):
            without, _ = timed(tfc.quantize_aware, model)
            seconds, qat = timed(tfc.quantize_aware, model, calibration_data=images)
            found["prepared"].append(without)
            found["calibrated"].append(seconds - without)
            path = f"{folder}/m.tflite"
            found["exported"].append(
                timed(tfc.export_tflite, qat, path, kind="int8")[0]
            )
            found["converter"].append(timed(converted)[0])
    ratios = [
        ours / own
        for ours, own in zip(found["exported"], found["converter"], strict=True)
    ]
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    print(f"quantize_aware without data: {medians['prepared']:.1f} s")
    print(f"calibration on 100 images: {medians['calibrated']:.1f} s")
    print(f"the converter alone, from the float model: {medians['converter']:.1f} s")
    print(
        f"export_tflite, kind='int8': {medians['exported']:.1f} s, "
        f"{statistics.median(ratios):.2f}x of it ({min(ratios):.2f} to "
        f"{max(ratios):.2f}, {args.repeats} repeats)"
    )


if __name__ == "__main__":
    main()
