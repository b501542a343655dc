"""Every technique with small settings: a new one adds a row."""

import keras
from networks import conv_net, image_data

import tfcompress as tfc


def _quantized(config="int8"):
    def wrap(model):
        return tfc.quantize_aware(
            model, config, calibration_data=image_data(32)[0].astype("float32")
        )

    return wrap


def _quantized_after_training(model):
    return tfc.quantize_post_training(
        tfc.equalize(model),
        image_data(32)[0],
        "int4_weights",
        rounding="adaround",
        steps=5,
    )


def _distilled(model):
    return tfc.distill(model, conv_net(), alpha=0.9)


def _clustered(model):
    return tfc.cluster(model, 8)


def _shared(model):
    """Every kind of codebook at once."""
    return tfc.cluster(
        model,
        8,
        biases=True,
        rules=[
            tfc.Rule("^conv/kernel", per_channel=True, gradient="sum"),
            tfc.Rule("^hidden/kernel", block=2, clusters=32),
            tfc.Rule("kernel", group="others"),
        ],
    )


def _clustering():
    # 6 steps an epoch; a run of 2 epochs sees all but the last of them.
    fraction = {0: 0.5, 6: 1.0}
    return [tfc.ClusteringSchedule(fraction, kmeans_every=4)]


def _taught_by_many_terms(model):
    """Projections, a memory, schedules: all that a distiller can hold."""
    terms = [
        tfc.distillation.SoftLabels(tfc.schedules.Polynomial(6, 2, end=12)),
        tfc.distillation.Hint("flatten", "hidden", weight=0.1),
        tfc.distillation.AttentionTransfer("depthwise_relu", "add", weight=0.1),
        tfc.distillation.Relational("hidden", "hidden", weight=0.1, angle=1),
        tfc.distillation.Contrastive("hidden", "flatten", weight=0.01, memory=80),
        tfc.distillation.DeepSupervision(["add"], weight=0.1),
    ]
    alpha = tfc.schedules.Cosine(0.95, 0.9, end=9)
    return tfc.distill(model, [conv_net(), conv_net()], terms=terms, alpha=alpha)


def _surgery(model):
    model = tfc.replace_activations(model, {"relu": "relu6"})
    model = tfc.prune_layers(model, 1)
    model = tfc.factorize(model, include="hidden", rank=4)
    model = tfc.separate_convs(model, include="^conv", rank=6)
    return tfc.fold(model)


def _pruning():
    return [tfc.Pruning(0.6)]


def _pruning_by_gradients():
    return [tfc.Pruning(0.6, scope="global", score="taylor", data=image_data(64))]


def _channel_pruning():
    return [tfc.ChannelPruning(0.5, sparsity_penalty=0.001)]


def _pruning_by_movement():
    return [tfc.Pruning(0.6, score="movement")]


def _regrowing():
    return [
        tfc.Pruning(
            0.6, scope="erk", regrow="gradient", data=image_data(64), frequency=2
        )
    ]


def _rewinding():
    return [tfc.Pruning(0.6, rewind="weights")]


def _schedule():
    # 6 steps an epoch; a run of 2 epochs sees all but the last of them.
    return [
        tfc.QuantizationSchedule(
            start_step=3,
            freeze_ranges_step=9,
            freeze_batch_norm_step=9,
            bits={3: 8, 6: 6, 9: 4},
        )
    ]


# Name -> (model -> model to train, () -> callbacks).
TECHNIQUES = {
    "pruning": (lambda model: model, _pruning),
    "pruning, global by gradients": (lambda model: model, _pruning_by_gradients),
    "channel pruning": (lambda model: model, _channel_pruning),
    "pruning by movement": (lambda model: model, _pruning_by_movement),
    "pruning and regrowth": (lambda model: model, _regrowing),
    "pruning and rewinding": (lambda model: model, _rewinding),
    "quantization": (_quantized(), list),
    "quantization, int4 weights": (_quantized("int4_weights"), list),
    "quantization, learned step": (
        _quantized(tfc.QuantizationConfig(weights="learned_step", weight_bits=4)),
        list,
    ),
    "quantization, ternary": (
        _quantized(tfc.QuantizationConfig(weights="ternary")),
        list,
    ),
    "quantization with a schedule": (_quantized("int4_weights"), _schedule),
    "clustering": (_clustered, list),
    "clustering with a schedule": (_shared, _clustering),
    "clustering and quantization": (
        lambda model: _quantized()(_clustered(model)),
        list,
    ),
    "quantization after training": (_quantized_after_training, list),
    "surgery": (_surgery, list),
    "distillation": (_distilled, list),
    "distillation, many terms": (_taught_by_many_terms, list),
    "pruning and distillation": (_distilled, _pruning),
    "all": (lambda model: _distilled(_quantized()(model)), _pruning),
}

