"""Commands that make files: exported, packed, compiled, with code around them."""

import pathlib

from rich.console import Console

from tfcompress.cli.arguments import arg
from tfcompress.cli.data import load_arrays
from tfcompress.deploy.android import export_android
from tfcompress.deploy.c_array import export_c_array
from tfcompress.deploy.edgetpu_compile import compile_edgetpu
from tfcompress.deploy.ethosu import ACCELERATORS, MEMORY_MODES, compile_ethosu
from tfcompress.deploy.metadata import Metadata, TensorMetadata
from tfcompress.deploy.onnx import export_onnx
from tfcompress.deploy.pack import pack, unpack
from tfcompress.deploy.tflite import TARGETS, export_tflite
from tfcompress.deploy.tflite_kinds import KINDS
from tfcompress.legacy import load_model


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
        if any(others) or args.kind != "float32":
            raise ValueError(
                "An .onnx file takes none of --kind, --io, --data, --target, --sparse, "
                "--labels and --allow_float: a quantization-aware model becomes "
                "integer by itself."
            )
        result = export_onnx(
            model, args.output, opset=args.opset, batch_size=args.batch_size or None
        )
        print(f"{result.path}: {result.bytes:,} bytes ({result.gzip_bytes:,} gzip)")
        return
    data = None if args.data is None else load_arrays(args.data)["x"]
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


def _with_labels(model, path):
    """Metadata of a model with one output, whose labels are the lines of a file."""
    labels = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    return Metadata(name=model.name, outputs=[TensorMetadata(labels=labels)])


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
        calibration_data=None if args.data is None else load_arrays(args.data)["x"],
    )
    print("\n".join(filter(None, (result.asset_path, result.labels_path))))
    print(f"{result.kotlin_path}\n{result.readme_path}")


# Function, name and arguments of each.
COMMANDS = (
    (
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
            help="of a .tflite (1) or .onnx (open); 0 leaves it open",
        ),
        arg("--sparse", action="store_true", help="TFLite's sparse format, of zeros"),
        arg("--labels", metavar="X.txt", help="class names, one a line, to put inside"),
        arg(
            "--allow_float",
            metavar="PATTERN",
            action="append",
            default=[],
            help="operator, as TFLite names it (CUMSUM), that may stay float in an "
            "integer file: a regular expression; may be given several times",
        ),
        arg("--opset", type=int, default=17, help="of an .onnx file: 13 to 18 (17)"),
    ),
    (
        _pack,
        "pack",
        arg("model", help=".tflite or .keras file"),
        arg("output", help="container to write"),
    ),
    (
        _unpack,
        "unpack",
        arg("packed", help="container that `tfcompress pack` wrote"),
        arg("output", help="file to write, with the suffix that it had"),
    ),
    (
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
    ),
    (
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
    ),
    (
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
    ),
    (
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
    ),
)
