"""Keras callbacks, one a file."""

from tfcompress.callbacks.pruning import Pruning as Pruning
from tfcompress.callbacks.quantization_schedule import (
    QuantizationSchedule as QuantizationSchedule,
)
