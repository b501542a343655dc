"""Compression of Keras 3 models for phones, microcontrollers and Edge TPUs.

Use it as `import tfcompress as tfc`. Callbacks go into the `model.fit` you have, verbs
take a `keras.Model` or a file and return one.
"""

from tfcompress import datasets as datasets
from tfcompress import layers as layers
from tfcompress import schedules as schedules
from tfcompress import zoo as zoo
from tfcompress.benchmark import benchmark as benchmark
from tfcompress.cache_teacher import cache_teacher as cache_teacher
from tfcompress.callbacks import ChannelPruning as ChannelPruning
from tfcompress.callbacks import ClusteringSchedule as ClusteringSchedule
from tfcompress.callbacks import CompressionLogger as CompressionLogger
from tfcompress.callbacks import Pruning as Pruning
from tfcompress.callbacks import QuantizationSchedule as QuantizationSchedule
from tfcompress.debug import debug_quantization as debug_quantization
from tfcompress.deploy.android import export_android as export_android
from tfcompress.deploy.c_array import export_c_array as export_c_array
from tfcompress.deploy.edgetpu_check import check_edgetpu as check_edgetpu
from tfcompress.deploy.edgetpu_compile import compile_edgetpu as compile_edgetpu
from tfcompress.deploy.ethosu import compile_ethosu as compile_ethosu
from tfcompress.deploy.metadata import Metadata as Metadata
from tfcompress.deploy.metadata import TensorMetadata as TensorMetadata
from tfcompress.deploy.metadata import read_metadata as read_metadata
from tfcompress.deploy.metadata import write_metadata as write_metadata
from tfcompress.deploy.onnx import export_onnx as export_onnx
from tfcompress.deploy.opencv import check_opencv as check_opencv
from tfcompress.deploy.pack import pack as pack
from tfcompress.deploy.pack import unpack as unpack
from tfcompress.deploy.tflite import export_tflite as export_tflite
from tfcompress.distill import distill as distill
from tfcompress.distill import distill_mutually as distill_mutually
from tfcompress.legacy import from_tfmot as from_tfmot
from tfcompress.legacy import load_model as load_model
from tfcompress.measure import measure as measure
from tfcompress.passes import distillation as distillation
from tfcompress.passes.cluster import cluster as cluster
from tfcompress.passes.distill import Distiller as Distiller
from tfcompress.passes.distill_mutually import MutualDistiller as MutualDistiller
from tfcompress.passes.equalize import equalize as equalize
from tfcompress.passes.factorize import factorize as factorize
from tfcompress.passes.fold import fold as fold
from tfcompress.passes.post_training import (
    quantize_post_training as quantize_post_training,
)
from tfcompress.passes.prune_layers import prune_layers as prune_layers
from tfcompress.passes.quantization_config import (
    QuantizationConfig as QuantizationConfig,
)
from tfcompress.passes.quantize import quantize_aware as quantize_aware
from tfcompress.passes.replace_activations import (
    replace_activations as replace_activations,
)
from tfcompress.passes.separate_convs import separate_convs as separate_convs
from tfcompress.passes.strip import strip as strip
from tfcompress.prune_channels import prune_channels as prune_channels
from tfcompress.quantize_to_accuracy import (
    quantize_to_accuracy as quantize_to_accuracy,
)
from tfcompress.recipes import Recipe as Recipe
from tfcompress.report import report as report
from tfcompress.selection import Rule as Rule
from tfcompress.sensitivity import sensitivity as sensitivity
from tfcompress.verify import verify as verify

__version__ = "0.1.0"
