"""Goes back to an early step of training, with the masks found since.

Example:
    ```python
    early = Rewinding("weights", step=100)
    early.remember(model, step)   # after every step: notes the state at its own
    early.rewind(model)
    ```
"""

import contextlib


class Rewinding:
    """The state of an early step of a run, and the way back there.

    Args:
        kind: `"weights"`: the model's weights and the optimizer; `"learning_rate"`: the
            optimizer alone, that is its step count, from which a learning rate schedule
            follows, and its moments.
        step: Step (batches since the start of `fit`) whose state comes back.
    """

    def __init__(self, kind, step):
        self.kind = kind
        self.step = step
        self._state = None

    @property
    def is_ready(self):
        """Whether the state was seen."""
        return self._state is not None

    def remember(self, model, step):
        """Notes the state, if this is the step, or the first to be seen after it."""
        if not self.is_ready and step >= self.step:
            self._state = [variable.numpy() for variable in self._variables(model)]

    def rewind(self, model):
        """Puts the state back."""
        for variable, value in zip(self._variables(model), self._state, strict=True):
            variable.assign(value)

    def _variables(self, model):
        optimizer = model.optimizer
        if not optimizer.built:
            strategy = getattr(model, "distribute_strategy", None)
            with strategy.scope() if strategy else contextlib.nullcontext():
                optimizer.build(model.trainable_variables)
        weights = model.weights if self.kind == "weights" else []
        return [*weights, *optimizer.variables]
