"""Commands that say what a model or a file is, costs and computes."""

import pathlib

import numpy as np
from rich.console import Console

from tfcompress.benchmark import benchmark
from tfcompress.cli.arguments import arg
from tfcompress.cli.data import load_arrays, load_labelled, printed_table
from tfcompress.debug import debug_quantization
from tfcompress.deploy.edgetpu_check import check_edgetpu
from tfcompress.deploy.files import check_writable, written_atomically
from tfcompress.deploy.opencv import check_opencv
from tfcompress.deploy.tflite_file import read_tflite
from tfcompress.graph import kernels
from tfcompress.legacy import load_model
from tfcompress.measure import measure
from tfcompress.progress import tracked
from tfcompress.report import report, table
from tfcompress.sensitivity import sensitivity
from tfcompress.verify import verify


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
        console.print(
            printed_table(["#", "operator", "version", "reads", "writes"], rows)
        )
        types = ", ".join(f"{n} {name}" for name, n in file.tensor_types().items())
        floats = len(file.float_operations())
        console.print(f"{file.bytes:,} bytes; tensors: {types}")
        console.print(
            f"{floats} operation(s) touch a float tensor" if floats else "integers only"
        )
        return
    model = load_model(args.model)
    rows = [
        (path, str(tuple(v.shape)), f"{_zeros(v):.1%}")
        for path, v in kernels(model).items()
    ]
    console.print(printed_table(["kernel", "shape", "zeros"], rows))
    console.print(f"{model.count_params():,} parameters in {model.name!r}")


def _shape(tensor):
    return f"{tensor.dtype.lower()}{list(tensor.shape)}"


def _zeros(variable):
    array = variable.numpy()
    return 1 - np.count_nonzero(array) / array.size


def _verify(args):
    """Compare a .tflite file with its model, in every runtime and each operation.

    Exits with 1 if an output is too far off.
    """
    result = verify(
        load_model(args.model),
        args.file,
        load_arrays(args.data)["x"],
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


def _sensitivity(args):
    """Prune one kernel of a model at a time, and measure the accuracy that is left.

    The first thing to know before pruning: which layers bear it. --total adds the
    sparsity of each kernel, for `tfc.Rule`, with which all together have that share of
    zeros.
    """
    if args.plot is not None:
        check_writable(args.plot)
    found = sensitivity(load_model(args.model), load_labelled(args.data))
    print(found)
    if args.total is not None:
        print(f"\nFor {args.total:.0%} zeros:")
        for rule in found.rules(args.total):
            print(f"  {rule}")
    if args.plot is not None:
        with written_atomically(args.plot) as temporary:
            temporary.write_bytes(found.plot())


def _debug_quantization(args):
    """Say which layer of a quantization-aware model loses most by rounding.

    Ranks layers by the noise that each adds by itself, in dB below its signal, and
    compares what the model computes with what the file does.
    """
    print(
        debug_quantization(
            load_model(args.model),
            args.file,
            load_arrays(args.data)["x"],
            examples=args.examples,
            plot=args.plot,
        )
    )


def _measure(args):
    """Size, work, time and accuracy of files, side by side.

    The first file is the baseline of the ratios.
    """
    header, *rows = table(_measured(args))
    Console().print(printed_table(header, rows))


def _report(args):
    """Write an HTML report with plots; the first file is the baseline."""
    check_writable(args.out)
    written = report(_measured(args), args.out)
    print("\n".join((written.path, *written.plots)))


def _measured(args):
    arrays = {} if args.data is None else load_arrays(args.data)
    data = (arrays["x"], arrays["y"]) if "y" in arrays else arrays.get("x")
    return [
        measure(
            path if path.endswith(".tflite") else load_model(path),
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


def _check_opencv(args):
    """Say which engine of OpenCV's cv2.dnn runs an .onnx file, and how far off it is.

    OpenCV must be installed: pip install 'tfcompress[opencv]'. A file that neither
    engine computes as ONNX Runtime does is an error.
    """
    inputs = None if args.data is None else [load_arrays(args.data)["x"]]
    print(check_opencv(args.model, inputs, threads=args.threads, repeats=args.repeats))


# Function, name and arguments of each.
COMMANDS = (
    (
        _inspect,
        "inspect",
        arg("model", help=".tflite or .keras file"),
    ),
    (
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
    ),
    (
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
    ),
    (
        _sensitivity,
        "sensitivity",
        arg("model", help=".keras file"),
        arg("--data", required=True, metavar="X.npz", help="arrays x and y"),
        arg("--total", type=float, help="also say how far each goes for this sparsity"),
        arg("--plot", metavar="S.png", help="draw the curves"),
    ),
    (
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
    ),
    (
        _measure,
        "measure",
        arg("models", nargs="+", help=".tflite or .keras files, the baseline first"),
        arg("--data", metavar="X.npz", help="arrays x and y"),
    ),
    (
        _report,
        "report",
        arg("models", nargs="+", help=".tflite or .keras files, the baseline first"),
        arg("--out", default="report.html", help="HTML file to write (report.html)"),
        arg("--data", metavar="X.npz", help="arrays x and y"),
    ),
    (
        _check_edgetpu,
        "check-edgetpu",
        arg("model", help=".tflite file"),
    ),
    (
        _check_opencv,
        "check-opencv",
        arg("model", help=".onnx file with one input, or any without --data"),
        arg("--data", metavar="X.npz", help="examples: array x (random values)"),
        arg("--threads", type=int, default=1, help="of OpenCV (1)"),
        arg("--repeats", type=int, default=20, help="inferences to time (20)"),
    ),
)
