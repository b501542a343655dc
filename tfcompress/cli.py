"""The `tfcompress` command: what the library does, from a shell."""

import inspect
import os
import pathlib
import sys
import tempfile

import keras
import numpy as np
from absl import app
from absl.flags import argparse_flags
from rich.console import Console
from rich.table import Table

from tfcompress import demo
from tfcompress.benchmark import benchmark
from tfcompress.debug import debug_quantization
from tfcompress.deploy.edgetpu_check import check_edgetpu
from tfcompress.deploy.edgetpu_compile import EdgeTPUCompilerError, compile_edgetpu
from tfcompress.deploy.files import check_writable, written_atomically
from tfcompress.deploy.metadata import Metadata, TensorMetadata
from tfcompress.deploy.onnx import export_onnx
from tfcompress.deploy.tflite import export_tflite
from tfcompress.deploy.tflite_file import read_tflite
from tfcompress.deploy.tflite_kinds import KINDS
from tfcompress.graph import find_layers, kernels
from tfcompress.layers import TransformWeights
from tfcompress.measure import measure
from tfcompress.passes.channel_scores import SCORES
from tfcompress.passes.equalize import equalize
from tfcompress.passes.post_training import ROUNDINGS, quantize_post_training
from tfcompress.passes.quantization_config import PRESETS
from tfcompress.progress import tracked
from tfcompress.prune_channels import prune_channels
from tfcompress.report import report, table
from tfcompress.verify import verify

_DESCRIPTION = """Compress Keras 3 models and check what came of it.

  tfcompress demo                              the whole journey on real speech
  tfcompress export model.keras model.tflite --kind=int8 --data=calibration.npz
  tfcompress prune-channels model.keras small.keras --budget macs=0.5
  tfcompress quantize --model=model.keras --data=calibration.npz --output=qat.keras
  tfcompress debug-quantization --model=qat.keras --file=int8.tflite --data=test.npz
  tfcompress verify model.keras model.tflite --data=test.npz
  tfcompress benchmark model.tflite
  tfcompress measure float.tflite int8.tflite --data=test.npz
  tfcompress check-edgetpu int8.tflite

Data are .npz files with an array `x` (one row an example) and, where labels are
needed, `y`. `tfcompress COMMAND --help` explains a command."""

# A file that is loaded without its loss has no gradients to score by.
_SCORES_WITHOUT_LOSS = tuple(sorted(set(SCORES) - {"taylor"}))


def main():
    """Entry point of the console script."""
    app.run(lambda args: sys.exit(_run(args)), flags_parser=parse)


def parse(argv):
    """Parses a command line.

    Args:
        argv: List of strings, the program's name first.

    Returns:
        Namespace with the command's function as `command`. Exits with 2 where the
        arguments are wrong.
    """
    return _parser().parse_args(argv[1:])


def run(argv):
    """Runs a command line in this process.

    Args:
        argv: List of strings, the program's name first.

    Returns:
        Exit code: 0; 1 if `verify` found a difference; 2 after one line on the error
        stream if the input was bad.
    """
    return _run(parse(argv))


def _run(args):
    try:
        code = args.command(args)
    except (OSError, TypeError, ValueError, EdgeTPUCompilerError) as err:
        if args.debug:
            raise
        print(f"tfcompress: {_one_line(err)}", file=sys.stderr)
        return 2
    return code or 0


def _one_line(err):
    return " ".join(str(err).split()) or type(err).__name__


