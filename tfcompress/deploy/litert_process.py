"""Runs `.tflite` files in a process of its own, which may die of them.

This file is a program that `apart.py` starts: it imports nothing of this package, whose
import takes seconds, and answers requests until its input ends. A request is a pickled
dict; `what` names a function of `REQUESTS`, the rest are its arguments.
"""

import gc
import os
import pickle
import sys
import time

import numpy as np

try:
    import resource
except ImportError:
    # Windows sets no limits and keeps no peak.
    resource = None

KERNELS = ("xnnpack", "builtin", "reference")


def interpreter(path, *, kernels="xnnpack", threads=1, keep=False):
    """A LiteRT interpreter with its tensors allocated.

    Args:
        path: Path of a `.tflite` file.
        kernels: `"xnnpack"` for XNNPACK where it takes an operation, `"builtin"` for
            TFLite's optimized kernels, `"reference"` for its plain ones.
        threads: Number of threads.
        keep: Whether to keep the tensors in between; not for `"xnnpack"`, which
            computes several operations as one.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = {
        "xnnpack": OpResolverType.AUTO,
        "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        "reference": OpResolverType.BUILTIN_REF,
    }[kernels]
    made = Interpreter(
        model_path=os.fspath(path),
        num_threads=threads,
        experimental_op_resolver_type=resolver,
        experimental_preserve_all_tensors=keep,
    )
    made.allocate_tensors()
    return made


def timed(invoke, *, repeats=100, seconds=1.0, warmup=5):
    """Seconds that each of many calls took.

    Args:
        invoke: What to call.
        repeats: Least number of timed calls.
        seconds: Time after which no more than `repeats` are made.
        warmup: Calls before those that are timed.
    """
    for _ in range(warmup):
        invoke()
    times, begin = [], time.perf_counter()
    while len(times) < repeats or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        invoke()
        times.append(time.perf_counter() - start)
    return times


def set_zeros(made):
    """Gives every input zeros."""
    for details in made.get_input_details():
        zeros = np.zeros(details["shape"], details["dtype"])
        made.set_tensor(details["index"], zeros)


def _load(path):
    """Verifies the bytes; the reader and the builder are native code."""
    from ai_edge_litert.interpreter import Interpreter

    with open(path, "rb") as file:
        Interpreter(model_content=file.read())


def _prepare(path):
    """Sets a file up."""
    interpreter(path)


def _attempt(path, kernels):
    """Runs a file once."""
    made = interpreter(path, kernels=kernels)
    set_zeros(made)
    made.invoke()


def _times(path, kernels, threads, **settings):
    made = interpreter(path, kernels=kernels, threads=threads)
    set_zeros(made)
    return timed(made.invoke, **settings)


def _memory(path, kernels, threads):
    """Bytes by which the process grew at most, from before the file was loaded."""
    import ai_edge_litert.interpreter  # noqa: F401  Not of the file.

    gc.collect()
    before = _peak_bytes()
    made = interpreter(path, kernels=kernels, threads=threads)
    set_zeros(made)
    for _ in range(3):
        made.invoke()
    return _peak_bytes() - before


def _peak_bytes():
    if resource is None:
        raise RuntimeError("this system keeps no peak memory of a process")
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _micro(path, examples, outputs, arena_bytes):
    """Outputs of TensorFlow Lite Micro, a list of arrays for each example.

    What it says of its arena goes to the error stream.
    """
    from tflite_micro.python.tflite_micro import runtime

    made = runtime.Interpreter.from_file(path, arena_size=arena_bytes)
    found = []
    for inputs in examples:
        for index, value in enumerate(inputs):
            made.set_input(value, index)
        made.invoke()
        found.append([made.get_output(index) for index in range(outputs)])
    made.print_allocations()
    return found


REQUESTS = {
    "load": _load,
    "prepare": _prepare,
    "attempt": _attempt,
    "times": _times,
    "memory": _memory,
    "micro": _micro,
}


def _limit(name, value):
    if resource is not None:
        number = getattr(resource, name)
        _, hard = resource.getrlimit(number)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(number, (value, hard))


def _serve(source, sink):
    while True:
        try:
            request = pickle.load(source)
        except EOFError:
            return
        _limit("RLIMIT_AS", request.pop("memory_bytes"))
        try:
            answer = "done", REQUESTS[request.pop("what")](**request)
        except Exception as err:
            answer = "failed", f"{type(err).__name__}: {err}"
        pickle.dump(answer, sink)
        sink.flush()


if __name__ == "__main__":
    # Native code may print: only answers may go where answers are read.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _limit("RLIMIT_CORE", 0)
    _serve(sys.stdin.buffer, answers)
