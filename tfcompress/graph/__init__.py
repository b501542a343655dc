"""The one place that knows Keras' graph of operations.

Everything else sees `Graph` (read-only), `rewrite` (build a changed copy) and `kernels`
(the weights there are); Keras' private node structure is touched nowhere else.
"""

from tfcompress.graph.depth import allow_depth as allow_depth
from tfcompress.graph.flatten import flatten as flatten
from tfcompress.graph.names import unused_name as unused_name
from tfcompress.graph.optimizer_slots import slots_of as slots_of
from tfcompress.graph.rewrite import built_copy as built_copy
from tfcompress.graph.rewrite import clone as clone
from tfcompress.graph.rewrite import copy_weights as copy_weights
from tfcompress.graph.rewrite import freeze_alike as freeze_alike
from tfcompress.graph.rewrite import rewrite as rewrite
from tfcompress.graph.rewrite import unchanged as unchanged
from tfcompress.graph.substitution import substituted as substituted
from tfcompress.graph.taps import layer_shapes as layer_shapes
from tfcompress.graph.taps import one_tensor as one_tensor
from tfcompress.graph.taps import recorded as recorded
from tfcompress.graph.taps import tapped as tapped
from tfcompress.graph.view import Graph as Graph
from tfcompress.graph.view import activation_name as activation_name
from tfcompress.graph.view import calls_between as calls_between
from tfcompress.graph.view import check_scopes as check_scopes
from tfcompress.graph.view import config_text as config_text
from tfcompress.graph.view import flat_call as flat_call
from tfcompress.graph.view import functional as functional
from tfcompress.graph.view import has_mask as has_mask
from tfcompress.graph.view import inputs_struct as inputs_struct
from tfcompress.graph.view import is_of as is_of
from tfcompress.graph.view import symbolic_inputs as symbolic_inputs
from tfcompress.graph.weights import find_layers as find_layers
from tfcompress.graph.weights import kernels as kernels
from tfcompress.graph.weights import layer_paths as layer_paths