def _parser():
    parser = argparse_flags.ArgumentParser(
        prog="tfcompress",
        description=_DESCRIPTION,
        formatter_class=_Raw,
    )
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of an error"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(function, name, *arguments):
        about = inspect.getdoc(function)
        sub = commands.add_parser(
            name, help=about.splitlines()[0], description=about, formatter_class=_Raw
        )
        for flags, settings in arguments:
            sub.add_argument(*flags, **settings)
        sub.set_defaults(command=function)

    def arg(*flags, **settings):
        return flags, settings

    data = arg("--data", metavar="X.npz", help="arrays x and y")
    command(
        _demo,
        "demo",
        arg("--out", default="demo", help="folder for models and report (demo)"),
        arg("--seed", type=int, default=0, help="seed of weights and order (0)"),
        arg(
            "--quick", action="store_true", help="one epoch of each step: a smoke test"
        ),
    )
    command(_inspect, "inspect", arg("model", help=".tflite or .keras file"))
    command(
        _export,
        "export",
        arg("model", help=".keras file"),
        arg("output", help="file to write: .tflite or .onnx"),
        arg("--kind", choices=KINDS, default="float32", help="of a .tflite (float32)"),
        arg(
            "--io",
            choices=("int8", "uint8", "int16", "float32"),
            help="inputs and outputs of an integer .tflite (integers of the kind)",
        ),
        arg("--data", metavar="X.npz", help="calibration examples: array x"),
        arg(
            "--batch_size",
            type=int,
            help="of a .tflite (1); 0 leaves it open, to be resized on the device",
        ),
        arg("--sparse", action="store_true", help="TFLite's sparse format, of zeros"),
        arg("--labels", metavar="X.txt", help="class names, one a line, to put inside"),
    )
    command(
        _verify,
        "verify",
        arg("model", help=".keras file"),
        arg("file", help=".tflite file that was exported from it"),
        arg("--data", required=True, metavar="X.npz", help="examples: array x"),
        arg("--examples", type=int, default=64, help="how many of them (64)"),
        arg(
            "--no_operations",
            action="store_true",
            help="compare outputs only, not each operation",
        ),
    )
    command(
        _benchmark,
        "benchmark",
        arg("model", help=".tflite file"),
        arg(
            "--threads",
            type=int,
            action="append",
            help="number of threads; may be given several times (1, 2, 4, ...)",
        ),
        arg("--seconds", type=float, default=1.0, help="for each setting (1)"),
    )
    command(
        _prune_channels,
        "prune-channels",
        arg("model", help=".keras file"),
        arg("output", help=".keras file to write"),
        arg("--amount", type=float, help="fraction of the channels to remove"),
        arg(
            "--budget",
            action="append",
            metavar="NAME=LIMIT",
            help="instead: what is left at most; macs, parameters, bytes or latency; "
            "0.5 is a share, 50000 a number; may be given several times",
        ),
        arg("--scope", choices=("layer", "global"), default="layer", help="(layer)"),
        arg("--score", choices=_SCORES_WITHOUT_LOSS, default="l2", help="(l2)"),
        arg("--round_to", type=int, default=1, help="multiple that stays (1)"),
        arg("--data", metavar="X.npz", help="examples for --score=rank: array x"),
    )
    command(
        _quantize,
        "quantize",
        arg("--model", required=True, metavar="X.keras", help="plain model"),
        arg(
            "--data",
            required=True,
            metavar="X.npz",
            help="calibration examples: array x",
        ),
        arg("--config", choices=tuple(PRESETS), default="int8", help="preset (int8)"),
        arg("--output", required=True, metavar="Y.keras", help="file to write"),
        arg(
            "--equalize",
            action="store_true",
            help="give the channels between two layers like ranges first",
        ),
        arg("--rounding", choices=ROUNDINGS, default="nearest", help="(nearest)"),
        arg(
            "--steps", type=int, default=1000, help="of adaround, for each layer (1000)"
        ),
        arg(
            "--correct_bias",
            action="store_true",
            help="give each channel the mean that it has in float",
        ),
    )
    command(
        _debug_quantization,
        "debug-quantization",
        arg(
            "--model",
            required=True,
            metavar="X.keras",
            help="quantization-aware model",
        ),
        arg("--file", metavar="X.tflite", help="file that was exported from it"),
        arg("--data", required=True, metavar="X.npz", help="examples: array x"),
        arg("--examples", type=int, default=64, help="how many of them (64)"),
        arg("--plot", metavar="X.png", help="bar chart to write"),
    )
    command(
        _measure,
        "measure",
        arg("models", nargs="+", help=".tflite or .keras files, the baseline first"),
        data,
    )
    command(_check_edgetpu, "check-edgetpu", arg("model", help=".tflite file"))
    command(
        _compile_edgetpu,
        "compile-edgetpu",
        arg("model", help=".tflite file"),
        arg("--out_dir", help="folder for the result (that of the file)"),
        arg("--compiler", help="path of edgetpu_compiler (the one on PATH)"),
        arg("--timeout", type=int, default=180, help="seconds (180)"),
    )
    command(
        _report,
        "report",
        arg("models", nargs="+", help=".tflite or .keras files, the baseline first"),
        arg("--out", default="report.html", help="HTML file to write (report.html)"),
        data,
    )
    return parser


