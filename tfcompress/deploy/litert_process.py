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
        path: Path of a `.tflite` file, or its bytes.
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
    content = isinstance(path, bytes)
    made = Interpreter(
        model_path=None if content else os.fspath(path),
        model_content=path if content else None,
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


def set_zeros(made, value=0):
    """Gives every input zeros, or another value."""
    for details in made.get_input_details():
        array = np.full(details["shape"], value, details["dtype"])
        made.set_tensor(details["index"], array)


def _load(path):
    """Verifies the bytes; the reader and the builder are native code."""
    from ai_edge_litert.interpreter import Interpreter

    with open(path, "rb") as file:
        Interpreter(model_content=file.read())


def _prepare(path):
    """Sets a file up."""
    interpreter(path)


def _attempt(path, kernels):
    """Runs a file on zeros; where these fail, such as divisors, on ones."""
    made = interpreter(path, kernels=kernels)
    set_zeros(made)
    try:
        made.invoke()
    except RuntimeError:
        set_zeros(made, 1)
        made.invoke()


def _turns(path, settings, rounds, repeats, seconds, warmup):
    """Seconds of many runs of each `(kernels, threads)`, which take turns."""
    made = [interpreter(path, kernels=k, threads=t) for k, t in settings]
    for one in made:
        set_zeros(one)
        timed(one.invoke, repeats=0, seconds=0, warmup=warmup)
    times = [[] for _ in made]
    for _ in range(rounds):
        for one, found in zip(made, times, strict=True):
            share = -(-repeats // rounds)
            found += timed(
                one.invoke, repeats=share, seconds=seconds / rounds, warmup=0
            )
    return times


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
    """Most memory that this process has had."""
    if sys.platform == "linux":
        # `getrusage` begins with the peak of the process that started this one.
        with open("/proc/self/status") as status:
            (peak,) = (line for line in status if line.startswith("VmHWM:"))
        return 1024 * int(peak.split()[1])
    if resource is None:
        raise RuntimeError("this system keeps no peak memory of a process")
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _operations(path, parts, examples, keep):
    """Runs a file, and each of its operations alone on what it read there.

    Args:
        path: Path of the file.
        parts: For each operation `None` or its file's bytes, the tensors that it reads
            and those that it writes.
        examples: Lists of inputs in the order of the file.
        keep: Whether to return what the operations wrote.

    Returns:
        For each operation and kernel set the largest difference to the builtin kernels
        (`None` where it did not run), the largest value of each, and a list for each
        example of what each operation wrote.
    """
    whole = interpreter(path, kernels="builtin", keep=True)
    alone = [_alone(part) for part in parts]
    errors = [{kernels: 0.0 for kernels in made} for made in alone]
    largest, kept = [0.0] * len(parts), []
    for inputs in examples:
        for details, value in zip(whole.get_input_details(), inputs, strict=True):
            whole.set_tensor(details["index"], value)
        whole.invoke()
        written = [[np.asarray(whole.get_tensor(i)) for i in part[2]] for part in parts]
        if keep:
            kept.append(written)
        for number, (part, made) in enumerate(zip(parts, alone, strict=True)):
            values = [v.astype(np.float64) for v in written[number]]
            largest[number] = max(
                [largest[number], *(np.abs(v).max(initial=0) for v in values)]
            )
            read = [whole.get_tensor(i) for i in part[1]]
            for kernels in list(made):
                error = _difference(made[kernels], read, values)
                errors[number][kernels] = (
                    None if error is None else max(errors[number][kernels], error)
                )
                if error is None:
                    del made[kernels]
    return errors, largest, kept


def _alone(part):
    made = {}
    for kernels in ("xnnpack", "reference") if part[0] is not None else ():
        # Alone it may lack what it needs, such as a shape another would compute.
        try:
            made[kernels] = interpreter(part[0], kernels=kernels)
        except (RuntimeError, ValueError):
            continue
    return made


def _difference(made, read, values):
    try:
        for details, value in zip(made.get_input_details(), read, strict=True):
            made.set_tensor(details["index"], value)
        made.invoke()
        found = [made.get_tensor(d["index"]) for d in made.get_output_details()]
        return max(
            float(np.abs(f.astype(np.float64) - v).max(initial=0))
            for f, v in zip(found, values, strict=True)
        )
    except (RuntimeError, ValueError):
        return None


REQUESTS = {
    "load": _load,
    "prepare": _prepare,
    "attempt": _attempt,
    "turns": _turns,
    "memory": _memory,
    "operations": _operations,
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
