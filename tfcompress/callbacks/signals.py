"""What scores and regrowth read besides the weights.

Example:
    ```python
    signals = Signals("gradients", model, (x, y))
    arrays = signals.of(pruned)   # one for each MaskedWeight; `None` where none is read
    ```
"""

from tfcompress.callbacks.input_norms import InputNorms
from tfcompress.loss_gradients import LossGradients


class Signals:
    """Computes what a score reads, when masks are about to change.

    Args:
        reads: As `numerics.scores.Score.reads`.
        model: The model that is trained.
        data: The user's.
    """

    def __init__(self, reads, model, data):
        self.reads = reads
        if reads in ("gradients", "gradient_flow"):
            self._source = LossGradients(model, data)
        elif reads == "input_norms":
            self._source = InputNorms(model, data)

    def of(self, pruned):
        """An array for each `MaskedWeight`, in order, or `None` where none is read."""
        variables = {p.path: p.variable for p in pruned}
        if self.reads is None:
            return [None] * len(pruned)
        if self.reads == "movement":
            return [p.movement.total.numpy() for p in pruned]
        if self.reads == "gradients":
            return self._source.of(list(variables.values()))
        if self.reads == "gradient_flow":
            return self._source.hessian_products(list(variables.values()))
        return self._source.of(variables)
