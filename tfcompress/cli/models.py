"""Commands that make models: trained, quantized, pruned, clustered."""

import pathlib

from rich.console import Console

from tfcompress import demo
from tfcompress.cli.arguments import arg
from tfcompress.cli.data import check_output, load_arrays, load_labelled, printed_table
from tfcompress.deploy.files import save_keras
from tfcompress.graph import find_layers
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
from tfcompress.prune_channels import prune_channels
from tfcompress.quantize_to_accuracy import quantize_to_accuracy
from tfcompress.recipes import Recipe

# A file that is loaded without its loss has no gradients to score by.
_SCORES_WITHOUT_LOSS = tuple(sorted(set(SCORES) - {"taylor"}))


def _demo(args):
    """Prune, distill, quantize, export, check and measure a speech model.

    Trains a keyword-spotting network on spoken digits that ship with the package, with
    two of six speakers held out for the test. Takes about four minutes on two cores.
    """
    settings = demo.Settings(seed=args.seed)
    if args.quick:
        settings = demo.Settings(args.seed, 1, 1, 1, 1, examples=300)
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
        load_labelled(args.data),
        args.out,
        test_data=None if args.test_data is None else load_labelled(args.test_data),
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
    Console().print(printed_table(["preset", "what it makes"], rows))


def _from_tfmot(args):
    """Turn a tf_keras model, TFMOT's wrappers included, into a Keras 3 file.

    A quantization-aware one keeps its ranges and grids; --data gives ranges to the
    activations that TFMOT does not round and TFLite must.
    """
    check_output(args.output)
    data = None if args.data is None else load_arrays(args.data)["x"]
    model, report = from_tfmot(args.model, calibration_data=data, return_report=True)
    save_keras(model, args.output)
    print(f"{args.output}: written" if report is None else f"{report}")


def _prune_channels(args):
    """Remove the channels of a model that matter least; train the result afterwards.

    Channels that depend on each other go together. The report says how many each layer
    has left, and what keeps those that stay.
    """
    check_output(args.output)
    small, report = prune_channels(
        load_model(args.model),
        args.amount,
        budget=None if args.budget is None else dict(map(_limit, args.budget)),
        scope=args.scope,
        score=args.score,
        round_to=args.round_to,
        data=None if args.data is None else load_arrays(args.data)["x"],
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


def _cluster(args):
    """Let each kernel of a model have few different values; train it afterwards.

    Compressed, files of it are smaller: see `tfcompress pack`. `tfcompress quantize`
    keeps the values. With --plain the result has Keras' own layers and the values, but
    forgets them when it is trained.
    """
    check_output(args.output)
    model = cluster(
        load_model(args.model),
        args.clusters,
        start=args.start,
        per_channel=args.per_channel,
    )
    count = len(find_layers(model, TransformWeights))
    save_keras(strip(model) if args.plain else model, args.output)
    print(f"{args.output}: {count} layers with {args.clusters} values a codebook")


def _quantize(args):
    """Make a .keras model quantization-aware, calibrated and ready to train or export.

    The result rounds as its integer file will. Train it further in Python, or export
    it as it is; then --equalize, --rounding=adaround and --correct_bias help. With
    --allowed_drop the layers that lose most stay float until the accuracy on
    --test_data is no further below the float model's: export the result with
    --allow_float='.*'.
    """
    check_output(args.output)
    if (args.allowed_drop is None) != (args.test_data is None):
        raise ValueError("--allowed_drop and --test_data go together.")
    model = load_model(args.model)
    model = equalize(model) if args.equalize else model
    data = load_arrays(args.data)["x"]
    settings = {
        "config": args.config,
        "rounding": args.rounding,
        "correct_bias": args.correct_bias,
        "steps": args.steps,
    }
    if args.allowed_drop is None:
        model = quantize_post_training(model, data, **settings)
    else:
        tested = load_labelled(args.test_data)
        model, report = quantize_to_accuracy(
            model,
            data,
            lambda candidate: measure(candidate, tested).accuracy,
            allowed_drop=args.allowed_drop,
            return_report=True,
            **settings,
        )
        print(report)
    save_keras(model, args.output)
    count = len(find_layers(model, TransformWeights))
    print(f"{args.output}: {args.config}, {count} layers with rounded weights")


# Function, name and arguments of each.
COMMANDS = (
    (
        _demo,
        "demo",
        arg("--out", default="demo", help="folder for models and report (demo)"),
        arg("--seed", type=int, default=0, help="seed of weights and order (0)"),
        arg(
            "--quick", action="store_true", help="one epoch of each step: a smoke test"
        ),
    ),
    (
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
    ),
    (
        _recipe,
        "recipe",
        arg(
            "name",
            nargs="?",
            help=f"preset to show: {', '.join(Recipe.presets())}",
        ),
    ),
    (
        _from_tfmot,
        "from-tfmot",
        arg("model", help=".h5 file of tf_keras, TFMOT's wrappers included"),
        arg("output", help=".keras file to write"),
        arg("--data", metavar="X.npz", help="calibration examples: array x"),
    ),
    (
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
    ),
    (
        _cluster,
        "cluster",
        arg("model", help=".keras file"),
        arg("output", help=".keras file to write"),
        arg("--clusters", type=int, default=16, help="values a kernel, with zero (16)"),
        arg("--start", choices=STARTS, default="kmeans++", help="(kmeans++)"),
        arg("--per_channel", action="store_true", help="a codebook for each channel"),
        arg("--plain", action="store_true", help="of Keras' own layers, no codebooks"),
    ),
    (
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
        arg(
            "--allowed_drop",
            type=float,
            metavar="D",
            help="of accuracy, 0.01 for a point: what loses more stays float",
        ),
        arg("--test_data", metavar="Y.npz", help="arrays x and y for --allowed_drop"),
    ),
)
