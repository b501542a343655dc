"""Models of Keras 2 and of TensorFlow Model Optimization, turned into Keras 3 ones."""

from tfcompress.legacy.load import load_model as load_model
from tfcompress.legacy.tfmot import from_tfmot as from_tfmot
