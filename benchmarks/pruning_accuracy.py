"""Prints what pruning costs ResNet-8 on CIFAR-10 in accuracy, by criterion and scope.

MLPerf Tiny's network on the 10,000 training and 2,000 test images of `../shared/data`.
For each seed one float model is trained; every row fine-tunes its weights with the same
data, augmentation, optimizer (Adam, cosine decay) and number of epochs, TFMOT's
magnitude pruning (on tf_keras, in a process of its own) included. Results are kept in
the folder, so that an interrupted run goes on.

Usage:
    python benchmarks/pruning_accuracy.py --seeds=3 --epochs=12
    python benchmarks/pruning_accuracy.py --seeds=3 --epochs=60 --only=tfc.Pruning,TFMOT
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

import numpy as np

RATE = 1e-3
SPARSITY = 0.8


def _pruned(**settings):
    def run(model, train, epochs, tfc):
        from cifar_accuracy import fitted

        fitted(model, train, epochs, RATE, [tfc.Pruning(SPARSITY, **settings)])
        return model

    return run


def _by_gradients(**settings):
    def run(model, train, epochs, tfc):
        data = train.take(8)
        # Gradients are of the loss that is compiled.
        model.compile("adam", "sparse_categorical_crossentropy")
        return _pruned(data=data, **settings)(model, train, epochs, tfc)

    return run


def _distilled(**settings):
    def run(model, train, epochs, tfc):
        import keras
        from cifar_accuracy import fitted

        teacher = keras.models.clone_model(model)
        teacher.set_weights(model.get_weights())
        pupil = tfc.distill(model, teacher, temperature=4, alpha=0.1)
        fitted(pupil, train, epochs, RATE, [tfc.Pruning(SPARSITY, **settings)])
        return model

    return run


def _without_channels(score, scope="layer"):
    def run(model, train, epochs, tfc):
        from cifar_accuracy import fitted

        model.compile("adam", "sparse_categorical_crossentropy")
        small = tfc.prune_channels(
            model, budget={"macs": 0.5}, score=score, scope=scope, data=train.take(8)
        )
        return fitted(small, train, epochs, RATE)

    return run


def _distilled_without_channels(model, train, epochs, tfc):
    from cifar_accuracy import fitted

    small = tfc.prune_channels(model, budget={"macs": 0.5})
    pupil = tfc.distill(small, model, temperature=4, alpha=0.1)
    fitted(pupil, train, epochs, RATE)
    return small


def _shrunk_channels(model, train, epochs, tfc):
    from cifar_accuracy import fitted

    pruning = tfc.ChannelPruning(budget={"macs": 0.5})
    fitted(model, train, epochs, RATE, [pruning])
    return pruning.cut()


ROWS = {
    "80 % zeros, tfc.Pruning(0.8)": _pruned(),
    "80 % zeros, magnitude, per layer": _pruned(scope="layer"),
    "80 % zeros, magnitude, global": _pruned(scope="global"),
    "80 % zeros, magnitude, ERK": _pruned(scope="erk"),
    "80 % zeros, Taylor, global": _by_gradients(scope="global", score="taylor"),
    "80 % zeros, movement, global": _pruned(scope="global", score="movement"),
    "80 % zeros, SNIP, global": _by_gradients(scope="global", score="snip"),
    "80 % zeros, GraSP, global": _by_gradients(scope="global", score="grasp"),
    "80 % zeros, Wanda, ERK": _by_gradients(scope="erk", score="wanda"),
    "80 % zeros, random, ERK": _pruned(scope="erk", score="random"),
    "80 % zeros, default, with distillation": _distilled(),
    "half the MACs, L1, per layer": _without_channels("l1"),
    "half the MACs, L2, per layer": _without_channels("l2"),
    "half the MACs, L2, global": _without_channels("l2", "global"),
    "half the MACs, Taylor, global": _without_channels("taylor", "global"),
    "half the MACs, batch norm scale, global": _without_channels(
        "batch_norm", "global"
    ),
    "half the MACs, FPGM, per layer": _without_channels("geometric_median"),
    "half the MACs, HRank, per layer": _without_channels("rank"),
    "half the MACs, random, per layer": _without_channels("random"),
    "half the MACs, ChannelPruning": _shrunk_channels,
    "half the MACs, L2, with distillation": _distilled_without_channels,
    "80 % zeros, TFMOT": None,
}


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--only", help="parts of the names of rows, with commas")
    parser.add_argument("--skip", help="parts of names to leave out, with commas")
    parser.add_argument("--folder", default="cifar_models")
    parser.add_argument("--tfmot", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.tfmot:
        _tfmot(*args.tfmot, args.epochs)
        return
    folder = pathlib.Path(args.folder)
    folder.mkdir(exist_ok=True)
    wanted = args.only.split(",") if args.only else [""]
    skipped = args.skip.split(",") if args.skip else []
    names = [
        n
        for n in ROWS
        if any(w in n for w in wanted) and not any(s in n for s in skipped)
    ]
    found = [_seed(seed, folder, args.epochs, names) for seed in range(args.seeds)]
    print(f"\n{args.seeds} seeds, {args.epochs} epochs of fine-tuning\n")
    print("| | accuracy, mean (lowest to highest) | against float, points | zeros |")
    print("|---|---|---|---|")
    for name in ["float", *names]:
        values = [f[name][0] for f in found]
        changes = [f[name][0] - f["float"][0] for f in found]
        zeros = statistics.mean(f[name][1] for f in found)
        print(
            f"| {name} | {statistics.mean(values):.2f} % "
            f"({min(values):.2f} to {max(values):.2f}) | "
            f"{statistics.mean(changes):+.2f} "
            f"({min(changes):+.2f} to {max(changes):+.2f}) | {zeros:.1%} |"
        )


def _seed(seed, folder, epochs, names):
    """Accuracy in percent and fraction of zeros of each row."""
    import keras
    from cifar_accuracy import augmented, fitted, load

    import tfcompress as tfc

    x, y = load("cifar10_train_10k.npz")
    test = load("cifar10_test_2k.npz")
    kept = folder / f"pruning_{epochs}_{seed}.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    float_path = folder / f"float_{seed}.keras"
    keras.utils.set_random_seed(seed)
    if not float_path.exists():
        fitted(_resnet8(keras), augmented(x, y, seed), 25, 2e-3).save(float_path)
    found["float"] = _result(keras.models.load_model(float_path), test)
    for name in names:
        if name in found:
            continue
        keras.utils.set_random_seed(seed)
        model = keras.models.load_model(float_path, compile=False)
        if ROWS[name] is None:
            found[name] = _tfmot_result(model, folder, seed, epochs)
        else:
            made = ROWS[name](model, augmented(x, y, seed), epochs, tfc)
            found[name] = _result(made, test)
        print(f"seed {seed} {name}: {found[name][0]:.2f}", flush=True)
        kept.write_text(json.dumps(found))
    return found


def _resnet8(keras):
    from training_cost import resnet8

    return resnet8(keras.layers, keras)


def _result(model, test):
    x, y = test
    right = 100 * float(np.mean(model.predict(x, verbose=0).argmax(1) == y))
    return right, _zeros(model)


def _zeros(model):
    kernels = [np.asarray(w) for w in model.get_weights() if np.ndim(w) > 1]
    return 1 - sum(map(np.count_nonzero, kernels)) / sum(k.size for k in kernels)


# TFMOT, in a process of its own: importing it turns `tf.keras` into the legacy package.


def _tfmot_result(model, folder, seed, epochs):
    weights = folder / f"float_{seed}.npz"
    result = folder / f"tfmot_{seed}.json"
    np.savez(weights, *[w for layer in _ordered(model) for w in layer.get_weights()])
    subprocess.run(
        [
            sys.executable,
            __file__,
            f"--epochs={epochs}",
            "--tfmot",
            str(weights),
            str(result),
        ],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return tuple(json.loads(result.read_text()))


def _ordered(model):
    """Layers with weights in an order that both kinds of Keras agree on."""
    layers = [layer for layer in model.layers if layer.weights]
    kinds = sorted({type(layer).__name__ for layer in layers})

    def made(layer):
        number = layer.name.rpartition("_")[2]
        return int(number) if number.isdigit() else 0

    return [
        layer
        for kind in kinds
        for layer in sorted(
            (la for la in layers if type(la).__name__ == kind), key=made
        )
    ]


def _tfmot(weights, result, epochs):
    import os

    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow_model_optimization as tfmot
    import tf_keras
    from cifar_accuracy import augmented, load

    x, y = load("cifar10_train_10k.npz")
    test = load("cifar10_test_2k.npz")
    seed = int(pathlib.Path(weights).stem.rpartition("_")[2])
    tf_keras.utils.set_random_seed(seed)
    model = _resnet8(tf_keras)
    with np.load(weights) as file:
        arrays = [file[name] for name in file.files]
    for layer in _ordered(model):
        own = [arrays.pop(0) for _ in layer.weights]
        layer.set_weights(own)
    assert not arrays
    train = augmented(x, y, seed)
    steps = epochs * train.cardinality().numpy()
    sparsity = tfmot.sparsity.keras
    pruned = sparsity.prune_low_magnitude(
        model,
        pruning_schedule=sparsity.PolynomialDecay(
            0.0, SPARSITY, 0, steps // 2, frequency=max(1, steps // 128)
        ),
    )
    decay = tf_keras.optimizers.schedules.CosineDecay(RATE, steps)
    pruned.compile(tf_keras.optimizers.Adam(decay), "sparse_categorical_crossentropy")
    pruned.fit(
        train, epochs=epochs, verbose=0, callbacks=[sparsity.UpdatePruningStep()]
    )
    stripped = sparsity.strip_pruning(pruned)
    pathlib.Path(result).write_text(json.dumps(_result(stripped, test)))


if __name__ == "__main__":
    main()
