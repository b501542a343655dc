"""Every technique with small settings: a new one adds a row."""

import keras
from networks import conv_net, image_data

import tfcompress as tfc


def _quantized(model):
    return tfc.quantize_aware(model, calibration_data=image_data(32)[0])


# Name -> (model -> model to train, () -> callbacks).
TECHNIQUES = {
    "pruning": (lambda model: model, lambda: [tfc.Pruning(0.6)]),
    "quantization": (_quantized, list),
    "distillation": (lambda model: tfc.distill(model, conv_net(), alpha=0.9), list),
    "pruning and distillation": (
        lambda model: tfc.distill(model, conv_net(), alpha=0.9),
        lambda: [tfc.Pruning(0.6)],
    ),
    "all": (
        lambda model: tfc.distill(_quantized(model), conv_net(), alpha=0.9),
        lambda: [tfc.Pruning(0.6)],
    ),
}

# Name -> settings of `compile`.
WAYS_TO_RUN = {
    "plain": {},
    "jit": {"jit_compile": True},
    "several steps a call": {"steps_per_execution": 3},
    "moving average": {
        "optimizer": lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9)
    },
}
