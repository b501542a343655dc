"""Prints the README's main table: the demo over several seeds, mean and spread.

    python benchmarks/demo_seeds.py --seeds 5

For each seed: train the float model, compress it, export, and measure accuracy on the
speakers that were held out. Sizes and accuracy are exact for a seed; latency is the
median of at least 100 runs on one thread, and the ratio is taken within a seed.
"""

import argparse
import pathlib
import platform
import statistics
import tempfile

import keras
import tensorflow as tf

from tfcompress import demo


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    runs = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            runs.append(
                demo.run(
                    pathlib.Path(folder), demo.Settings(seed=seed), say=lambda _: None
                )
            )
        float_model, _, _, ours = runs[-1]
        print(
            f"seed {seed}: float {float_model.accuracy:.3f}, ours {ours.accuracy:.3f}"
        )
    print(
        f"\n{len(runs)} seeds; TensorFlow {tf.__version__}, Keras {keras.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()}\n"
    )
    print(
        "| | held-out accuracy, mean (lowest to highest) | against float, points "
        "| bytes | gzip bytes | smaller | zeros | latency, ms | faster |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for column, name in enumerate(demo.NAMES):
        print(_row(name, [run[column] for run in runs], runs))


def _row(name, found, runs):
    accuracy = [m.accuracy for m in found]
    lost = [
        100 * (m.accuracy - run[0].accuracy) for m, run in zip(found, runs, strict=True)
    ]
    smaller = [
        run[1].gzip_bytes / m.gzip_bytes for m, run in zip(found, runs, strict=True)
    ]
    latency, faster = "-", "-"
    if found[0].latency_ms is not None:
        latency = f"{statistics.median(m.latency_ms for m in found):.3f}"
        ratios = [
            run[1].latency_ms / m.latency_ms for m, run in zip(found, runs, strict=True)
        ]
        faster = f"{statistics.median(ratios):.2f}x"
    cells = (
        name,
        f"{statistics.mean(accuracy):.1%} ({min(accuracy):.1%} to {max(accuracy):.1%})",
        f"{statistics.mean(lost):+.1f} ({min(lost):+.1f} to {max(lost):+.1f})",
        f"{statistics.median(m.bytes for m in found):,.0f}",
        f"{statistics.median(m.gzip_bytes for m in found):,.0f}",
        f"{statistics.median(smaller):.2f}x",
        f"{statistics.median(m.sparsity for m in found):.1%}",
        latency,
        faster,
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
