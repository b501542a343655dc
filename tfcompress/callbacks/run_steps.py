"""At which step of a run `fit` is, as every scheduled callback counts it.

Example:
    ```python
    steps = RunSteps(callback.params.get("steps"))   # in on_train_begin
    step = steps.begin_epoch(epoch)
    step = steps.end_batch(batch)
    ```
"""


class RunSteps:
    """Position in a run: batches since its first epoch.

    Nothing is counted but the position, so a run that was killed and is resumed at
    epoch 3 is where the first one was.

    Args:
        per_epoch: Batches an epoch; `None` until the first epoch has shown it.

    Attributes:
        per_epoch: The same, once known.
        now: The step.
    """

    def __init__(self, per_epoch=None):
        self.per_epoch = per_epoch
        self.now = self._epoch_start = self._batches = 0

    def begin_epoch(self, epoch):
        """Returns the step at which an epoch begins."""
        self.now = self._epoch_start = epoch * (self.per_epoch or 0)
        return self.now

    def end_batch(self, batch):
        """Returns the step after a batch of the epoch."""
        self._batches = batch + 1
        self.now = self._epoch_start + self._batches
        return self.now

    def end_epoch(self):
        """Learns the length of an epoch that nobody told."""
        if self.per_epoch is None:
            self.per_epoch = self._batches
