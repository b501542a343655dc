"""Prints what each way to deploy a model costs and whether it computes the same.

    python benchmarks/deploy.py
    python benchmarks/deploy.py --only=ds_cnn --examples=64

Four networks are trained briefly on real data (spoken digits of this package; CIFAR-10
of `../shared/data`, scaled up for the MobileNetV2), exported as they are and as int8
after a pass of `quantize_aware`, and run by each runtime on held-out examples.
Agreement is the share of examples whose class is that of the Keras model (of the
rounded one for int8); how far apart that model holds the others stands below the table.
Of OpenCV it is the largest difference from ONNX Runtime. Latency is of one inference on
one thread of this machine, the median of the medians of three rounds in which the
runtimes take turns; TFLite Micro computes with portable kernels, so that its time says
nothing of a device. Vela's column is its own estimate for an Ethos-U55 with 128
multipliers, Shared_Sram; the Edge TPU's is the number of operations that
`check_edgetpu` expects on it. "-" is what does not run, with the reason below the
table.
"""

import argparse
import pathlib
import platform
import statistics
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from tfcompress.deploy.ethosu import EthosUCompilerError
from tfcompress.deploy.micro import run_micro
from tfcompress.deploy.onnx_runtime import ONNXRunner
from tfcompress.deploy.runtime import TFLiteRunner, latency_ms, quantize

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
ROUNDS = 3
COLUMNS = (
    "| | bytes, TFLite | LiteRT | TFLite Micro | arena, bytes | bytes, ONNX | "
    "ONNX Runtime | OpenCV | Ethos-U55 (Vela) | Edge TPU |"
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=NETWORKS)
    parser.add_argument("--examples", type=int, default=200, help="compared (200)")
    args = parser.parse_args()
    print(
        f"{args.examples} held-out examples; TensorFlow {tf.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()}, one thread\n"
    )
    print(COLUMNS)
    print("|" + "---|" * (COLUMNS.count("|") - 1))
    reasons = []
    for name in [args.only] if args.only else NETWORKS:
        keras.utils.set_random_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            reasons += _network(name, pathlib.Path(folder), args.examples)
    print("", *reasons, sep="\n")


def _network(name, folder, count):
    build, data = NETWORKS[name]
    (x, y), (x_test, y_test) = data()
    model = build()
    _fit(model, x, y, epochs=4)
    qat = tfc.quantize_aware(model, calibration_data=x[:200])
    _fit(qat, x, y, epochs=1, rate=1e-4)
    reasons = []
    for kind, keras_model in (("float32", model), ("int8", qat)):
        row = _Row(f"{name}, {kind}", keras_model, kind, folder, x_test[:count])
        accuracy = np.mean(row.expected == y_test[:count])
        print(f"| {row.name} ({accuracy:.0%} right) | {row.cells()} |", flush=True)
        reasons += row.reasons
    return [*reasons, _dynamic_range(name, model, folder, x_test[:count])]


def _dynamic_range(name, model, folder, x):
    """What float activations and 8-bit weights cost, in one line: LiteRT has these."""
    path, plain = folder / "dynamic_range.tflite", folder / "float32.tflite"
    size = tfc.export_tflite(model, path, kind="dynamic_range").bytes
    rounds = [
        (latency_ms(path, seconds=0), latency_ms(plain, seconds=0))
        for _ in range(3 * ROUNDS)
    ]
    ratio = statistics.median(b / a for a, b in rounds)
    expected, found = model.predict(x, verbose=0), TFLiteRunner(path).predict([x])[0]
    same = np.mean(expected.argmax(1) == found.argmax(1))
    return (
        f"{name}, dynamic range on LiteRT: {size:,} bytes, {ratio:.2f}x as fast as "
        f"float32 (median of {len(rounds)} ratios), {same:.1%}"
    )


def _fit(model, x, y, epochs, rate=2e-3):
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=64, epochs=epochs, verbose=0)


