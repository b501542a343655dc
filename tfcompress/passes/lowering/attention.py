"""Attention from dense layers, two matrix products and a softmax."""

import math

import numpy as np
from keras import layers, ops
from keras.activations import linear

from tfcompress.graph import built_copy, has_mask
from tfcompress.passes.lowering import parts
from tfcompress.passes.lowering.activations import masked
from tfcompress.passes.lowering.convolution import einsum_dense


def attend(query, key, value, *, scale=None, mask=None, dropout=None):
    """Scaled dot-product attention.

    Args:
        query: Tensor `(batch, heads, queries, width)`.
        key: Tensor `(batch, heads, keys, width)`.
        value: Tensor `(batch, heads, keys, value width)`.
        scale: Factor of the scores; `None` is `1 / sqrt(width)`.
        mask: Bool, broadcasts to `(batch, heads, queries, keys)`; `None` is all.
        dropout: Dropout layer for the probabilities, or `None`.

    Returns:
        `(outputs, probabilities)`.

    Reference:
        Vaswani et al., 2017, eq. 1. arXiv:1706.03762
    """
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    query = query if scale == 1.0 else query * scale
    scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))
    if mask is not None:
        scores = masked(scores, mask)
    probabilities = ops.softmax(scores, axis=-1)
    dropped = probabilities if dropout is None else dropout(probabilities)
    return ops.matmul(dropped, value), probabilities


def _heads_first(x):
    return ops.transpose(x, (0, 2, 1, 3))


def multi_head(layer):
    """Form of MultiHeadAttention and GroupQueryAttention over one axis."""
    grouped = isinstance(layer, layers.GroupQueryAttention)
    if getattr(layer, "_use_gate", False) or getattr(layer, "use_gate", False):
        return None
    if getattr(layer, "_sliding_window", None) is not None:
        return None
    projections = [
        built_copy(part, name=f"{layer.name}_{name}")
        for name, part in _projections(layer, grouped)
    ]
    # Scaled where it is computed, so that the scale folds into the kernel.
    width = projections[0].kernel.shape[-1]
    scales = (1.0 / math.sqrt(width), None, None, None)
    if projections[0].activation is not linear:
        return None
    # Forms at once: an EinsumDense does not know the length of its output.
    projects = [
        einsum_dense(part, scale=scale)
        for part, scale in zip(projections, scales, strict=True)
    ]
    if None in projects:
        return None
    rate = layer.dropout if grouped else layer._dropout
    dropout = layers.Dropout(rate, name=f"{layer.name}_dropout") if rate else None

    def form(query, value, key=None, **kwargs):
        options = _options(kwargs)
        if options is None or len(query.shape) != 3:
            return None
        key = value if key is None else key
        inputs = (query, key, value)
        if has_mask(*inputs):
            return None
        q, k, v = (
            _heads_first(project(x))
            for project, x in zip(projects[:3], inputs, strict=True)
        )
        if grouped:
            k, v = (_for_all_heads(t, q.shape[1]) for t in (k, v))
        mask = _for_heads(options["attention_mask"])
        mask = _mask(mask, options["use_causal_mask"], query, key)
        outputs, probabilities = attend(q, k, v, scale=1.0, mask=mask, dropout=dropout)
        outputs = projects[3](_heads_first(outputs))
        wanted = options["return_attention_scores"]
        return (outputs, probabilities) if wanted else outputs

    return form


def _projections(layer, grouped):
    prefix = "" if grouped else "_"
    for name in ("query", "key", "value"):
        yield (
            name,
            getattr(layer, f"{prefix}{name}_dense", None)
            or getattr(layer, f"_{name}_dense"),
        )
    yield "output", layer._output_dense


def _options(kwargs):
    """The call's options; `None` if one is beyond this form."""
    known = {
        "attention_mask": None,
        "use_causal_mask": False,
        "return_attention_scores": False,
    }
    return None if set(kwargs) - set(known) else known | kwargs


def _mask(mask, causal, query, key):
    """One mask of all that hides keys of tensors `(batch, length, ...)`; or `None`."""
    if not causal:
        return mask
    visible = np.tril(np.ones((1, 1, query.shape[1], key.shape[1]), bool))
    return visible if mask is None else ops.logical_and(mask, visible)


def _for_heads(mask):
    """An attention mask as truth values with an axis for the heads."""
    if mask is None:
        return None
    if str(mask.dtype) != "bool":
        mask = ops.greater(mask, 0)
    return ops.expand_dims(mask, 1) if len(mask.shape) == 3 else mask


def _for_all_heads(x, heads):
    """Repeats each head of keys or values for the queries that share it."""
    times = heads // x.shape[1]
    return x if times == 1 else ops.repeat(x, times, axis=1)


def dot_product_attention(layer):
    """Form of `keras.layers.Attention` with dot-product scores."""
    if layer.score_mode != "dot":
        return None
    scale = None if layer.scale is None else parts.numpy(layer.scale)
    factor = (
        None if scale is None else parts.parameter(layer, f"{layer.name}_scale", scale)
    )
    dropout = (
        layers.Dropout(layer.dropout, name=f"{layer.name}_dropout")
        if layer.dropout
        else None
    )

    def form(inputs, mask=None, **kwargs):
        asked = {name for name, value in kwargs.items() if value}
        if mask is not None or asked - {"use_causal_mask"}:
            return None
        query, value, *rest = inputs
        key = rest[0] if rest else value
        if has_mask(*inputs):
            return None
        if factor is not None:
            query = query * factor(query)
        causal = _mask(None, kwargs.get("use_causal_mask"), query, key)
        q, k, v = (ops.expand_dims(t, 1) for t in (query, key, value))
        outputs, _ = attend(q, k, v, scale=1.0, mask=causal, dropout=dropout)
        return ops.squeeze(outputs, 1)

    return form


def attention_operation(operation):
    """Form of `ops.dot_product_attention`, heads on the third axis."""
    if operation.attn_logits_soft_cap:
        return None

    def form(query, key, value, bias=None, mask=None, scale=None):
        if bias is not None:
            return None
        mask = _mask(mask, operation.is_causal, query, key)
        q, k, v = (_heads_first(t) for t in (query, key, value))
        k, v = (_for_all_heads(t, q.shape[1]) for t in (k, v))
        outputs, _ = attend(q, k, v, scale=scale, mask=mask)
        return _heads_first(outputs)

    return form


LAYERS = {
    layers.MultiHeadAttention: multi_head,
    layers.GroupQueryAttention: multi_head,
    layers.Attention: dot_product_attention,
}

OPERATIONS = {"DotProductAttention": attention_operation}
