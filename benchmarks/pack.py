"""Prints what `tfc.pack` makes of files, beside gzip, xz and the weights' entropy.

The networks are those of `training_cost.py`. Their kernels are drawn from normal
distributions, which trained ones come near to, so that nothing has to be trained; 80 %
of each are pruned by magnitude.

Usage:
    python benchmarks/pack.py
    python benchmarks/pack.py --only=resnet8
"""

import argparse
import gzip
import lzma
import pathlib
import tempfile
import time

import keras
import numpy as np
from keras import layers
from training_cost import mobilenetv2, resnet8

import tfcompress as tfc

_SPARSITY = 0.8
_CLUSTERS = 16


def _random(make):
    model = make(layers, keras)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            kernel = layer.kernel.numpy()
            layer.kernel.assign(rng.normal(0, kernel.std(), kernel.shape))
    return model


def _prune(model):
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            kernel = layer.kernel.numpy()
            least = np.quantile(np.abs(kernel), _SPARSITY)
            layer.kernel.assign(np.where(np.abs(kernel) < least, 0, kernel))


def _files(make, folder):
    """Pairs of what a file is and its path."""
    model = _random(make)
    x = np.random.default_rng(1).normal(size=(8, *model.inputs[0].shape[1:]))

    def int8(model, name):
        path = folder / f"{len(list(folder.iterdir()))}.tflite"
        qat = tfc.quantize_aware(model, calibration_data=x)
        tfc.export_tflite(qat, path, kind="int8")
        return name, path

    yield int8(model, "int8")
    yield int8(tfc.cluster(model, _CLUSTERS), f"int8, {_CLUSTERS} clusters")
    _prune(model)
    yield int8(model, "int8, 80 % zeros")
    shared = tfc.cluster(model, _CLUSTERS)
    yield int8(shared, f"int8, 80 % zeros, {_CLUSTERS} clusters")
    path = folder / "plain.keras"
    tfc.strip(shared).save(path)
    yield f".keras, 80 % zeros, {_CLUSTERS} clusters", path


def _row(network, name, path, folder):
    content = path.read_bytes()
    began = time.perf_counter()
    packed = tfc.pack(path, folder / "packed")
    took = time.perf_counter() - began
    tfc.unpack(folder / "packed", folder / f"back{path.suffix}")
    assert (folder / f"back{path.suffix}").read_bytes() == content
    zipped = len(gzip.compress(content, 9))
    # Of a Keras model `measure` counts the weights alone, of a file what it stores.
    measured = path if path.suffix == ".tflite" else keras.models.load_model(path)
    least = tfc.measure(measured).entropy_bytes
    return (
        f"| {network} | {name} | {len(content):,} | {zipped:,} | "
        f"{len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)):,} | "
        f"{packed.bytes:,} | {zipped / packed.bytes:.2f}x | {least:,} | {took:.1f} |"
    )


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    print(
        "| network | file | bytes | gzip -9 | xz -9e | pack | smaller than gzip | "
        "entropy of kernels | pack, s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for make in (resnet8, mobilenetv2):
        if args.only not in make.__name__:
            continue
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            for name, path in _files(make, folder):
                print(_row(make.__name__, name, path, folder), flush=True)


if __name__ == "__main__":
    main()
