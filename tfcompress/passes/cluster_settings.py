"""What may be set for each weight that is clustered, and the transform it makes.

Example:
    ```python
    settings.replaced({"clusters": 8}).transform(layer, layer.kernel, "dense/kernel")
    ```
"""

import dataclasses

from tfcompress.layers import Codebook, GroupCodebook, VectorCodebook
from tfcompress.passes.quantize_rules import KERNELS


@dataclasses.dataclass(frozen=True)
class ClusterSettings:
    """The settings of `tfc.cluster`, under the names that it has for them."""

    clusters: int
    start: str
    gradient: str | None
    per_channel: bool
    group: str | None
    block: int | None
    steps: int
    seed: int

    def replaced(self, changes):
        """A copy with some settings changed, as a `Rule` does for its weights."""
        unknown = set(changes) - {f.name for f in dataclasses.fields(self)}
        if unknown:
            raise ValueError(
                f"A rule cannot set {sorted(unknown)}. It can set "
                f"{[f.name for f in dataclasses.fields(self)]}."
            )
        return dataclasses.replace(self, **changes)

    def transform(self, layer, variable, path):
        """The transform of a weight.

        Raises:
            ValueError: If the settings do not fit it, or are out of range.
        """
        common = {
            "clusters": self.clusters,
            "gradient": self.gradient,
            "steps": self.steps,
            "seed": self.seed,
        }
        if self.block is not None:
            axis = _block_axis(layer, variable, path)
            self._check_alone("block", path)
            return VectorCodebook(block=self.block, axis=axis, **common)
        if self.group is not None:
            self._check_alone("group", path)
            return GroupCodebook(start=self.start, **common)
        axes = _channel_axes(layer, variable) if self.per_channel else ()
        return Codebook(axes=axes, start=self.start, **common)

    def _check_alone(self, name, path):
        others = {"group": self.group, "per_channel": self.per_channel}
        others = [k for k, v in others.items() if v and k != name]
        if others:
            raise ValueError(
                f"`{name}` does not go with `{others[0]}`. Received both for {path!r}: "
                f"{name}={getattr(self, name)!r}, "
                f"{others[0]}={getattr(self, others[0])!r}"
            )


def _channel_axes(layer, variable):
    name, axes = KERNELS.get(type(layer), (None, (-1,)))
    if len(variable.shape) == 1:
        return ()
    return axes if name == variable.name else (-1,)


def _block_axis(layer, variable, path):
    """The axis of a unit's weights, or of an embedding's."""
    kind = type(layer).__name__
    axis = {("Dense", "kernel"): 0, ("Embedding", "embeddings"): 1}.get(
        (kind, variable.name.removeprefix("_"))
    )
    if axis is None:
        raise ValueError(
            "`block` is for kernels of Dense layers and tables of Embedding layers. "
            f"Received: {path!r}, of a {kind} layer. Set it by rule: "
            "rules=[tfc.Rule('dense', block=4)]."
        )
    return axis
