"""The terms of a distillation loss, to be listed in `tfc.distill(..., terms=[...])`."""

from tfcompress.passes.distillation.deep_supervision import (
    DeepSupervision as DeepSupervision,
)
from tfcompress.passes.distillation.feature_terms import (
    AttentionTransfer as AttentionTransfer,
)
from tfcompress.passes.distillation.feature_terms import Contrastive as Contrastive
from tfcompress.passes.distillation.feature_terms import FeatureTerm as FeatureTerm
from tfcompress.passes.distillation.feature_terms import Hint as Hint
from tfcompress.passes.distillation.feature_terms import Relational as Relational
from tfcompress.passes.distillation.feature_terms import (
    SimilarityPreserving as SimilarityPreserving,
)
from tfcompress.passes.distillation.output_terms import (
    DecoupledSoftLabels as DecoupledSoftLabels,
)
from tfcompress.passes.distillation.output_terms import HardLabels as HardLabels
from tfcompress.passes.distillation.output_terms import LogitsCosine as LogitsCosine
from tfcompress.passes.distillation.output_terms import LogitsMSE as LogitsMSE
from tfcompress.passes.distillation.output_terms import OutputTerm as OutputTerm
from tfcompress.passes.distillation.output_terms import Regression as Regression
from tfcompress.passes.distillation.output_terms import SoftLabels as SoftLabels
from tfcompress.passes.distillation.term import Signals as Signals
from tfcompress.passes.distillation.term import Term as Term
