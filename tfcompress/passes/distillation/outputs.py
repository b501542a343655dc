"""What the outputs of student and teacher mean, and how they are made comparable.

Example:
    ```python
    for output in describe_outputs(model, "auto", "teacher"):
        print(output.name, output.kind, output.shape)
    ```
"""

import dataclasses

import keras
from keras import ops

from tfcompress.graph import Graph, activation_name, functional
from tfcompress.numerics.distillation import merged_classes

KINDS = (
    "auto",
    "logits",
    "probabilities",
    "binary_logits",
    "binary_probabilities",
    "values",
)
_BY_ACTIVATION = {"softmax": "probabilities", "sigmoid": "binary_probabilities"}
# Probabilities behind these are probabilities still, or their mean.
_LOOKED_THROUGH = (
    "FakeQuant",
    "Reshape",
    "Identity",
    "Flatten",
    "Dropout",
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "GlobalAveragePooling3D",
)
# Layers without an activation of their own whose outputs are no probabilities.
_LINEAR = ("BatchNormalization", "LayerNormalization", "RMSNormalization")


@dataclasses.dataclass(frozen=True)
class Output:
    """An output of a model.

    Attributes:
        name: Its key, where outputs are a dict; else the name of its layer, or its
            number.
        kind: One of `KINDS` but `"auto"`; `None` where it cannot be told.
        found: What was seen instead, for messages.
        shape: Tuple of ints and `None`; `None` where it is not known.
        keyed: Whether the outputs are a dict, whose order is that of its keys.
    """

    name: str
    kind: str | None
    found: str
    shape: tuple | None
    keyed: bool = False


def describe_outputs(model, declared, argument):
    """The outputs of a model, in the order of `keras.tree.flatten`.

    Args:
        model: `keras.Model`, or what stands for one with `outputs_described`.
        declared: One of `KINDS` for all outputs, or a dict or list with one an output.
        argument: `"student"` or `"teacher"`, for messages.

    Returns:
        List of `Output`.

    Raises:
        ValueError: If a kind is not one of `KINDS`, or they are not one an output.
    """
    if hasattr(model, "outputs_described"):
        found = model.outputs_described()
    else:
        found = _of_model(model, declared)
    kinds = _declared(declared, [output.name for output in found], argument)
    return [
        output if kind == "auto" else dataclasses.replace(output, kind=kind)
        for output, kind in zip(found, kinds, strict=True)
    ]


def _of_model(model, declared):
    if functional(model) is None:
        # How many there are is seen only in training: as many as were declared.
        names = ["0"]
        if isinstance(declared, dict):
            names = sorted(declared)
        elif isinstance(declared, (list, tuple)):
            names = [str(i) for i in range(len(declared))]
        return [Output(name, None, "a subclassed model", None) for name in names]
    graph = Graph(model)
    struct = graph.outputs_struct
    names = sorted(struct) if isinstance(struct, dict) else None
    if names is None or len(names) != len(graph.outputs):
        names = list(functional(model).output_names)
    found = []
    for name, tensor in zip(names, graph.outputs, strict=True):
        activation = _activation_behind(graph, tensor)
        kind = _BY_ACTIVATION.get(activation)
        # One linear value is a regression or a logit: nobody can tell.
        if activation == "linear" and tensor.shape[-1] != 1:
            kind = "logits"
        shown = "one linear value" if activation == "linear" else f"{activation!r}"
        shape, keyed = tuple(tensor.shape), isinstance(struct, dict)
        found.append(Output(name, kind, f"an output of {shown}", shape, keyed))
    return found


def _activation_behind(graph, tensor):
    """Name of the activation behind an output; quantizers are looked through."""
    while (call := graph.producer(tensor)) is not None:
        operation = getattr(call.operation, "layer", call.operation)
        if isinstance(operation, keras.Model) and functional(operation) is not None:
            inner = Graph(operation)
            index = [id(t) for t in call.outputs].index(id(tensor))
            graph, tensor = inner, inner.outputs[index]
            continue
        if type(operation).__name__ in ("Softmax", "Sigmoid"):
            return type(operation).__name__.lower()
        if type(operation).__name__ not in _LOOKED_THROUGH:
            name = type(operation).__name__
            told = hasattr(operation, "activation") or name in _LINEAR
            return activation_name(operation) if told else name
        tensor = call.input_tensors[0]
    return "linear"


