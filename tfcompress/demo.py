"""The whole journey on real speech: cut, prune, distill, quantize, export, measure.

`tfcompress demo` runs it. Every step is the call a user would write.
"""

import pathlib
from dataclasses import dataclass

import keras
import tensorflow as tf

from tfcompress import datasets, progress, zoo
from tfcompress.callbacks import Pruning
from tfcompress.deploy.edgetpu_check import check_edgetpu
from tfcompress.deploy.edgetpu_compile import EdgeTPUCompilerNotFound, compile_edgetpu
from tfcompress.deploy.onnx import export_onnx
from tfcompress.deploy.tflite import export_tflite
from tfcompress.distill import distill
from tfcompress.measure import measure
from tfcompress.passes.quantize import quantize_aware
from tfcompress.prune_channels import prune_channels
from tfcompress.report import report

NAMES = ("float model", "TFLite float32", "int8 by calibration", "ours")


@dataclass(frozen=True)
class Settings:
    """How long the demo trains, and how much it prunes.

    Attributes:
        seed: Seed of weights, data order and augmentation.
        float_epochs: Epochs of the float model.
        channel_epochs: Epochs of distillation after channels were cut.
        pruning_epochs: Epochs of pruning with distillation.
        quantization_epochs: Epochs of quantization-aware training with distillation.
        macs: Share of the multiply-accumulates that is left of the float model's.
        sparsity: Fraction of zeros among the weights that are left.
        examples: Number of training clips; `None` takes all 1,800.
    """

    seed: int = 0
    float_epochs: int = 20
    channel_epochs: int = 16
    pruning_epochs: int = 16
    quantization_epochs: int = 16
    macs: float = 0.5
    sparsity: float = 0.7
    examples: int | None = None


def augmented(train, *, seed, batch_size=64):
    """Training batches as other people might have said them, new in each epoch.

    Clips are stretched and shifted in time, each coefficient gets a gain and an offset
    for the whole clip, as another voice or microphone would give it, and noise.

    Args:
        train: `(x, y)` as `datasets.spoken_digits` gives it.
        seed: Seed of the order and of what is done to the clips.
        batch_size: Batch size.

    Returns:
        A `tf.data.Dataset` of `(x, y)` batches.
    """
    frames, coefficients, _ = train.x.shape[1:]

    def disturb(clip, number):
        x, y = clip
        # A seed for each clip, for parallel calls take turns at a common generator.
        seeds = tf.random.split(tf.stack([number, seed]), 4)
        length = frames * tf.random.stateless_uniform((), seeds[0], 0.8, 1.2)
        x = tf.image.resize(x, (tf.cast(tf.round(length), tf.int32), coefficients))
        x = tf.image.resize_with_crop_or_pad(x, frames, coefficients)
        shift = tf.random.stateless_uniform((), seeds[1], -6, 7, tf.int32)
        x = tf.roll(x, shift, axis=0)
        voice = tf.random.stateless_normal((2, 1, coefficients, 1), seeds[2], 0, 0.25)
        gain, offset = tf.unstack(voice)
        noise = tf.random.stateless_normal(tf.shape(x), seeds[3], stddev=0.5)
        return x * (1 + gain) + offset + noise, y

    data = tf.data.Dataset.from_tensor_slices(tuple(train)).cache()
    data = data.shuffle(len(train.x), seed=seed)
    numbers = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
    data = tf.data.Dataset.zip((data, numbers)).map(disturb, tf.data.AUTOTUNE)
    return datasets.untuned(data.batch(batch_size).prefetch(2))


def train_float(train, settings):
    """Trains the reference network in float."""
    model = zoo.ds_cnn(input_shape=train.x.shape[1:], classes=10)
    data = augmented(train, seed=settings.seed)
    _fit(model, data, settings.float_epochs, 3e-3, "Training the float model")
    return model


def compress(model, train, settings):
    """Cuts channels, prunes what is left, then trains with quantization.

    Each time the float model teaches.

    Args:
        model: Trained `keras.Model`; it is not changed.
        train: `(x, y)` training data.
        settings: `Settings`.

    Returns:
        The quantization-aware `keras.Model`.
    """
    data = augmented(train, seed=settings.seed)

    def taught(student, epochs, rate, title, *callbacks):
        pupil = distill(student, teacher=model, temperature=4, alpha=0.1)
        _fit(pupil, data, epochs, rate, title, *callbacks)

    # Multiples of 8, for the sake of SIMD units and NPUs.
    small = prune_channels(model, budget={"macs": settings.macs}, round_to=8)
    taught(small, settings.channel_epochs, 1e-3, "Fewer channels, with distillation")

    pruning = Pruning(settings.sparsity, exclude="classifier")
    taught(small, settings.pruning_epochs, 1e-3, "Pruning, with distillation", pruning)

    qat = quantize_aware(small, "int8", calibration_data=train.x[:256])
    title = "Quantization-aware training"
    taught(qat, settings.quantization_epochs, 3e-4, title)
    return qat


