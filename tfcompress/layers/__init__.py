"""The Keras layers that passes insert; users meet them when they print a model."""

from tfcompress.layers.fake_quant import ConstantFakeQuant as ConstantFakeQuant
from tfcompress.layers.fake_quant import FakeQuant as FakeQuant
from tfcompress.layers.transforms import FakeQuantizeWeight as FakeQuantizeWeight
from tfcompress.layers.transforms import KeepZeros as KeepZeros
from tfcompress.layers.transforms import Transform as Transform
from tfcompress.layers.weight_wrapper import TransformWeights as TransformWeights
