"""The program behind the commands: parses, runs, and says in one line what is wrong."""

import inspect
import sys

from absl import app
from absl.flags import argparse_flags

from tfcompress.cli import figures, files, models
from tfcompress.deploy.edgetpu_compile import EdgeTPUCompilerError
from tfcompress.deploy.ethosu import EthosUCompilerError

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
  tfcompress check-opencv model.onnx
  tfcompress pack int8.tflite int8.tfcpack
  tfcompress unpack int8.tfcpack int8.tflite
  tfcompress compile-ethosu int8.tflite --accelerator=ethos-u55-128
      --memory_mode=Shared_Sram
  tfcompress export-c-array int8.tflite firmware/src
  tfcompress export-android int8.tflite app --package=com.example.digits

Data are .npz files with an array `x` (one row an example) and, where labels are
needed, `y`. `tfcompress COMMAND --help` explains a command."""

# What the user can do something about.
_REPORTED = (
    OSError,
    TypeError,
    ValueError,
    ImportError,
    EdgeTPUCompilerError,
    EthosUCompilerError,
)


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
    for module in (models, files, figures):
        for function, name, *arguments in module.COMMANDS:
            about = inspect.getdoc(function)
            sub = commands.add_parser(
                name,
                help=about.splitlines()[0],
                description=about,
                formatter_class=_Raw,
            )
            for flags, settings in arguments:
                sub.add_argument(*flags, **settings)
            sub.set_defaults(command=function)
    return parser


class _Raw(argparse_flags.argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of descriptions."""
