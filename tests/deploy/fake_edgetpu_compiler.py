#!/usr/bin/env python3
"""Behaves like edgetpu_compiler 16, or like one of its failures.

`FAKE_EDGETPU` chooses which: success, partial, fails, crashes, hangs, silent, empty,
nothing_mapped or garbage. With `FAKE_EDGETPU_NOTES` set to a path, the arguments, or
the process id of a child that hangs too, are written there.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

_START = "Edge TPU Compiler version 16.0.384591198\n"
_TIMER = "Started a compilation timeout timer of 180 seconds.\n"
_END = "Compilation child process completed within timeout period.\nCompilation "
_LIMITED = (
    "Operation is otherwise supported, but not mapped due to some unspecified "
    "limitation"
)


def compiled_model(on_cpu=0, mapped=True, dtype="UINT8"):
    """A `.tflite` file: an `edgetpu-custom-op` if `mapped`, then `on_cpu` RELUs."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    names = [b"edgetpu-custom-op"] * mapped + [None] * on_cpu
    graph = schema.SubGraphT()
    graph.tensors = [schema.TensorT() for _ in range(len(names) + 1)]
    for number, tensor in enumerate(graph.tensors):
        tensor.name, tensor.shape = f"tensor{number}", [1, 256]
        tensor.type, tensor.buffer = getattr(schema.TensorType, dtype), 0
    graph.inputs, graph.outputs = [0], [len(names)]
    model = schema.ModelT()
    model.operatorCodes, graph.operators = [], []
    for number, name in enumerate(names):
        code, operator = schema.OperatorCodeT(), schema.OperatorT()
        enum = schema.BuiltinOperator
        code.builtinCode = enum.RELU if name is None else enum.CUSTOM
        code.deprecatedBuiltinCode, code.version = code.builtinCode, 1
        code.customCode = name
        operator.opcodeIndex = number
        operator.inputs, operator.outputs = [number], [number + 1]
        model.operatorCodes.append(code)
        graph.operators.append(operator)
    model.version, model.subgraphs = 3, [graph]
    model.buffers = [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-s", action="store_true")
    parser.add_argument("-d", action="store_true")
    parser.add_argument("-o", type=pathlib.Path, required=True)
    parser.add_argument("-m", type=int)
    parser.add_argument("--timeout_sec", type=int)
    parser.add_argument("model", type=pathlib.Path)
    arguments = parser.parse_args()
    notes = os.environ.get("FAKE_EDGETPU_NOTES")
    if notes:
        pathlib.Path(notes).write_text(json.dumps(sys.argv[1:]))
    return _BEHAVIOURS[os.environ["FAKE_EDGETPU"]](arguments)


def _write(arguments, content, rows, mapped, cpu):
    output = arguments.o / f"{arguments.model.stem}_edgetpu.tflite"
    output.write_bytes(content)
    table = "Operator                       Count      Status\n\n" + "".join(
        f"{operator:<31}{count:<11}{status}\n" for operator, count, status in rows
    )
    names = f"Input: {arguments.model}\nOutput: {output}\n\n"
    output.with_suffix(".log").write_text(_START + names + table)
    counts = (
        f"Number of operations that will run on Edge TPU: {mapped}\n"
        f"Number of operations that will run on CPU: {cpu}\n"
    )
    print(
        f"{_START}{_TIMER}\nModel compiled successfully in 986 ms.\n\n"
        f"Input model: {arguments.model}\nInput size: 68.43KiB\n"
        f"Output model: {output}\nOutput size: 112.00KiB\n"
        "On-chip memory used for caching model parameters: 68.50KiB\n"
        "On-chip memory remaining for caching model parameters: 7.60MiB\n"
        "Off-chip memory used for streaming uncached model parameters: "
        f"{'1.50MiB' if cpu else '0.00B'}\n"
        f"Number of Edge TPU subgraphs: {int(mapped > 0)}\n"
        f"Total number of operations: {mapped + cpu}\n"
        f"Operation log: {output.with_suffix('.log')}\n\n"
        f"{counts if cpu else ''}\n{table}{_END}succeeded! "
    )
    return 0


def _success(arguments):
    rows = [
        ("QUANTIZE", 2, "Mapped to Edge TPU"),
        ("FULLY_CONNECTED", 1, "Mapped to Edge TPU"),
    ]
    return _write(arguments, compiled_model(), rows, 3, 0)


def _partial(arguments):
    rows = [
        ("QUANTIZE", 1, "Mapped to Edge TPU"),
        ("QUANTIZE", 1, _LIMITED),
        ("FULLY_CONNECTED", 1, "Mapped to Edge TPU"),
    ]
    return _write(arguments, compiled_model(on_cpu=1), rows, 2, 1)


def _nothing_mapped(arguments):
    status = "Operation is working on an unsupported data type"
    rows = [("QUANTIZE", 2, status), ("FULLY_CONNECTED", 1, status)]
    return _write(arguments, compiled_model(3, mapped=False), rows, 0, 3)


def _garbage(arguments):
    return _write(arguments, b"\0" * 100, [("QUANTIZE", 2, "Mapped to Edge TPU")], 2, 0)


def _fails(arguments):
    print(
        f"{_START}{_TIMER}"
        "ERROR: Restored original execution plan after delegate application failure.\n"
        "Compilation failed: Compilation failed due to large activation tensors in "
        f"model.\n{_END}failed! "
    )
    return 1


def _silent(arguments):
    print(_START, end="")
    return 1


def _empty(arguments):
    print(_START, end="")
    return 0


def _crashes(arguments):
    print(_START, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def _hangs(arguments):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(_START + _TIMER, flush=True)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pathlib.Path(os.environ["FAKE_EDGETPU_NOTES"]).write_text(str(child.pid))
    time.sleep(600)


_BEHAVIOURS = {
    "success": _success,
    "partial": _partial,
    "nothing_mapped": _nothing_mapped,
    "garbage": _garbage,
    "fails": _fails,
    "silent": _silent,
    "empty": _empty,
    "crashes": _crashes,
    "hangs": _hangs,
}

if __name__ == "__main__":
    sys.exit(main())