def _declared(declared, names, argument):
    if isinstance(declared, dict):
        if set(declared) != set(names):
            raise ValueError(
                f"`{argument}_outputs` must have one kind for each output {names}. "
                f"Received: {declared}"
            )
        kinds = [declared[name] for name in names]
    elif isinstance(declared, (list, tuple)):
        kinds = list(declared)
        if len(kinds) != len(names):
            raise ValueError(
                f"`{argument}_outputs` must have one kind for each output {names}. "
                f"Received: {declared}"
            )
    else:
        kinds = [declared] * len(names)
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(
                f"`{argument}_outputs` must be one of {KINDS}. Received: {kind!r}"
            )
    return kinds


def check_kind(output, argument, term):
    """Raises unless it is known whether an output is of classes.

    Args:
        output: `Output` that a term on classes reads.
        argument: `"student"` or `"teacher"`.
        term: Name of the term, for messages.
    """
    if output.kind == "values":
        raise ValueError(
            f"{term} compares classes, and output {output.name!r} of `{argument}` was "
            "declared as values. Take tfc.distillation.Regression()."
        )
    if output.kind is not None:
        if (
            output.shape is not None
            and output.shape[-1] == 1
            and (not output.kind.startswith("binary"))
        ):
            raise ValueError(
                f"`{argument}` has one output value of {output.kind}: softmax needs "
                "two classes or more. If it is the one logit, or probability, of two "
                f"classes, say {argument}_outputs='binary_logits' or "
                "'binary_probabilities'; for a regression pass "
                "terms=[tfc.distillation.Regression()]."
            )
        return
    raise ValueError(
        f"Cannot tell whether `{argument}` gives logits or softmax probabilities: "
        f"output {output.name!r} is {output.found}. Say {argument}_outputs='logits' or "
        f"{argument}_outputs='probabilities' ('binary_logits', 'binary_probabilities' "
        "for sigmoids); for a regression pass terms=[tfc.distillation.Regression()]."
    )


def as_logits(outputs, kind):
    """Numbers of which a softmax over the last axis gives the probabilities.

    Args:
        outputs: Tensor of an output.
        kind: Its kind. Each binary value becomes two classes on a new last axis.

    Returns:
        float32 tensor; values as they are.
    """
    outputs = ops.cast(outputs, "float32")
    if kind == "probabilities":
        return ops.log(ops.maximum(outputs, keras.backend.epsilon()))
    if kind == "binary_logits":
        return ops.stack([ops.zeros_like(outputs), outputs], axis=-1)
    if kind == "binary_probabilities":
        pair = ops.stack([1.0 - outputs, outputs], axis=-1)
        return ops.log(ops.maximum(pair, keras.backend.epsilon()))
    return outputs


def check_class_map(class_map, student, teacher):
    """The classes of a teacher that make up each class of the student.

    Args:
        class_map: One entry for each class of the student: a teacher's class, or a
            list of several.
        student: `Output` of the student.
        teacher: `Output` of the teacher.

    Returns:
        List of lists of ints.

    Raises:
        ValueError: If it does not fit, or a class of the teacher is named twice.
    """
    try:
        groups = [
            [int(i) for i in (x if isinstance(x, (list, tuple)) else [x])]
            for x in class_map
        ]
    except (TypeError, ValueError) as err:
        raise ValueError(
            "`class_map` must have an entry for each class of the student: the number "
            f"of a teacher's class, or a list of them. Received: {class_map!r}"
        ) from err
    sizes = [output.shape and output.shape[-1] for output in (student, teacher)]
    flat = [i for group in groups for i in group]
    if sizes[0] and len(groups) != sizes[0] or not all(groups):
        raise ValueError(
            "`class_map` must have an entry, not an empty one, for each class of the "
            f"student, here {sizes[0]}. Received: {len(groups)} entries: {class_map!r}"
        )
    last = min(flat) < 0 or (sizes[1] and max(flat) >= sizes[1])
    if last or len(set(flat)) != len(flat):
        raise ValueError(
            "`class_map` must name classes of the teacher, each at most once, from 0 "
            f"to {sizes[1] and sizes[1] - 1}. Received: {class_map!r}"
        )
    return groups


def mapped(logits, groups):
    """A teacher's logits in the classes of the student; `None` leaves them."""
    return logits if groups is None else merged_classes(logits, groups)
