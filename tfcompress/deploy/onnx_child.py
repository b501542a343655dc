"""The script that `onnx_runtime` runs in another process: tries a file, within limits.

A few bytes can claim constants and tensors of any size. This imports nothing of our
package, so that it starts in a fraction of a second.
"""

import sys

import numpy as np
import onnxruntime

# What numpy calls otherwise than ONNX.
_TYPES = {"float": "float32", "double": "float64"}


def _main(path, memory_bytes):
    try:
        import resource
    except ImportError:  # Not on Windows.
        pass
    else:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        if hard != resource.RLIM_INFINITY:
            memory_bytes = min(memory_bytes, hard)
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, hard))
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as err:
        sys.exit(_line(err))
    try:
        session.run(None, {i.name: _zeros(i) for i in session.get_inputs()})
    except Exception as err:
        # Zeros may be no input that the model takes; memory does not depend on that.
        if "alloc" in str(err):
            sys.exit(_line(err))


def _zeros(tensor):
    shape = [n if isinstance(n, int) else 1 for n in tensor.shape]
    name = tensor.type.removeprefix("tensor(").removesuffix(")")
    return np.zeros(shape, _TYPES.get(name, name))


def _line(err):
    return " ".join(str(err).split())


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
