"""Keras callbacks, one a file."""

from tfcompress.callbacks.channel_pruning import ChannelPruning as ChannelPruning
from tfcompress.callbacks.clustering_schedule import (
    ClusteringSchedule as ClusteringSchedule,
)
from tfcompress.callbacks.compression_logger import (
    CompressionLogger as CompressionLogger,
)
from tfcompress.callbacks.pruning import Pruning as Pruning
from tfcompress.callbacks.quantization_schedule import (
    QuantizationSchedule as QuantizationSchedule,
)
