#!/usr/bin/env python3
"""Behaves like edgetpu_compiler 16, or like one of its failures.

`FAKE_EDGETPU` chooses which: success, partial, streams, fails, not_quantized,
unknown_version, dynamic, crashes, hangs, silent, empty, nothing_mapped, garbage,
second_fails, second_unmapped, needs_search or slow_search. With `FAKE_EDGETPU_NOTES`
set to a path, the arguments, or the process id of a child that hangs too, are written
there.

The texts are those of the logs of real runs in `edgetpu_logs`.
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
_TIMER = "Started a compilation timeout timer of {} seconds.\n"
_END = "Compilation child process completed within timeout period.\nCompilation "
_RESTORED = (
    "ERROR: Restored original execution plan after delegate application failure.\n"
)
_LIMITED = (
    "Operation is otherwise supported, but not mapped due to some unspecified "
    "limitation"
)
_ON_CHIP = "Mapped to Edge TPU"


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
    parser.add_argument("-s", "--show_operations", action="store_true")
    parser.add_argument("-d", "--search_delegate", action="store_true")
    parser.add_argument("--delegate_search_step", type=int, default=1)
    parser.add_argument("-a", "--enable_multiple_subgraphs", action="store_true")
    parser.add_argument("-i", "--intermediate_tensors")
    parser.add_argument("-n", "--num_segments", type=int)
    parser.add_argument("-o", "--out_dir", type=pathlib.Path, required=True)
    parser.add_argument("-m", "--min_runtime_version", type=int)
    parser.add_argument("--timeout_sec", type=int, default=180)
    parser.add_argument("models", type=pathlib.Path, nargs="+")
    arguments = parser.parse_args()
    for model in arguments.models:
        assert model.read_bytes()[4:8] == b"TFL3", model
    notes = os.environ.get("FAKE_EDGETPU_NOTES")
    if notes:
        pathlib.Path(notes).write_text(json.dumps(sys.argv[1:]))
    print(_START, end="")
    return _BEHAVIOURS[os.environ["FAKE_EDGETPU"]](arguments)


class _Result:
    """A compiled file to write: its content and its row of the table."""

    def __init__(self, rows, content=None, off_chip="0.00B"):
        self.rows = rows
        self.mapped = sum(n for _, n, status in rows if status == _ON_CHIP)
        self.cpu = sum(n for _, n, _ in rows) - self.mapped
        if content is None:
            content = compiled_model(on_cpu=self.cpu, mapped=self.mapped > 0)
        self.content = content
        self.off_chip = off_chip

    def write(self, arguments, stem, source):
        """Writes the file and its log, and returns what the compiler prints of it."""
        output = arguments.out_dir / f"{stem}_edgetpu.tflite"
        output.write_bytes(self.content)
        table = "Operator                       Count      Status\n\n" + "".join(
            f"{operator:<31}{count:<11}{status}\n"
            for operator, count, status in self.rows
        )
        names = f"Input: {source}\nOutput: {output}\n\n"
        output.with_suffix(".log").write_text(_START + names + table)
        counts = (
            f"Number of operations that will run on Edge TPU: {self.mapped}\n"
            f"Number of operations that will run on CPU: {self.cpu}\n"
        )
        details = "See the operation log file for individual operation details.\n"
        return (
            f"\nInput model: {source}\nInput size: 68.43KiB\n"
            f"Output model: {output}\nOutput size: 112.00KiB\n"
            "On-chip memory used for caching model parameters: 66.00KiB\n"
            "On-chip memory remaining for caching model parameters: 7.67MiB\n"
            "Off-chip memory used for streaming uncached model parameters: "
            f"{self.off_chip}\n"
            f"Number of Edge TPU subgraphs: {int(self.mapped > 0)}\n"
            f"Total number of operations: {self.mapped + self.cpu}\n"
            f"Operation log: {output.with_suffix('.log')}\n"
            f"{chr(10) + counts if self.cpu else ''}"
            f"{chr(10) + table if arguments.show_operations else details}"
        )


def _dense():
    return _Result([("QUANTIZE", 2, _ON_CHIP), ("FULLY_CONNECTED", 1, _ON_CHIP)])


def _not_mapped():
    status = "Operation is working on an unsupported data type"
    return _Result([("QUANTIZE", 2, status), ("FULLY_CONNECTED", 1, status)])


def _compile(arguments, *results):
    """Segments are compiled one after another, several models together."""
    timer = _TIMER.format(arguments.timeout_sec)
    if arguments.num_segments:
        stem = arguments.models[0].stem
        for number in range(arguments.num_segments):
            result = results[min(number, len(results) - 1)]
            if result is None:
                print(f"{timer}{_RESTORED}{_END}failed! ")
                return 1
            name = f"{stem}_segment_{number}_of_{arguments.num_segments}"
            (arguments.out_dir / f"{name}.tflite").write_bytes(compiled_model(1, False))
            told = result.write(arguments, name, f"{name}.tflite")
            print(f"{timer}\nModel compiled successfully in 986 ms.\n{told}", end="")
            print(f"{_END}succeeded! ")
        return 0
    told = [
        results[min(number, len(results) - 1)].write(arguments, model.stem, model)
        for number, model in enumerate(arguments.models)
    ]
    what = "Models" if len(told) > 1 else "Model"
    print(f"{timer}\n{what} compiled successfully in 986 ms.\n{''.join(told)}", end="")
    print(f"{_END}succeeded! ")
    return 0


def _fail(text, *, parsed=True):
    def behaviour(arguments):
        timer = _TIMER.format(arguments.timeout_sec) if parsed else ""
        end = f"{_END}failed! " if parsed else "Model could not be parsed"
        print(f"{timer}{text}{end}")
        return 1

    return behaviour


def _success(arguments):
    return _compile(arguments, _dense())


def _partial(arguments):
    rows = [
        ("QUANTIZE", 1, _ON_CHIP),
        ("QUANTIZE", 1, _LIMITED),
        ("FULLY_CONNECTED", 1, _ON_CHIP),
    ]
    return _compile(arguments, _Result(rows, off_chip="1.50MiB"))


def _garbage(arguments):
    rows = [("QUANTIZE", 2, _ON_CHIP)]
    return _compile(arguments, _Result(rows, b"\0" * 100))


def _second_fails(arguments):
    return _compile(arguments, _dense(), None)


def _second_unmapped(arguments):
    return _compile(arguments, _dense(), _not_mapped())


def _needs_search(arguments):
    """All but the last operation compile: only a search, or a cut, finds that."""
    if not arguments.search_delegate and not arguments.intermediate_tensors:
        return _large(arguments)
    timer = _TIMER.format(arguments.timeout_sec)
    if arguments.search_delegate:
        step = arguments.delegate_search_step
        print(f"Searching for valid delegate with step {step}")
        print(f"Try to compile segment with 3 ops\n{timer}{_END}failed! ")
        if os.environ["FAKE_EDGETPU"] == "slow_search":
            for _ in range(3):
                time.sleep(0.6 * arguments.timeout_sec)
        print("Try to compile segment with 2 ops\nIntermediate tensors: Identity1")
    rows = [
        ("QUANTIZE", 1, _ON_CHIP),
        ("FULLY_CONNECTED", 1, _ON_CHIP),
        ("QUANTIZE", 1, "More than one subgraph is not supported"),
    ]
    return _compile(arguments, _Result(rows))


_large = _fail(
    _RESTORED + "Compilation failed: Compilation failed due to large activation "
    "tensors in model.\n"
)


def _silent(arguments):
    return 1


def _empty(arguments):
    return 0


def _crashes(arguments):
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGSEGV)


def _hangs(arguments):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(_TIMER.format(arguments.timeout_sec), flush=True)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pathlib.Path(os.environ["FAKE_EDGETPU_NOTES"]).write_text(str(child.pid))
    time.sleep(600)


_BEHAVIOURS = {
    "success": _success,
    "partial": _partial,
    "nothing_mapped": lambda arguments: _compile(arguments, _not_mapped()),
    "garbage": _garbage,
    "fails": _large,
    "not_quantized": _fail("Invalid model: m.tflite\nModel not quantized\n"),
    "unknown_version": _fail(
        "ERROR: Didn't find op for builtin opcode 'EXP' version '2'. An older version "
        "of this builtin might be supported. Are you using an old TFLite binary with a "
        "newer model?\n\nERROR: Registration failed.\n\nInvalid model: m.tflite\n",
        parsed=False,
    ),
    "dynamic": _fail(
        "ERROR: Attempting to use a delegate that only supports static-sized tensors "
        "with a graph that has dynamic-sized tensors.\n"
    ),
    "second_fails": _second_fails,
    "second_unmapped": _second_unmapped,
    "needs_search": _needs_search,
    "slow_search": _needs_search,
    "silent": _silent,
    "empty": _empty,
    "crashes": _crashes,
    "hangs": _hangs,
}

if __name__ == "__main__":
    sys.exit(main())
