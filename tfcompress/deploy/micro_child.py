"""The script that `micro` runs in another process: TFLite Micro's own interpreter.

It imports nothing of this package, so that it starts in a fraction of a second. Reads
`model.tflite` and `inputs.npz` in the working folder and writes `outputs.npz`.
"""

import os
import statistics
import sys
import time

import numpy as np
from tflite_micro import runtime

_WARM_UP = 2
_SMALLEST_ARENA = 1 << 10
_ALIGNMENT = 16


def _main(content, examples, largest_arena, output_count, repeats):
    arena_bytes = _least_arena(content, examples[0], largest_arena)
    interpreter = _load(content, arena_bytes)
    rows, times = [], []
    for example in examples:
        _run(interpreter, example)
        rows.append([np.array(interpreter.get_output(i)) for i in range(output_count)])
    for repeat in range(_WARM_UP + repeats if repeats else 0):
        start = time.perf_counter()
        interpreter.invoke()
        if repeat >= _WARM_UP:
            times.append(time.perf_counter() - start)
    outputs = {
        f"output_{i}": np.stack(v) for i, v in enumerate(zip(*rows, strict=True))
    }
    outputs["milliseconds"] = 1000 * statistics.median(times) if times else np.nan
    outputs["arena_bytes"] = arena_bytes
    np.savez("outputs.npz", **outputs)


def _load(content, arena_bytes):
    return runtime.Interpreter.from_bytes(content, arena_size=arena_bytes)


def _run(interpreter, example):
    for index, value in enumerate(example):
        interpreter.set_input(value, index)
    interpreter.invoke()


def _least_arena(content, example, largest):
    """Smallest multiple of 16 bytes with which it loads and runs.

    What the interpreter says that it allocated is less: it needs room to load, too.
    """
    size = _SMALLEST_ARENA
    while not _works(content, example, size):
        if size >= largest:
            # Once more, for the error, or the end of this process.
            _run(_load(content, size), example)
            return size
        size *= 2
    low, high = (0 if size == _SMALLEST_ARENA else size // 2), size
    while high - low > _ALIGNMENT:
        middle = (low + high) // 2 // _ALIGNMENT * _ALIGNMENT
        works = _works(content, example, middle)
        low, high = (low, middle) if works else (middle, high)
    return high


def _works(content, example, arena_bytes):
    """Tries an arena in a process of its own, which one that is too small may end."""
    process = os.fork()
    if process:
        return os.waitpid(process, 0)[1] == 0
    code = 1
    try:
        _run(_load(content, arena_bytes), example)
        code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    with open("model.tflite", "rb") as file:
        model = file.read()
    with np.load("inputs.npz") as arrays:
        columns = [arrays[f"input_{i}"] for i in range(len(arrays))]
    _main(model, list(zip(*columns, strict=True)), *map(int, sys.argv[1:]))
