"""The `tfcompress` command: what the library does, from a shell."""

import inspect
import os
import pathlib
import sys

import numpy as np
from absl import app
from absl.flags import argparse_flags
from rich.console import Console
from rich.table import Table

from tfcompress import demo
from tfcompress.benchmark import benchmark
from tfcompress.debug import debug_quantization
from tfcompress.deploy.android import export_android
from tfcompress.deploy.c_array import export_c_array
from tfcompress.deploy.edgetpu_check import check_edgetpu
from tfcompress.deploy.edgetpu_compile import EdgeTPUCompilerError, compile_edgetpu
from tfcompress.deploy.ethosu import (
    ACCELERATORS,
    MEMORY_MODES,
    EthosUCompilerError,
    compile_ethosu,
)
from tfcompress.deploy.files import check_writable, save_keras, written_atomically
from tfcompress.deploy.metadata import Metadata, TensorMetadata
from tfcompress.deploy.onnx import export_onnx
from tfcompress.deploy.pack import pack, unpack
from tfcompress.deploy.tflite import TARGETS, export_tflite
from tfcompress.deploy.tflite_file import read_tflite
from tfcompress.deploy.tflite_kinds import KINDS
from tfcompress.graph import find_layers, kernels
from tfcompress.layers import TransformWeights
from tfcompress.legacy import from_tfmot, load_model
from tfcompress.measure import measure
from tfcompress.numerics.centroids import STARTS
from tfcompress.passes.channel_scores import SCORES
from tfcompress.passes.cluster import cluster
from tfcompress.passes.equalize import equalize
from tfcompress.passes.post_training import ROUNDINGS, quantize_post_training
from tfcompress.passes.quantization_config import PRESETS
from tfcompress.passes.strip import strip
from tfcompress.progress import tracked
from tfcompress.prune_channels import prune_channels
from tfcompress.recipes import Recipe
from tfcompress.report import report, table
from tfcompress.sensitivity import sensitivity
from tfcompress.verify import verify

_DESCRIPTION = """Compress Keras 3 models and check what came of it.

  tfcompress demo                              the whole journey on real speech
  tfcompress compress --model=model.keras --recipe=edge-int8 --data=train.npz --out=dir
  tfcompress export model.keras model.tflite --kind=int8 --data=calibration.npz
  tfcompress prune-channels model.keras small.keras --budget macs=0.5
  tfcompress sensitivity model.keras --data=test.npz --total=0.8
  tfcompress cluster model.keras shared.keras --clusters=16
  tfcompress quantize --model=model.keras --data=calibration.npz --output=qat.keras
  tfcompress debug-quantization --model=qat.keras --file=int8.tflite --data=test.npz
  tfcompress verify model.keras model.tflite --data=test.npz
  tfcompress benchmark model.tflite
  tfcompress measure float.tflite int8.tflite --data=test.npz
  tfcompress check-edgetpu int8.tflite
  tfcompress pack int8.tflite int8.tfcpack
  tfcompress unpack int8.tfcpack int8.tflite
  tfcompress compile-ethosu int8.tflite --accelerator=ethos-u55-128
      --memory_mode=Shared_Sram
  tfcompress export-c-array int8.tflite firmware/src
  tfcompress export-android int8.tflite app --package=com.example.digits

Data are .npz files with an array `x` (one row an example) and, where labels are
needed, `y`. `tfcompress COMMAND --help` explains a command."""

# A file that is loaded without its loss has no gradients to score by.
_SCORES_WITHOUT_LOSS = tuple(sorted(set(SCORES) - {"taylor"}))


