"""Prints what the parts of a quantization-aware training step cost.

Each row is a step from which a part was taken out (or, once, changed), against plain
`fit`, as `training_cost.py` measures it. None of these steps is one to train with: they
tell where the time goes.

Usage:
    python benchmarks/training_cost_parts.py --rounds=9
    python benchmarks/training_cost_parts.py --only=resnet8
"""

import argparse
import contextlib
from unittest import mock

import keras
import training_cost
from keras import layers

import tfcompress as tfc
from tfcompress.layers import FakeQuant, fake_quant
from tfcompress.layers.batch_norm import FusedBatchNormalization
from tfcompress.numerics import affine


def _pass_all(gradient, *_, **__):
    return gradient


def _first(values, condition, first, second):
    return first()


def _watch_nothing(self, *_):
    return None


def _normalize_only(self, x):
    moving = self.moving_mean.value, self.moving_variance.value
    y, mean, variance = self._normalize_batch(x, *moving)
    self.moving_mean.assign(mean)
    self.moving_variance.assign(variance)
    return y


def _same(self, inputs, site=0, training=False):
    return inputs


_CUT = (affine, "pass_within", _pass_all)
_RANGES = (FakeQuant, "_observe", _watch_nothing)
_APART = (fake_quant, "relu_before", lambda x: None)
_START = (affine, "cheapest_cond", _first)
_FREEZE = (FusedBatchNormalization, "_train", _normalize_only)
# What is left -> what stands in for what was taken out.
PARTS = {
    "all": [],
    "without watching ranges": [_RANGES],
    "ReLUs computed apart from the rounding behind them": [_APART],
    "so, and without cutting gradients outside the range": [_APART, _CUT],
    "without the switch of `start_step`": [_START],
    "without the switch of `freeze_batch_norm_step`": [_FREEZE],
    "without all of these: rounding": [_APART, _CUT, _RANGES, _START, _FREEZE],
    "activations not rounded": [(FakeQuant, "call", _same)],
}


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    print("| network | a step | wall, median (range) | CPU |")
    print("|---|---|---|---|")
    for name in training_cost.NETWORKS:
        if args.only not in name:
            continue
        steps, batch = training_cost.size_of_epoch(name)
        plain = getattr(training_cost, name)(layers, keras)
        dataset, x = training_cost._data(plain, steps * batch, batch)
        training_cost._compiled(plain, keras)
        for part, stand_ins in PARTS.items():
            qat = tfc.quantize_aware(plain, calibration_data=x[:batch])
            models = [plain, training_cost._compiled(qat, keras)]
            with contextlib.ExitStack() as stack:
                for owner, attribute, stand_in in stand_ins:
                    stack.enter_context(mock.patch.object(owner, attribute, stand_in))
                rounds = training_cost._alternate(models, dataset, args.rounds)
            found = training_cost._ratios(rounds)
            low, high = found["wall_range"]
            print(
                f"| {name} | {part} | {found['wall']:.2f}x ({low:.2f} to {high:.2f}) | "
                f"{found['cpu']:.2f}x |",
                flush=True,
            )


if __name__ == "__main__":
    main()