class _Raw(argparse_flags.argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of descriptions."""


def _demo(args):
    """Prune, distill, quantize, export, check and measure a speech model.

    Trains a keyword-spotting network on spoken digits that ship with the package, with
    two of six speakers held out for the test. Takes about three minutes on two cores.
    """
    settings = demo.Settings(seed=args.seed)
    if args.quick:
        settings = demo.Settings(args.seed, 1, 1, 1, examples=300)
    demo.run(args.out, settings)


def _inspect(args):
    """Show what a file holds: operations, types, kernels.

    Of a .tflite file: each operation with shapes and versions, tensor types, and
    whether it is integers only. Of a .keras file: each kernel with shape and zeros.
    """
    console = Console()
    if args.model.endswith(".tflite"):
        file = read_tflite(args.model)
        rows = [
            (
                str(op.index),
                op.operator,
                str(op.version),
                " ".join(_shape(t) for t in op.inputs if t and not t.constant),
                " ".join(map(_shape, op.outputs)),
            )
            for op in file.operations
        ]
        console.print(_table(["#", "operator", "version", "reads", "writes"], rows))
        types = ", ".join(f"{n} {name}" for name, n in file.tensor_types().items())
        floats = len(file.float_operations())
        console.print(f"{file.bytes:,} bytes; tensors: {types}")
        console.print(
            f"{floats} operation(s) touch a float tensor" if floats else "integers only"
        )
        return
    model = _load(args.model)
    rows = [
        (path, str(tuple(v.shape)), f"{_zeros(v):.1%}")
        for path, v in kernels(model).items()
    ]
    console.print(_table(["kernel", "shape", "zeros"], rows))
    console.print(f"{model.count_params():,} parameters in {model.name!r}")


def _shape(tensor):
    return f"{tensor.dtype.lower()}{list(tensor.shape)}"


def _zeros(variable):
    array = variable.numpy()
    return 1 - np.count_nonzero(array) / array.size


def _export(args):
    """Convert a .keras file to .tflite or .onnx, and check the result.

    A quantization-aware model needs no data. A plain one needs calibration examples for
    --kind=int8, int4 and int16x8.
    """
    suffix = pathlib.Path(args.output).suffix
    if suffix not in (".tflite", ".onnx"):
        raise ValueError(f"The output must be a .tflite or .onnx file: {args.output!r}")
    model = _load(args.model)
    if suffix == ".onnx":
        others = (args.data, args.sparse, args.labels, args.batch_size is not None)
        if any(others) or args.kind != "float32":
            raise ValueError(
                "An .onnx file takes none of --kind, --data, --batch_size, --sparse "
                "and --labels: a quantization-aware model becomes integer by itself."
            )
        result = export_onnx(model, args.output)
        print(f"{result.path}: {result.bytes:,} bytes ({result.gzip_bytes:,} gzip)")
        return
    data = None if args.data is None else _arrays(args.data)["x"]
    print(
        export_tflite(
            model,
            args.output,
            kind=args.kind,
            io=args.io,
            calibration_data=data,
            batch_size=1 if args.batch_size is None else args.batch_size or None,
            sparse=args.sparse,
            metadata=None if args.labels is None else _labelled(model, args.labels),
        )
    )


def _labelled(model, path):
    """Metadata of a model with one output, whose labels are the lines of a file."""
    labels = pathlib.Path(path).read_text().splitlines()
    return Metadata(name=model.name, outputs=[TensorMetadata(labels=labels)])


def _verify(args):
    """Compare a .tflite file with its model, in every runtime and each operation.

    Exits with 1 if an output is too far off.
    """
    result = verify(
        _load(args.model),
        args.file,
        _arrays(args.data)["x"],
        examples=args.examples,
        operations=not args.no_operations,
    )
    print(result)
    return 0 if result.ok else 1


def _benchmark(args):
    """Time, memory and energy of a .tflite file on this machine.

    With and without XNNPACK, by number of threads; and which operations are slow.
    """
    print(benchmark(args.model, threads=args.threads, seconds=args.seconds))


def _quantize(args):
    """Make a .keras model quantization-aware, calibrated and ready to train or export.

    The result rounds as its integer file will. Train it further in Python, or export
    it as it is; then --equalize, --rounding=adaround and --correct_bias help.
    """
    _check_output(args.output)
    model = _load(args.model)
    model = quantize_post_training(
        equalize(model) if args.equalize else model,
        _arrays(args.data)["x"],
        args.config,
        rounding=args.rounding,
        correct_bias=args.correct_bias,
        steps=args.steps,
    )
    _save(model, args.output)
    count = len(find_layers(model, TransformWeights))
    print(f"{args.output}: {args.config}, {count} layers with rounded weights")


def _prune_channels(args):
    """Remove the channels of a model that matter least; train the result afterwards.

    Channels that depend on each other go together. The report says how many each layer
    has left, and what keeps those that stay.
    """
    _check_output(args.output)
    small, report = prune_channels(
        _load(args.model),
        args.amount,
        budget=None if args.budget is None else dict(map(_limit, args.budget)),
        scope=args.scope,
        score=args.score,
        round_to=args.round_to,
        data=None if args.data is None else _arrays(args.data)["x"],
        return_report=True,
    )
    _save(small, args.output)
    print(f"{report}\n{args.output}: written")


def _limit(text):
    """`("macs", 0.5)` from "macs=0.5"; a number without a point is an int."""
    name, _, value = text.partition("=")
    try:
        return name, int(value) if value.isdigit() else float(value)
    except ValueError:
        raise ValueError(
            f"--budget takes NAME=LIMIT, for example macs=0.5. Received: {text!r}"
        ) from None


def _check_output(path):
    if not path.endswith(".keras"):
        raise ValueError(f"The output must be a .keras file: {path!r}")
    check_writable(path)


def _save(model, path):
    # Keras insists on the suffix, which the temporary file does not have.
    with tempfile.TemporaryDirectory() as folder:
        saved = pathlib.Path(folder, "model.keras")
        model.save(saved)
        with written_atomically(path) as temporary:
            temporary.write_bytes(saved.read_bytes())


def _debug_quantization(args):
    """Say which layer of a quantization-aware model loses most by rounding.

    Ranks layers by the noise that each adds by itself, in dB below its signal, and
    compares what the model computes with what the file does.
    """
    print(
        debug_quantization(
            _load(args.model),
            args.file,
            _arrays(args.data)["x"],
            examples=args.examples,
            plot=args.plot,
        )
    )


def _measure(args):
    """Size, work, time and accuracy of files, side by side.

    The first file is the baseline of the ratios.
    """
    header, *rows = table(_measured(args))
    Console().print(_table(header, rows))


def _report(args):
    """Write an HTML report with plots; the first file is the baseline."""
    check_writable(args.out)
    written = report(_measured(args), args.out)
    print("\n".join((written.path, *written.plots)))


def _measured(args):
    arrays = {} if args.data is None else _arrays(args.data)
    data = (arrays["x"], arrays["y"]) if "y" in arrays else arrays.get("x")
    return [
        measure(
            path if path.endswith(".tflite") else _load(path),
            data,
            name=pathlib.Path(path).name,
        )
        for path in tracked(args.models, "Measuring", total=len(args.models))
    ]


def _check_edgetpu(args):
    """Say which operations of an int8 file the Edge TPU compiler will map, and why not.

    Needs no compiler. Rows marked ? are not settled by documentation or known runs.
    """
    print(check_edgetpu(args.model))


def _compile_edgetpu(args):
    """Run Google's edgetpu_compiler and verify what it wrote.

    The compiler must be installed (x86-64 Linux); the error says how to get it.
    """
    with Console(stderr=True).status("Running edgetpu_compiler"):
        result = compile_edgetpu(
            args.model, args.out_dir, compiler=args.compiler, timeout_sec=args.timeout
        )
    print(f"{result.path}: {result.mapped_count} mapped, {result.cpu_count} on the CPU")


def _table(header, rows):
    table = Table(*header, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table


def _load(path):
    if not os.path.isfile(path):
        raise FileNotFoundError(f"No such model file: {path!r}")
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as err:
        raise ValueError(
            f"Cannot load {path!r} as a Keras 3 model: {_one_line(err)[:300]}"
        ) from err


def _arrays(path):
    if not os.path.isfile(path):
        raise FileNotFoundError(f"No such data file: {path!r}")
    try:
        with np.load(path) as file:
            arrays = dict(file)
    except Exception as err:
        raise ValueError(f"Cannot read {path!r} as .npz: {err}") from err
    if "x" not in arrays:
        raise ValueError(f"{path!r} needs an array `x`. Received: {sorted(arrays)}")
    return arrays


if __name__ == "__main__":
    main()