def _fit(model, data, epochs, learning_rate, title, *callbacks):
    decay = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * len(data))
    model.compile(
        keras.optimizers.Adam(decay),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    with progress.bar(title, epochs) as advance:
        count = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: advance())
        model.fit(
            data,
            epochs=epochs,
            verbose=0,
            shuffle=False,  # The data set shuffles by itself.
            callbacks=[*callbacks, count],
        )


def run(folder="demo", settings=None, say=print):
    """Runs the demo and writes the files and the report.

    Args:
        folder: Folder for the models and the report; made if it is missing.
        settings: `Settings`; `None` takes the defaults.
        say: Function that shows a line to the user.

    Returns:
        The list of `Measurement` in the order of `NAMES`.
    """
    settings = settings or Settings()
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(settings.seed)
    train, test = datasets.spoken_digits(split="held_out_speakers")
    heard = sorted(set(datasets.SPEAKERS) - set(datasets.HELD_OUT_SPEAKERS))
    _, known = datasets.spoken_digits(split="official", speakers=heard)
    if settings.examples is not None:
        keep = slice(None, None, max(1, len(train.x) // settings.examples))
        train = datasets.Examples(train.x[keep], train.y[keep])
    say(
        f"Spoken digits: training on {len(train.x):,} clips of 4 speakers; testing on "
        f"{len(test.x):,} clips of 2 speakers who were held out, and on {len(known.x)} "
        "new clips of the 4 known ones."
    )
    model = train_float(train, settings)
    model.save(folder / "float.keras")
    qat = compress(model, train, settings)
    qat.save(folder / "ours.keras")

    calibration = train.x[:256]
    paths = [
        folder / f"{name}.tflite" for name in ("float32", "int8_calibrated", "ours")
    ]
    export_tflite(model, paths[0], kind="float32")
    export_tflite(model, paths[1], kind="int8", calibration_data=calibration)
    ours = export_tflite(qat, paths[2], kind="int8")
    say(f"\n{ours}")
    onnx = export_onnx(qat, folder / "ours.onnx")
    say(
        f"{onnx.path}: {onnx.bytes:,} bytes, {onnx.integer_weights} integer kernels, "
        f"ONNX Runtime within {onnx.largest_difference:.1%} of Keras"
    )
    _edge_tpu(paths[2], folder, say)

    targets = [model, *paths]
    found = [measure(m, test, name=n) for m, n in zip(targets, NAMES, strict=True)]
    # Files with files: the first is the baseline of the ratios.
    written = report(
        found[1:], folder / "report.html", title="Spoken digits, speakers held out"
    )
    say("")
    _say_table(found, [measure(m, known).accuracy for m in targets], say)
    say(f"\nReport: {written.path}")
    return found


def _edge_tpu(path, folder, say):
    check = check_edgetpu(path)
    say(f"Edge TPU: {check.mapped_count} of {len(check.operations)} operations map.")
    for op in check.operations:
        if op.reason:
            say(f"  {op.index} {op.operator}: {op.reason}")
    try:
        compiled = compile_edgetpu(path, folder)
        say(f"Edge TPU compiler: {compiled.path}, {compiled.mapped_count} mapped.")
    except EdgeTPUCompilerNotFound:
        say("Edge TPU compiler: not installed, so its step is left out.")


def _say_table(found, known_accuracy, say):
    base = found[1]
    say(
        f"{'':<20} {'held-out':>9} {'known':>7} {'bytes':>8} {'gzip':>8} "
        f"{'smaller':>8} {'zeros':>7} {'latency':>9}"
    )
    for m, known in zip(found, known_accuracy, strict=True):
        latency = "-" if m.latency_ms is None else f"{m.latency_ms:.3f} ms"
        say(
            f"{m.name:<20} {m.accuracy:>9.1%} {known:>7.1%} {m.bytes:>8,} "
            f"{m.gzip_bytes:>8,} {base.gzip_bytes / m.gzip_bytes:>7.2f}x "
            f"{m.sparsity:>7.1%} {latency:>9}"
        )
