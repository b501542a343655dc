"""Prints how long calibration takes, and what export adds to the converter's own time.

MobileNetV2 at 224 px with random weights, 100 random images; medians over repeats.

Usage:
    python benchmarks/export_time.py --repeats=3
"""

import argparse
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

    inside = []
    convert = tf.lite.TFLiteConverter.from_saved_model.__func__

    def watched(cls, *positional, **named):
        converter = convert(cls, *positional, **named)
        original = converter.convert

        def run():
            seconds, content = timed(original)
            inside.append(seconds)
            return content

        converter.convert = run
        return converter

    tf.lite.TFLiteConverter.from_saved_model = classmethod(watched)
    prepared, calibrated, exported = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.repeats):
            without, _ = timed(tfc.quantize_aware, model)
            seconds, qat = timed(tfc.quantize_aware, model, calibration_data=images)
            prepared.append(without)
            calibrated.append(seconds - without)
            seconds, _ = timed(
                tfc.export_tflite, qat, f"{folder}/m.tflite", kind="int8"
            )
            exported.append(seconds)
    added = [total - own for total, own in zip(exported, inside, strict=True)]
    print(f"quantize_aware without data: {statistics.median(prepared):.1f} s")
    print(f"calibration on 100 images: {statistics.median(calibrated):.1f} s")
    print(f"converter.convert(): {statistics.median(inside):.1f} s")
    print(
        f"export_tflite around it: {statistics.median(added):.1f} s "
        f"(SavedModel, export graph, reading back), "
        f"{100 * statistics.median(added) / statistics.median(inside):.0f} %"
    )


if __name__ == "__main__":
    main()
