"""Compression of Keras 3 models for phones, microcontrollers and Edge TPUs.

Use it as `import tfcompress as tfc`. Callbacks go into the `model.fit` you have, verbs
take a `keras.Model` or a file and return one.
"""

from tfcompress import datasets as datasets
from tfcompress import layers as layers
from tfcompress import schedules as schedules
from tfcompress import zoo as zoo
from tfcompress.callbacks import Pruning as Pruning
from tfcompress.passes.distill import Distiller as Distiller
from tfcompress.passes.distill import distill as distill
from tfcompress.passes.quantize import quantize_aware as quantize_aware
from tfcompress.passes.strip import strip as strip
from tfcompress.selection import Rule as Rule

__version__ = "0.1.0"
