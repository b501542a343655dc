"""The script that `opencv` runs in another process: OpenCV's `cv2.dnn`.

It imports nothing of this package, so that it starts in a fraction of a second. Reads
`inputs.npz` in the working folder, `input_0` and on with their `names`, and writes
`outputs.npz`.
"""

import statistics
import sys
import time

import cv2
import numpy as np

_WARM_UP = 2


def _main(path, engine, rows, threads, repeats):
    cv2.setNumThreads(threads)
    net = cv2.dnn.readNetFromONNX(path, getattr(cv2.dnn, engine))
    with np.load("inputs.npz") as arrays:
        names = [str(name) for name in arrays["names"]]
        inputs = {name: arrays[f"input_{i}"] for i, name in enumerate(names)}
    count = len(next(iter(inputs.values())))
    found = [
        _outputs(net, {k: v[start : start + rows] for k, v in inputs.items()})
        for start in range(0, count, rows)
    ]
    outputs = {
        f"output_{i}": np.concatenate([a.reshape(rows, -1) for a in parts])
        for i, parts in enumerate(zip(*found, strict=True))
    }
    first = {k: v[:rows] for k, v in inputs.items()}
    outputs["milliseconds"] = _milliseconds(net, first, repeats)
    np.savez("outputs.npz", **outputs)


def _outputs(net, inputs):
    for name, value in inputs.items():
        net.setInput(value, name if len(inputs) > 1 else "")
    return [
        np.array(value) for value in net.forward(net.getUnconnectedOutLayersNames())
    ]


def _milliseconds(net, inputs, repeats):
    times = []
    for repeat in range(_WARM_UP + repeats if repeats else 0):
        start = time.perf_counter()
        _outputs(net, inputs)
        if repeat >= _WARM_UP:
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times) if times else np.nan


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
