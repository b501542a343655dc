"""Prints how the time and memory of one update of the masks grow with the model.

Each repeat runs in a process of its own: a new model of dense layers of up to 4,096 by
4,096 weights, of which 68 % are dropped, and then a second update to 90 %, which is
timed. Memory is the peak of the process (resource.getrusage), the first update
included, above what it holds with the model and its masks.

Usage:
    python benchmarks/pruning_scale.py
    python benchmarks/pruning_scale.py --millions 1 10 --scopes layer
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

_SIDE = 4096


def _held():
    """Resident memory now, bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _model(weights):
    import keras

    layers = [keras.Input((min(_SIDE, weights // 250),))]
    left, width = weights, layers[0].shape[-1]
    while left > 0:
        units = max(1, min(_SIDE, round(left / width)))
        layers.append(keras.layers.Dense(units, use_bias=False))
        left, width = left - units * width, units
    return keras.Sequential(layers)


def measure(weights, scope):
    """In this process: seconds of an update, bytes of memory."""
    import tfcompress as tfc

    model = _model(weights)
    pruning = tfc.Pruning(
        schedule=tfc.schedules.Iterative(0.9, rounds=2, every=1),
        scope=scope,
        skip_small_and_last=False,
    )
    pruning.set_model(model)
    pruning.set_params({"epochs": 1, "steps": 2})
    pruning.on_train_begin()
    pruning.on_epoch_begin(0)
    pruning.on_train_batch_end(0, {})
    held = _held()
    start = time.perf_counter()
    pruning.on_train_batch_end(1, {})
    seconds = time.perf_counter() - start
    peak = _peak()
    pruning.on_train_end()
    kernels = [v.numpy() for v in model.trainable_variables]
    total = sum(k.size for k in kernels)
    wanted = (
        round(0.9 * total)
        if scope == "global"
        else sum(round(0.9 * k.size) for k in kernels)
    )
    assert sum((k == 0).sum() for k in kernels) == wanted, "not exact"
    return {
        "weights": total,
        "largest": max(k.size for k in kernels),
        "seconds": seconds,
        "extra_bytes": peak - held,
    }


def _in_its_own_process(weights, scope):
    command = [sys.executable, __file__, "--one", str(weights), scope]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        raise SystemExit(found.stderr[-3000:])
    return json.loads(found.stdout.splitlines()[-1])


def _row(scope, runs):
    seconds = [run["seconds"] for run in runs]
    median = statistics.median(seconds)
    extra = statistics.median(run["extra_bytes"] for run in runs)
    weights = runs[0]["weights"]
    return (
        f"| {scope} | {weights:,} | {runs[0]['largest']:,} | {median:.3f} "
        f"({min(seconds):.3f} to {max(seconds):.3f}) | {1e9 * median / weights:.0f} | "
        f"{extra / 2**20:,.0f} | {extra / weights:.1f} |"
    )


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--scopes", nargs="+", default=["layer", "global"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.one:
        weights, scope = settings.one
        print(json.dumps(measure(int(weights), scope)))
        return
    print(
        "| scope | weights | largest kernel | update, s: median (range) | ns a weight |"
        " peak above the model and its masks, MiB | bytes a weight |"
    )
    print("|---|---|---|---|---|---|---|")
    for scope in settings.scopes:
        for millions in settings.millions:
            runs = [
                _in_its_own_process(millions * 10**6, scope)
                for _ in range(settings.repeats)
            ]
            print(_row(scope, runs), flush=True)


if __name__ == "__main__":
    main()