class _Row:
    """One model in one kind, on every target."""

    def __init__(self, name, model, kind, folder, x):
        self.name, self.x, self.kind, self.reasons = name, x, kind, []
        self.scores = model.predict(x, verbose=0)
        self.expected = self.scores.argmax(1)
        self.tflite = folder / f"{kind}.tflite"
        self.onnx = folder / f"{kind}.onnx"
        self.tflite_bytes = tfc.export_tflite(model, self.tflite, kind=kind).bytes
        self.onnx_bytes = tfc.export_onnx(model, self.onnx).bytes

    def cells(self):
        litert, onnx = TFLiteRunner(self.tflite), ONNXRunner(self.onnx)
        # OpenCV and TFLite Micro run in processes of their own.
        opencv = self._tried("OpenCV", lambda: tfc.check_opencv(self.onnx, [self.x]))
        micro = self._tried("TFLite Micro", lambda: self._micro(litert))
        times = {"litert": [], "onnx": [], "opencv": [], "micro": []}
        for _ in range(ROUNDS):
            times["litert"].append(latency_ms(self.tflite, seconds=0))
            times["onnx"].append(onnx.latency_ms(seconds=0))
            if opencv:
                run = tfc.check_opencv(self.onnx, [self.x[:1]], repeats=100)
                times["opencv"].append(run.milliseconds)
            if micro:
                times["micro"].append(run_micro(self.tflite, repeats=20).milliseconds)
        milliseconds = {
            k: statistics.median(v) if v else None for k, v in times.items()
        }
        cells = [
            f"{self.tflite_bytes:,}",
            self._cell("LiteRT", milliseconds["litert"], litert.predict([self.x])[0]),
            self._cell(
                "TFLite Micro", milliseconds["micro"], micro and micro.outputs[0]
            ),
            f"{micro.arena_bytes:,}" if micro else "-",
            f"{self.onnx_bytes:,}",
            self._cell("ONNX Runtime", milliseconds["onnx"], onnx.predict([self.x])[0]),
            self._opencv(opencv, milliseconds["opencv"]),
            self._vela(),
            self._edgetpu(),
        ]
        return " | ".join(cells)

    def _tried(self, what, run):
        try:
            return run()
        except (ImportError, ValueError, EthosUCompilerError) as err:
            reason = " ".join(str(err).replace(str(self.tflite.parent), "").split())
            self.reasons.append(f"{self.name}, {what}: {reason[:300]}")
            return None

    def _micro(self, litert):
        values = quantize(self.x, litert.inputs[0])
        return run_micro(self.tflite, [values], timeout_sec=300)

    def _cell(self, runtime, milliseconds, outputs):
        if outputs is None:
            return "-"
        found = outputs.argmax(1)
        differ = np.flatnonzero(found != self.expected)
        if len(differ):
            rows = self.scores[differ]
            apart = rows.max(1) - rows[np.arange(len(rows)), found[differ]]
            self.reasons.append(
                f"{self.name}, {runtime}: {len(differ)} examples of another class; the "
                f"Keras model holds its own for {np.median(apart):.4f} more probable "
                f"(median; at most {apart.max():.4f})"
            )
        same = 1 - len(differ) / len(found)
        return f"{milliseconds:.3f} ms, {same:.1%}"

    def _opencv(self, check, milliseconds):
        if check is None:
            return "-"
        engine = check.engine.removeprefix("ENGINE_").lower()
        return (
            f"{milliseconds:.3f} ms, off by {check.largest_difference:.1g} ({engine})"
        )

    def _vela(self):
        def compile_():
            return tfc.compile_ethosu(
                self.tflite, accelerator="ethos-u55-128", memory_mode="Shared_Sram"
            )

        found = self._tried("Vela", compile_)
        if found is None:
            return "-"
        return f"{found.figures.inference_ms:.3f} ms, {found.npu_share:.0%} on it"

    def _edgetpu(self):
        check = tfc.check_edgetpu(self.tflite)
        return f"{check.mapped_count} of {len(check.operations)}"


def _transformer():
    """Two post-norm encoder blocks over the frames of a spoken digit."""
    inputs = keras.Input((49, 10), name="mfcc")
    x = layers.Dense(64)(inputs)
    for _ in range(2):
        x = layers.Add()([x, layers.MultiHeadAttention(4, 16)(x, x)])
        x = layers.LayerNormalization()(x)
        y = layers.Dense(64)(layers.Dense(128, activation="relu")(x))
        x = layers.LayerNormalization()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x))


def _speech(frames_only=False):
    train, test = tfc.datasets.spoken_digits()
    shuffled = np.random.default_rng(0).permutation(len(test.x))
    pairs = [train, (test.x[shuffled], test.y[shuffled])]
    return [(x[..., 0] if frames_only else x, y) for x, y in pairs]


def _cifar(size, examples):
    found = []
    for part in ("train_10k", "test_2k"):
        arrays = np.load(SHARED / f"cifar10_{part}.npz")
        x, y = arrays["x"][:examples], arrays["y"][:examples].astype("int32")
        x = x.astype("float32") / 127.5 - 1.0
        x = x if size == 32 else tf.image.resize(x, (size, size)).numpy()
        found.append((x, y))
    return found


def _mobilenet():
    model = keras.applications.MobileNetV2(
        (96, 96, 3), alpha=0.35, weights=None, classes=10
    )
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            # 0.999 takes thousands of steps to see what a hundred have learned.
            layer.momentum = 0.9
    return model


# Name -> (function that makes the network, function that gives its data).
NETWORKS = {
    "ds_cnn": (lambda: tfc.zoo.ds_cnn(classes=10), _speech),
    "resnet8": (tfc.zoo.resnet8, lambda: _cifar(32, 10_000)),
    "mobilenetv2_96": (_mobilenet, lambda: _cifar(96, 10_000)),
    "transformer": (_transformer, lambda: _speech(frames_only=True)),
}


if __name__ == "__main__":
    begin = time.perf_counter()
    main()
    print(f"\n{time.perf_counter() - begin:.0f} s")