# What the user can do something about.
_REPORTED = (OSError, TypeError, ValueError, EdgeTPUCompilerError, EthosUCompilerError)


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
    except _REPORTED as err:
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
    command(
        _compress,
        "compress",
        arg("--model", required=True, metavar="X.keras", help="trained model"),
        arg(
            "--recipe",
            required=True,
            metavar="R",
            help=f"a .yaml or .json file, or a preset: {', '.join(Recipe.presets())}",
        ),
        arg(
            "--data",
            required=True,
            metavar="X.npz",
            help="training examples: arrays x and y",
        ),
        arg("--out", required=True, metavar="DIR", help="folder for all of it"),
        arg("--test_data", metavar="Y.npz", help="arrays x and y for the accuracy"),
        arg("--teacher", metavar="T.keras", help="for distill (the model itself)"),
        arg("--loss", metavar="NAME", help="Keras loss (that of the compiled model)"),
        arg("--seed", type=int, default=0, help="seed of every stage (0)"),
    )
    command(
        _recipe,
        "recipe",
        arg(
            "name",
            nargs="?",
            help=f"preset to show: {', '.join(Recipe.presets())}",
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
        arg("--target", choices=TARGETS, help="operator versions of that compiler"),
        arg(
            "--batch_size",
            type=int,
            help="of a .tflite (1); 0 leaves it open, to be resized on the device",
        ),
        arg("--sparse", action="store_true", help="TFLite's sparse format, of zeros"),
        arg("--labels", metavar="X.txt", help="class names, one a line, to put inside"),
        arg(
            "--allow_float",
            metavar="PATTERN",
            action="append",
            default=[],
            help="layer that may stay float in an integer file; may be given several "
            "times",
        ),
        arg("--opset", type=int, default=17, help="of an .onnx file: 13 to 18 (17)"),
    )
    command(
        _from_tfmot,
        "from-tfmot",
        arg("model", help=".h5 file of tf_keras, TFMOT's wrappers included"),
        arg("output", help=".keras file to write"),
        arg("--data", metavar="X.npz", help="calibration examples: array x"),
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
        _sensitivity,
        "sensitivity",
        arg("model", help=".keras file"),
        arg("--data", required=True, metavar="X.npz", help="arrays x and y"),
        arg("--total", type=float, help="also say how far each goes for this sparsity"),
        arg("--plot", metavar="S.png", help="draw the curves"),
    )
    command(
        _cluster,
        "cluster",
        arg("model", help=".keras file"),
        arg("output", help=".keras file to write"),
        arg("--clusters", type=int, default=16, help="values a kernel, with zero (16)"),
        arg("--start", choices=STARTS, default="kmeans++", help="(kmeans++)"),
        arg("--per_channel", action="store_true", help="a codebook for each channel"),
        arg("--plain", action="store_true", help="of Keras' own layers, no codebooks"),
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
        arg("models", nargs="+", help=".tflite files; several are compiled together"),
        arg("--out_dir", help="folder for the result (that of the file)"),
        arg("--compiler", help="path of edgetpu_compiler (the one on PATH)"),
        arg("--container", help="docker image that has edgetpu_compiler"),
        arg("--min_runtime_version", type=int, help="oldest runtime (14)"),
        arg("--num_segments", type=int, help="parts, for as many Edge TPUs"),
        arg("--intermediate_tensors", help="where to stop: names, comma between"),
        arg("--search_delegate", action="store_true", help="leave the end on the CPU"),
        arg("--delegate_search_step", type=int, help="operations a try (1)"),
        arg("--multiple_subgraphs", action="store_true", help="experimental"),
        arg("--timeout", type=int, default=180, help="seconds for each try (180)"),
        arg("--total_timeout", type=int, help="seconds for all tries together"),
    )
    command(
        _pack,
        "pack",
        arg("model", help=".tflite or .keras file"),
        arg("output", help="container to write"),
    )
    command(
        _unpack,
        "unpack",
        arg("packed", help="container that `tfcompress pack` wrote"),
        arg("output", help="file to write, with the suffix that it had"),
    )
    command(
        _compile_ethosu,
        "compile-ethosu",
        arg("model", help=".tflite file of integers"),
        arg("--accelerator", required=True, choices=ACCELERATORS, help="the NPU"),
        arg(
            "--memory_mode",
            required=True,
            help=f"what lies where: {', '.join(MEMORY_MODES)}, or one of --config",
        ),
        arg("--system_config", help="clock and memories (Arm's of the NPU's family)"),
        arg("--config", metavar="X.ini", help="Vela configuration (Arm's)"),
        arg("--out_dir", help="folder for the result (that of the file)"),
        arg("--timeout", type=int, default=300, help="seconds (300)"),
    )
    command(
        _export_c_array,
        "export-c-array",
        arg("model", help=".tflite file"),
        arg("output", help="an existing folder, or a file ending in .c, .cc or .cpp"),
        arg("--name", help="of the array (that of the file)"),
        arg("--alignment", type=int, default=16, help="bytes (16)"),
        arg(
            "--no_resolver",
            action="store_true",
            help="leave out the operators and arena of TFLite Micro",
        ),
    )
    command(
        _export_android,
        "export-android",
        arg("model", help=".tflite or .keras file"),
        arg("output", help="folder to write to"),
        arg("--package", required=True, help="Kotlin package: com.example.digits"),
        arg("--name", help="of asset and class (that of the file)"),
        arg("--labels", metavar="X.txt", help="names of the classes, one a line"),
        arg("--mean", type=float, help="subtracted from inputs, with --std"),
        arg("--std", type=float, help="inputs are divided by it"),
        arg("--kind", choices=KINDS, default="float32", help="of a .keras (float32)"),
        arg("--data", metavar="X.npz", help="calibration examples: array x"),
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
    two of six speakers held out for the test. Takes about four minutes on two cores.
    """
    settings = demo.Settings(seed=args.seed)
    if args.quick:
        settings = demo.Settings(args.seed, 1, 1, 1, examples=300)
    demo.run(args.out, settings)


def _compress(args):
    """Run a recipe: its passes, its training, its files, one report at the end.

    Each stage leaves its model and its report in the folder. The same command after a
    kill goes on where it was; stages that are done are not done again.
    """
    suffix = pathlib.Path(args.recipe).suffix
    recipe = (Recipe.load if suffix else Recipe.preset)(args.recipe)
    result = recipe.run(
        load_model(args.model, compile=args.loss is None),
        _labelled(args.data),
        args.out,
        test_data=None if args.test_data is None else _labelled(args.test_data),
        teacher=None if args.teacher is None else load_model(args.teacher),
        loss=args.loss,
        seed=args.seed,
        say=print,
    )
    print(f"\n{result}")


def _recipe(args):
    """Show a preset recipe as YAML, to read, copy and change.

    Without a name: what each preset is for.
    """
    if args.name is not None:
        print(Recipe.preset_text(args.name), end="")
        return
    rows = [(name, Recipe.preset(name).about) for name in Recipe.presets()]
    Console().print(_table(["preset", "what it makes"], rows))


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
    model = load_model(args.model)
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
    model = load_model(args.model)
    if suffix == ".onnx":
        others = (args.data, args.sparse, args.labels, args.io, args.target)
        others += (args.allow_float,)
        if any(others) or args.batch_size is not None or args.kind != "float32":
            raise ValueError(
                "An .onnx file takes none of --kind, --io, --data, --target, "
                "--batch_size, --sparse, --labels and --allow_float: a "
                "quantization-aware model becomes integer by itself."
            )
        result = export_onnx(model, args.output, opset=args.opset)
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
            target=args.target,
            batch_size=1 if args.batch_size is None else args.batch_size or None,
            sparse=args.sparse,
            allow_float=args.allow_float,
            metadata=None if args.labels is None else _with_labels(model, args.labels),
        )
    )


def _from_tfmot(args):
    """Turn a tf_keras model, TFMOT's wrappers included, into a Keras 3 file.

    A quantization-aware one keeps its ranges and grids; --data gives ranges to the
    activations that TFMOT does not round and TFLite must.
    """
    _check_output(args.output)
    data = None if args.data is None else _arrays(args.data)["x"]
    model, report = from_tfmot(args.model, calibration_data=data, return_report=True)
    save_keras(model, args.output)
    print(f"{args.output}: written" if report is None else f"{report}")


def _with_labels(model, path):
    """Metadata of a model with one output, whose labels are the lines of a file."""
    labels = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    return Metadata(name=model.name, outputs=[TensorMetadata(labels=labels)])


def _verify(args):
    """Compare a .tflite file with its model, in every runtime and each operation.

    Exits with 1 if an output is too far off.
    """
    result = verify(
        load_model(args.model),
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
    model = load_model(args.model)
    model = quantize_post_training(
        equalize(model) if args.equalize else model,
        _arrays(args.data)["x"],
        args.config,
        rounding=args.rounding,
        correct_bias=args.correct_bias,
        steps=args.steps,
    )
    save_keras(model, args.output)
    count = len(find_layers(model, TransformWeights))
    print(f"{args.output}: {args.config}, {count} layers with rounded weights")


def _cluster(args):
    """Let each kernel of a model have few different values; train it afterwards.

    Compressed, files of it are smaller: see `tfcompress pack`. `tfcompress quantize`
    keeps the values. With --plain the result has Keras' own layers and the values, but
    forgets them when it is trained.
    """
    _check_output(args.output)
    model = cluster(
        load_model(args.model),
        args.clusters,
        start=args.start,
        per_channel=args.per_channel,
    )
    count = len(find_layers(model, TransformWeights))
    save_keras(strip(model) if args.plain else model, args.output)
    print(f"{args.output}: {count} layers with {args.clusters} values a codebook")


def _pack(args):
    """Put a .tflite or .keras file into a small container, without loss.

    For delivery over the air: `tfcompress unpack` restores the very same file.
    """
    print(pack(args.model, args.output))


def _unpack(args):
    """Restore the file of a container, byte by byte, and check its hash.

    A container that is damaged, cut off or of another version is an error, and an old
    file stays.
    """
    result = unpack(args.packed, args.output)
    print(f"{result.path}: {result.bytes:,} bytes, SHA-256 {result.sha256}")


def _prune_channels(args):
    """Remove the channels of a model that matter least; train the result afterwards.

    Channels that depend on each other go together. The report says how many each layer
    has left, and what keeps those that stay.
    """
    _check_output(args.output)
    small, report = prune_channels(
        load_model(args.model),
        args.amount,
        budget=None if args.budget is None else dict(map(_limit, args.budget)),
        scope=args.scope,
        score=args.score,
        round_to=args.round_to,
        data=None if args.data is None else _arrays(args.data)["x"],
        return_report=True,
    )
    save_keras(small, args.output)
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


def _sensitivity(args):
    """Prune one kernel of a model at a time, and measure the accuracy that is left.

    The first thing to know before pruning: which layers bear it. --total adds the
    sparsity of each kernel, for `tfc.Rule`, with which all together have that share of
    zeros.
    """
    if args.plot is not None:
        check_writable(args.plot)
    found = sensitivity(load_model(args.model), _labelled(args.data))
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


def _compile_edgetpu(args):
    """Run Google's edgetpu_compiler and verify what it wrote.

    The compiler must be installed (x86-64 Linux); the error says how to get it.
    """
    names = args.intermediate_tensors
    with Console(stderr=True).status("Running edgetpu_compiler"):
        results = compile_edgetpu(
            args.models,
            args.out_dir,
            compiler=args.compiler,
            container=args.container,
            min_runtime_version=args.min_runtime_version,
            num_segments=args.num_segments,
            intermediate_tensors=None if names is None else names.split(","),
            search_delegate=args.search_delegate,
            delegate_search_step=args.delegate_search_step,
            multiple_subgraphs=args.multiple_subgraphs,
            timeout_sec=args.timeout,
            total_timeout_sec=args.total_timeout,
        )
    for result in results:
        counts = f"{result.mapped_count} mapped, {result.cpu_count} on the CPU"
        print("\n".join([f"{result.path}: {counts}", *result.warnings]))


def _compile_ethosu(args):
    """Compile an integer .tflite file for an Arm Ethos-U NPU with Vela.

    Vela must be installed: pip install 'tfcompress[ethosu]'. A file of which nothing
    lands on the NPU is an error.
    """
    with Console(stderr=True).status("Running Vela"):
        result = compile_ethosu(
            args.model,
            args.out_dir,
            accelerator=args.accelerator,
            memory_mode=args.memory_mode,
            system_config=args.system_config,
            config=args.config,
            timeout_sec=args.timeout,
        )
    print(result)


def _export_c_array(args):
    """Write a .tflite file as C source with a header, for microcontrollers.

    A second header registers the operators with TFLite Micro and holds the size of its
    tensor arena, measured where the extra `micro` is installed.
    """
    print(
        export_c_array(
            args.model,
            args.output,
            name=args.name,
            alignment=args.alignment,
            resolver=not args.no_resolver,
        )
    )


def _export_android(args):
    """Write the asset, labels and a Kotlin class that runs a model with LiteRT.

    The class normalizes, quantizes and dequantizes as the model needs it. The folder's
    README_NAME.md has the Gradle lines.
    """
    if (args.mean is None) != (args.std is None):
        raise ValueError("--mean and --std go together.")
    labels = args.labels and pathlib.Path(args.labels).read_text("utf-8").splitlines()
    result = export_android(
        args.model if args.model.endswith(".tflite") else load_model(args.model),
        args.output,
        package=args.package,
        name=args.name,
        labels=labels,
        normalization=None if args.mean is None else (args.mean, args.std),
        kind=args.kind,
        calibration_data=None if args.data is None else _arrays(args.data)["x"],
    )
    print("\n".join(filter(None, (result.asset_path, result.labels_path))))
    print(f"{result.kotlin_path}\n{result.readme_path}")


def _table(header, rows):
    table = Table(*header, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table


def _labelled(path):
    arrays = _arrays(path)
    if "y" not in arrays:
        raise ValueError(f"{path!r} needs an array `y` too. Received: {sorted(arrays)}")
    return arrays["x"], arrays["y"]


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
