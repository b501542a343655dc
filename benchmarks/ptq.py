"""Prints the accuracy of post-training quantization, improvement by improvement.

ResNet-8 on CIFAR-10 (10,000 training and 2,000 test images of `../shared/data`) and
DS-CNN on the spoken digits of the package (two speakers held out). Float models are
trained once and kept in `--folder`; those of `cifar_accuracy.py` have the same names.
All figures of integers are of the `.tflite` files: accuracy, and how often they answer
as the float model does, which tells more of rounding. Calibration is on 512 training
examples without labels. Figures are kept in `--folder` too, so a run that was stopped
goes on; delete its `ptq_*.json` to measure again.

Usage:
    python benchmarks/ptq.py --seeds=3
    python benchmarks/ptq.py --only=resnet8 --steps=2000
"""

import argparse
import json
import pathlib
import statistics
import time

import keras
import numpy as np
from cifar_accuracy import augmented, fitted, load
from training_cost import resnet8

import tfcompress as tfc
from tfcompress import demo
from tfcompress.deploy.runtime import TFLiteRunner

EXAMPLES = 512

_LEAST_ERROR = tfc.QuantizationConfig(weight_bits=4, weights="learned_step")
_ONE_SCALE = tfc.QuantizationConfig(weight_bits=4, per_channel=False)
_PLAIN = {"correct_bias": False}
_BIAS = {"correct_bias": True}
_ADAROUND = {"rounding": "adaround"}

# Name -> (equalized first, config, settings of `quantize_post_training`).
VARIANTS = {
    "int8: calibration alone": (False, "int8", _PLAIN),
    "int8: percentile": (False, tfc.QuantizationConfig(ranges="percentile"), _PLAIN),
    "int8: MSE": (False, tfc.QuantizationConfig(ranges="mse"), _PLAIN),
    "int8: KL": (False, tfc.QuantizationConfig(ranges="kl"), _PLAIN),
    "int8: bias correction": (False, "int8", _BIAS),
    "int8 per tensor: calibration alone": (False, "int8_per_tensor", _PLAIN),
    "int8 per tensor: equalization": (True, "int8_per_tensor", _PLAIN),
    "int8 per tensor: equalization, bias": (True, "int8_per_tensor", _BIAS),
    "4 bits: calibration alone": (False, "int4_weights", _PLAIN),
    "4 bits: bias correction": (False, "int4_weights", _BIAS),
    "4 bits: steps of least error": (False, _LEAST_ERROR, _PLAIN),
    "4 bits: steps of least error, bias": (False, _LEAST_ERROR, _BIAS),
    "4 bits: AdaRound": (False, "int4_weights", _ADAROUND | _PLAIN),
    "4 bits: AdaRound, bias": (False, "int4_weights", _ADAROUND | _BIAS),
    "4 bits: steps of least error, AdaRound": (False, _LEAST_ERROR, _ADAROUND | _PLAIN),
    "4 bits per tensor: calibration alone": (False, _ONE_SCALE, _PLAIN),
    "4 bits per tensor: equalization": (True, _ONE_SCALE, _PLAIN),
    "4 bits per tensor: equalization, bias": (True, _ONE_SCALE, _BIAS),
    "4 bits per tensor: equalization, AdaRound": (True, _ONE_SCALE, _ADAROUND | _PLAIN),
}


def _resnet8(seed, folder):
    """Model, calibration examples, test examples and their labels."""
    (x, y), test = load("cifar10_train_10k.npz"), load("cifar10_test_2k.npz")
    path = folder / f"float_{seed}.keras"
    if not path.exists():
        keras.utils.set_random_seed(seed)
        train = augmented(x, y, seed)
        fitted(resnet8(keras.layers, keras), train, 25, 2e-3).save(path)
    return keras.models.load_model(path, compile=False), _some(x, seed), *test


def _ds_cnn(seed, folder):
    train, test = tfc.datasets.spoken_digits()
    path = folder / f"ds_cnn_{seed}.keras"
    if not path.exists():
        keras.utils.set_random_seed(seed)
        demo.train_float(train, demo.Settings(seed=seed)).save(path)
    return keras.models.load_model(path, compile=False), _some(train.x, seed), *test


NETWORKS = {"resnet8": _resnet8, "ds_cnn": _ds_cnn}


def _some(x, seed):
    return x[np.random.default_rng(seed).permutation(len(x))[:EXAMPLES]]


def _run(network, seed, folder, steps):
    """Dict from variant to accuracy and agreement with the float model, in percent."""
    model, examples, x, y = NETWORKS[network](seed, folder)
    predicted = model.predict(x, verbose=0, batch_size=250).argmax(1)
    found = {"float": (float(100 * np.mean(predicted == y)), 100.0)}
    equalized = tfc.equalize(model)
    path = folder / f"{network}_{seed}.tflite"
    kept = folder / f"ptq_{network}_{seed}_{steps}.json"
    found |= json.loads(kept.read_text()) if kept.exists() else {}
    for name, (equalizes, config, settings) in VARIANTS.items():
        if name in found:
            continue
        start = time.perf_counter()
        quantized = tfc.quantize_post_training(
            equalized if equalizes else model,
            examples,
            config,
            steps=steps,
            seed=seed,
            **settings,
        )
        seconds = time.perf_counter() - start
        tfc.export_tflite(quantized, path, kind="int8")
        answers = TFLiteRunner(path).predict([x])[0].argmax(1)
        found[name] = tuple(
            float(100 * np.mean(answers == wanted)) for wanted in (y, predicted)
        )
        kept.write_text(json.dumps(found))
        accuracy, agreement = found[name]
        print(
            f"{network} seed {seed} {name}: {accuracy:.2f}, as float {agreement:.2f} "
            f"({seconds:.0f} s)",
            flush=True,
        )
    return found


def main():
    """Prints a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--only", choices=tuple(NETWORKS))
    parser.add_argument("--folder", default="cifar_models")
    args = parser.parse_args()
    folder = pathlib.Path(args.folder)
    folder.mkdir(exist_ok=True)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    for network in NETWORKS if args.only is None else (args.only,):
        runs = [_run(network, seed, folder, args.steps) for seed in seeds]
        print(
            f"\n| {network} | accuracy, mean (lowest to highest) | against float, "
            "points | same answer as float |"
        )
        print("|---|---|---|---|")
        for name in runs[0]:
            values = [r[name][0] for r in runs]
            changes = [r[name][0] - r["float"][0] for r in runs]
            same = [r[name][1] for r in runs]
            print(
                f"| {name} | {_spread(values, '.2f')} | {_spread(changes, '+.2f')} | "
                f"{_spread(same, '.1f')} |"
            )


def _spread(values, form):
    mean, low, high = statistics.mean(values), min(values), max(values)
    ends = f" ({low:{form}} to {high:{form}})" if len(values) > 1 else ""
    return f"{mean:{form}}{ends}"


if __name__ == "__main__":
    main()
