"""Prints which architectures reach an integer-only file, ours beside TFMOT's.

Each architecture goes the whole way: `quantize_aware`, a training step, save, load, a
training step, `export_tflite(kind="int8")`. TFMOT runs in processes of its own on
tf_keras, as importing it changes `tf.keras`.

Usage:
    python benchmarks/coverage.py                      # everything: hours on two cores
    python benchmarks/coverage.py --only='MobileNet'   # a regular expression
    python benchmarks/coverage.py --small              # those of tests/architectures.py
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

TESTS = pathlib.Path(__file__).resolve().parents[1] / "tests"
STAGES = ("build", "quantize", "train", "save and load", "train on", "export")


def names():
    """The constructors of keras.applications, by name."""
    import keras

    found = [
        name
        for name, value in vars(keras.applications).items()
        if name[0].isupper() and callable(value)
    ]
    return sorted(found)


def build(applications, name):
    """An application with random weights at the smallest input that it allows."""
    for size in (32, 71, 75, 96, 224):
        try:
            return getattr(applications, name)(
                weights=None, input_shape=(size, size, 3), classes=10
            ), size
        except ValueError:
            continue
    raise ValueError(f"{name} takes no input size that was tried")


def ours(name):
    """Takes an application through this library; returns what it reached."""
    import keras
    import numpy as np

    import tfcompress as tfc

    record = {"name": name, "stage": "build", "started": time.time()}
    rng = np.random.default_rng(0)
    try:
        model, size = build(keras.applications, name)
        x = rng.uniform(0, 255, (8, size, size, 3)).astype("float32")
        y = np.arange(8)
        record |= {"size": size, "parameters": model.count_params()}
        record["stage"] = "quantize"
        # The weights are random: ranges come from the first training batch.
        qat = tfc.quantize_aware(model)
        with tempfile.TemporaryDirectory() as folder:
            record["stage"] = "train"
            qat.compile("adam", "sparse_categorical_crossentropy")
            loss = qat.fit(x, y, verbose=0).history["loss"][0]
            record["stage"] = "save and load"
            qat.save(f"{folder}/m.keras")
            qat = keras.models.load_model(f"{folder}/m.keras")
            record["stage"] = "train on"
            qat.fit(x, y, verbose=0)
            record["stage"] = "export"
            result = tfc.export_tflite(qat, f"{folder}/m.tflite", kind="int8")
        record |= {
            "stage": "done",
            "loss": loss,
            "integer": result.fully_integer,
            "float_operators": len(result.float_operators),
            "bytes": result.bytes,
        }
    except Exception as err:
        record["error"] = _short(err)
    record["seconds"] = round(time.time() - record.pop("started"), 1)
    return record


def tfmot(name):
    """Takes a tf_keras application through TFMOT; returns what it reached."""
    import numpy as np
    import tensorflow as tf
    import tensorflow_model_optimization as mot
    import tf_keras

    record = {"name": name, "stage": "build", "started": time.time()}
    rng = np.random.default_rng(0)
    try:
        if not hasattr(tf_keras.applications, name):
            raise ValueError("not in tf_keras.applications")
        model, size = build(tf_keras.applications, name)
        x = rng.uniform(0, 255, (8, size, size, 3)).astype("float32")
        y = np.arange(8)
        record["stage"] = "quantize"
        qat = mot.quantization.keras.quantize_model(model)
        record["stage"] = "train"
        qat.compile("adam", "sparse_categorical_crossentropy")
        qat.fit(x, y, verbose=0)
        with tempfile.TemporaryDirectory() as folder:
            record["stage"] = "save and load"
            qat.save(f"{folder}/m.keras")
            with mot.quantization.keras.quantize_scope():
                tf_keras.models.load_model(f"{folder}/m.keras")
            record["keras_file"] = True
        record["stage"] = "export"
        record |= _tfmot_export(tf, qat)
    except Exception as err:
        record["error"] = _short(err)
        if record["stage"] == "save and load":
            record["keras_file"] = False
            try:
                record |= _tfmot_export(tf, qat)
            except Exception as later:
                record["export_error"] = _short(later)
    record["seconds"] = round(time.time() - record.pop("started"), 1)
    return record


def _tfmot_export(tf, qat):
    from tfcompress.deploy.tflite_file import read_tflite

    converter = tf.lite.TFLiteConverter.from_keras_model(qat)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = tf.int8
    converter.inference_output_type = tf.int8
    content = converter.convert()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "m.tflite"
        path.write_bytes(content)
        floats = read_tflite(path).float_operations()
    return {
        "stage": "done",
        "integer": not floats,
        "float_operators": len(floats),
        "bytes": len(content),
    }


def _short(err):
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return f"{type(err).__name__}: {' '.join(lines)[:160]}"


def small():
    """The models of tests/architectures.py, ours only."""
    sys.path.insert(0, str(TESTS))
    import keras
    import numpy as np
    from architectures import ARCHITECTURES, examples

    import tfcompress as tfc

    for name, make in ARCHITECTURES.items():
        model = make()
        x = keras.tree.map_structure(np.abs, examples(model))
        try:
            qat = tfc.quantize_aware(model, calibration_data=iter([x]))
            with tempfile.TemporaryDirectory() as folder:
                result = tfc.export_tflite(qat, f"{folder}/m.tflite", kind="int8")
            print(f"{name:36s} integer {result.fully_integer}", flush=True)
        except Exception as err:
            print(f"{name:36s} {_short(err)}", flush=True)


def _child(which, name, seconds):
    """Runs one architecture in a process of its own; a crash is a result too."""
    command = [sys.executable, __file__, f"--child={which}", f"--only={name}"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return {"name": name, "stage": "timeout", "seconds": seconds}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        return {"name": name, "stage": "crash", "error": f"exit {done.returncode}"}
    return json.loads(lines[-1])


def _row(name, our, their):
    def reached(record):
        if record is None:
            return "not run"
        if record["stage"] == "done":
            if record["integer"]:
                return "integers only"
            return f"{record['float_operators']} float operations"
        return f"{record['stage']}: {record.get('error', '')[:60]}"

    file = "" if their is None else "yes" if their.get("keras_file") else "no"
    return f"| {name} | {reached(our)} | {reached(their)} | {file} |"


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--child", default="")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--without_tfmot", action="store_true")
    parser.add_argument("--seconds", type=int, default=1800)
    parser.add_argument("--out", default="coverage.jsonl")
    args = parser.parse_args()
    if args.child:
        print(json.dumps({"ours": ours, "tfmot": tfmot}[args.child](args.only)))
        return
    if args.small:
        small()
        return
    print("| architecture | tfcompress | TFMOT 0.8.1 on tf_keras | TFMOT `.keras` |")
    print("|---|---|---|---|")
    for name in names():
        if not re.search(args.only, name):
            continue
        records = [_child("ours", name, args.seconds), None]
        if not args.without_tfmot:
            records[1] = _child("tfmot", name, args.seconds)
        with open(args.out, "a") as file:
            file.write(json.dumps({"ours": records[0], "tfmot": records[1]}) + "\n")
        print(_row(name, *records), flush=True)


if __name__ == "__main__":
    main()
