"""The Keras layers that passes insert; users meet them when they print a model."""

from tfcompress.layers.affine import Affine as Affine
from tfcompress.layers.batch_norm import (
    FusedBatchNormalization as FusedBatchNormalization,
)
from tfcompress.layers.codebook import Codebook as Codebook
from tfcompress.layers.codebook import GroupCodebook as GroupCodebook
from tfcompress.layers.codebook import LayerGroup as LayerGroup
from tfcompress.layers.codebook import SharedValues as SharedValues
from tfcompress.layers.codebook import VectorCodebook as VectorCodebook
from tfcompress.layers.constants import ConstantTensor as ConstantTensor
from tfcompress.layers.constants import Parameter as Parameter
from tfcompress.layers.fake_quant import ConstantFakeQuant as ConstantFakeQuant
from tfcompress.layers.fake_quant import FakeQuant as FakeQuant
from tfcompress.layers.normalized_kernel import NormalizedKernel as NormalizedKernel
from tfcompress.layers.transforms import Binary as Binary
from tfcompress.layers.transforms import FakeQuantizeWeight as FakeQuantizeWeight
from tfcompress.layers.transforms import (
    FoldedFakeQuantizeWeight as FoldedFakeQuantizeWeight,
)
from tfcompress.layers.transforms import KeepZeros as KeepZeros
from tfcompress.layers.transforms import LearnedStep as LearnedStep
from tfcompress.layers.transforms import QuantizeWeight as QuantizeWeight
from tfcompress.layers.transforms import Ternary as Ternary
from tfcompress.layers.transforms import Transform as Transform
from tfcompress.layers.weight_wrapper import TransformWeights as TransformWeights
from tfcompress.layers.weight_wrapper import find_weight as find_weight
from tfcompress.layers.weight_wrapper import name_of_weight as name_of_weight