# Name -> settings of `compile`, and `policy`, the dtype policy to build under.
WAYS_TO_RUN = {
    "plain": {},
    "jit": {"jit_compile": True},
    "several steps a call": {"steps_per_execution": 3},
    "moving average": {
        "optimizer": lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9)
    },
    "mixed_float16": {"policy": "mixed_float16"},
    "mixed_bfloat16": {"policy": "mixed_bfloat16"},
}

# Ways that a few techniques take, which are told from the others by how they act on a
# step: callbacks, wrapped layers, a `train_step` of one's own, and all of them.
FEW_TAKE = {
    way: (
        "pruning, global by gradients",
        "quantization with a schedule",
        "clustering",
        "distillation, many terms",
        "all",
    )
    for way in (
        "several steps a call",
        "moving average",
        "mixed_float16",
        "mixed_bfloat16",
    )
}
# Those with state of their own that several devices could make differ.
FEW_TAKE["two devices"] = (
    "pruning, global by gradients",
    "channel pruning",
    "pruning by movement",
    "pruning and regrowth",
    "quantization with a schedule",
    "quantization, learned step",
    "clustering",
    "clustering with a schedule",
    "distillation, many terms",
    "all",
)
# A model that a callback prunes is saved as any other.
FEW_TAKE["saved"] = (
    "pruning",
    "quantization",
    "quantization, learned step",
    "quantization, ternary",
    "quantization with a schedule",
    "clustering",
    "clustering with a schedule",
    "clustering and quantization",
    "quantization after training",
    "surgery",
    "distillation",
    "distillation, many terms",
    "all",
)
# Those that a kill could take something from beside weights and optimizer.
FEW_TAKE["killed"] = (
    "pruning",
    "pruning, global by gradients",
    "channel pruning",
    "pruning by movement",
    "pruning and regrowth",
    "quantization with a schedule",
    "quantization, learned step",
    "clustering with a schedule",
    "distillation, many terms",
    "all",
)
FEW_TAKE["jit"] = (
    *FEW_TAKE["mixed_float16"],
    "channel pruning",
    "quantization, learned step",
    "quantization, ternary",
    "clustering with a schedule",
)
# Name of a test or way to run -> techniques that take it by default; others are slow.
QUICK = {
    "plain": (
        "pruning",
        "pruning, global by gradients",
        "channel pruning",
        "pruning and regrowth",
        "quantization",
        "quantization with a schedule",
        "clustering",
        "clustering with a schedule",
        "surgery",
        "distillation",
        "all",
    ),
    "jit": ("pruning, global by gradients", "clustering", "all"),
    "several steps a call": ("pruning, global by gradients", "all"),
    "moving average": ("quantization with a schedule",),
    "mixed_float16": ("quantization with a schedule",),
    "mixed_bfloat16": ("all",),
    "saved": (
        "quantization with a schedule",
        "clustering with a schedule",
        "surgery",
        "distillation",
        "all",
    ),
    "killed": (
        "pruning",
        "quantization with a schedule",
        "clustering with a schedule",
        "all",
    ),
    "two devices": ("quantization with a schedule",),
}


def is_quick(technique, test):
    """Whether a test, or a way to run, of a technique runs by default."""
    return technique in QUICK[test]


def check_callbacks(callbacks, history):
    """Asserts that what callbacks promise of the logs is there."""
    for callback in callbacks:
        if isinstance(callback, tfc.Pruning):
            # 0.01: whole weights of small kernels.
            assert abs(history["sparsity"][-1] - 0.6) < 0.01
        elif isinstance(callback, tfc.ClusteringSchedule):
            assert history["clustered"][-1] == 1
        elif isinstance(callback, tfc.ChannelPruning):
            assert history["channel_scale"][-1] == 0
        else:
            assert history["weight_bits"][-1] == 4
