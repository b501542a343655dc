"""Prints how much faster a model runs with channels removed, factors, and integers.

    python benchmarks/speed.py --rounds=30
    python benchmarks/speed.py --only=mobilenetv2

Each network is exported as it is, with 30, 50 and 70 % of its channels removed, and
factorized to half of its parameters, as float32 and as int8 (calibrated on noise:
weights are random, for time does not depend on them). All files of a network are
loaded in one process and run in turn, one inference each a round, on one thread of
LiteRT; the table shows the median over rounds of the ratio to the float32 original
within the round, with the 10th and 90th percentile.
"""

import argparse
import pathlib
import platform
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf

import tfcompress as tfc
from tfcompress.deploy.runtime import TFLiteRunner

NETWORKS = {
    "mobilenetv2": lambda: keras.applications.MobileNetV2(weights=None),
    "resnet50": lambda: keras.applications.ResNet50(weights=None),
    "resnet8": tfc.zoo.resnet8,
}
REMOVED = (0.0, 0.3, 0.5, 0.7)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", choices=NETWORKS)
    args = parser.parse_args()
    print(
        f"{args.rounds} rounds; TensorFlow {tf.__version__}, "
        f"Keras {keras.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}, one thread\n"
    )
    print(
        "| | parameters | MACs | float32, ms | faster | int8, ms | faster | "
        "int8 against its float32 |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in [args.only] if args.only else NETWORKS:
        keras.utils.set_random_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            _print_network(name, pathlib.Path(folder), args.rounds)


def _print_network(name, folder, rounds):
    found, runners = {}, {}
    for variant, model in _variants(NETWORKS[name]()):
        noise = np.random.default_rng(0).normal(size=(8, *model.input_shape[1:]))
        found[variant] = tfc.measure(model)
        for kind in ("float32", "int8"):
            path = folder / f"{variant}_{kind}.tflite"
            data = noise.astype("float32") if kind == "int8" else None
            tfc.export_tflite(model, path, kind=kind, calibration_data=data)
            runners[variant, kind] = TFLiteRunner(path)
    times = _times(runners, rounds)
    base = times["original", "float32"]
    for variant, measured in found.items():
        floats, integers = times[variant, "float32"], times[variant, "int8"]
        print(
            f"| {name}, {variant} | {measured.parameters:,} | {measured.macs:,} | "
            f"{np.median(floats):.2f} | {_ratio(base / floats)} | "
            f"{np.median(integers):.2f} | {_ratio(base / integers)} | "
            f"{_ratio(floats / integers)} |",
            flush=True,
        )


def _variants(model):
    """Pairs of a name and a model."""
    for share in REMOVED:
        if share:
            yield f"-{share:.0%} channels", tfc.prune_channels(model, share, round_to=8)
        else:
            yield "original", model
    yield "factorized", tfc.factorize(model, parameters=0.5)


def _times(runners, rounds):
    """Milliseconds of each file in each round."""
    inputs = {
        key: [np.zeros((1, *d["shape"][1:]), "float32") for d in runner.inputs]
        for key, runner in runners.items()
    }
    times = {key: [] for key in runners}
    for round_ in range(rounds + 2):
        for key, runner in runners.items():
            start = time.perf_counter()
            runner.predict(inputs[key])
            if round_ >= 2:  # The first two warm up.
                times[key].append(1000 * (time.perf_counter() - start))
    return {key: np.array(found) for key, found in times.items()}


def _ratio(ratios):
    low, high = np.percentile(ratios, [10, 90])
    return f"{np.median(ratios):.2f}x ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
