"""The flatbuffer of TFLite metadata: written and read field by field.

The numbers of fields and of enumerations are those of `metadata_schema.fbs`, version
1.0.0, where a union takes two fields: its type and its table.
"""

import struct

_IDENTIFIER = b"M001"
_PARSER_VERSION = "1.0.0"

# ModelMetadata
_MODEL_TEXTS = {"name": 0, "description": 1, "version": 2, "author": 4, "license": 5}
_SUBGRAPHS, _FILES, _PARSER = 3, 6, 7
# SubGraphMetadata
_INPUTS, _OUTPUTS = 2, 3
# TensorMetadata
_NAME, _DESCRIPTION, _CONTENT, _UNITS, _STATS, _TENSOR_FILES = 0, 1, 3, 4, 5, 6
# Content, ContentProperties, ImageProperties
_FEATURE, _IMAGE = 1, 2
_COLORS = {"rgb": 1, "grayscale": 2}
# ProcessUnitOptions
_NORMALIZATION = 1
# AssociatedFileType
_AXIS_LABELS, _VALUE_LABELS = 2, 3


class DamagedTable(ValueError):
    """Bytes that are no table, or point out of themselves."""


def label_names(inputs, outputs):
    """Pairs of file name and labels of the tensors that have any."""
    labelled = [tensor for tensor, _ in (*inputs, *outputs) if tensor.labels]
    for tensor in labelled:
        yield _labels_name(tensor, len(labelled)), tensor.labels


def _labels_name(tensor, count):
    if count == 1:
        return "labels.txt"
    return f"labels_{tensor.name.replace('/', '_')}.txt"


def encoded(metadata, inputs, outputs):
    """Bytes of the flatbuffer.

    Args:
        metadata: A `Metadata`.
        inputs: Pairs of `TensorMetadata` and shape.
        outputs: The same.
    """
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    count = len(list(label_names(inputs, outputs)))
    tensors = {
        field: _vector(builder, [_tensor(builder, t, shape, count) for t, shape in own])
        for field, own in ((_INPUTS, inputs), (_OUTPUTS, outputs))
    }
    subgraphs = _vector(builder, [_table(builder, 10, tensors)])
    files = [_file(builder, name, 0) for name in metadata.files]
    fields = {
        number: builder.CreateString(getattr(metadata, name))
        for name, number in _MODEL_TEXTS.items()
        if getattr(metadata, name)
    }
    fields[_SUBGRAPHS] = subgraphs
    if files:
        fields[_FILES] = _vector(builder, files)
    fields[_PARSER] = builder.CreateString(_PARSER_VERSION)
    builder.Finish(_table(builder, 8, fields), _IDENTIFIER)
    return bytes(builder.Output())


def _tensor(builder, tensor, shape, count):
    fields = {_NAME: builder.CreateString(tensor.name)}
    if tensor.description:
        fields[_DESCRIPTION] = builder.CreateString(tensor.description)
    fields[_CONTENT] = _content(builder, tensor, shape)
    if tensor.mean:
        numbers = {0: _floats(builder, tensor.mean), 1: _floats(builder, tensor.std)}
        options = _table(builder, 2, numbers)
        unit = _table(builder, 2, {1: options}, {0: ("Uint8", _NORMALIZATION)})
        fields[_UNITS] = _vector(builder, [unit])
    stats = {
        number: _floats(builder, values)
        for number, values in ((0, tensor.maximum), (1, tensor.minimum))
        if values
    }
    if stats:
        fields[_STATS] = _table(builder, 2, stats)
    if tensor.labels:
        name = _labels_name(tensor, count)
        fields[_TENSOR_FILES] = _vector(builder, [_file(builder, name, _AXIS_LABELS)])
    return _table(builder, 7, fields)


def _content(builder, tensor, shape):
    if tensor.color_space is None:
        kind, properties = _FEATURE, _table(builder, 0, {})
    else:
        _, height, width, _ = shape
        size = _table(builder, 2, {}, {0: ("Uint32", width), 1: ("Uint32", height)})
        color = {0: ("Int8", _COLORS[tensor.color_space])}
        kind, properties = _IMAGE, _table(builder, 2, {1: size}, color)
    return _table(builder, 3, {1: properties}, {0: ("Uint8", kind)})


def _file(builder, name, kind):
    name = builder.CreateString(name)
    return _table(builder, 5, {0: name}, {2: ("Int8", kind)})


def _table(builder, size, offsets, numbers=()):
    builder.StartObject(size)
    for field, offset in offsets.items():
        builder.PrependUOffsetTRelativeSlot(field, offset, 0)
    for field, (kind, value) in dict(numbers).items():
        getattr(builder, f"Prepend{kind}Slot")(field, value, 0)
    return builder.EndObject()


def _vector(builder, offsets):
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def _floats(builder, values):
    builder.StartVector(4, len(values), 4)
    for value in reversed(values):
        builder.PrependFloat32(value)
    return builder.EndVector()


def decoded(data):
    """Reads the flatbuffer.

    Args:
        data: Its bytes. They may be damaged: nobody verified them.

    Returns:
        Dict of the model's texts; lists of dicts for the inputs and the outputs, with
        the fields of `TensorMetadata` and `labels_file`; set of the names of files that
        are labels.

    Raises:
        DamagedTable: If the bytes are damaged.
    """
    if data[4:8] != _IDENTIFIER:
        raise DamagedTable("the metadata lack the identifier 'M001'")
    root = _Table(data, _unpack("<I", data, 0))
    texts = {name: root.text(number) for name, number in _MODEL_TEXTS.items()}
    subgraphs = root.tables(_SUBGRAPHS)
    inputs, outputs = (
        [_tensor_fields(t) for graph in subgraphs[:1] for t in graph.tables(field)]
        for field in (_INPUTS, _OUTPUTS)
    )
    labels = {fields["labels_file"] for fields in (*inputs, *outputs)} - {None}
    return texts, inputs, outputs, labels


def _tensor_fields(table):
    files = [
        file.text(0)
        for file in table.tables(_TENSOR_FILES)
        if file.number(2, "b") in (_AXIS_LABELS, _VALUE_LABELS)
    ]
    normalizations = [
        unit.table(1)
        for unit in table.tables(_UNITS)
        if unit.number(0, "B") == _NORMALIZATION
    ]
    norm = normalizations[0] if normalizations else None
    stats = table.table(_STATS)
    return {
        "name": table.text(_NAME),
        "description": table.text(_DESCRIPTION),
        "mean": norm.floats(0) if norm else (),
        "std": norm.floats(1) if norm else (),
        "maximum": stats.floats(0) if stats else (),
        "minimum": stats.floats(1) if stats else (),
        "color_space": _color_space(table.table(_CONTENT)),
        "labels_file": files[0] if files else None,
    }


def _color_space(content):
    if content is None or content.number(0, "B") != _IMAGE:
        return None
    properties = content.table(1)
    number = properties.number(0, "b") if properties else 0
    return {n: name for name, n in _COLORS.items()}.get(number)


class _Table:
    """A table in bytes that may be damaged: every step is checked."""

    def __init__(self, data, place):
        self.data, self.place = data, place
        self.fields = place - _unpack("<i", data, place)
        self.size = _unpack("<H", data, self.fields)

    def _offset(self, field):
        """Where a field is; `None` if it is not there."""
        entry = 4 + 2 * field
        if entry >= self.size:
            return None
        offset = _unpack("<H", self.data, self.fields + entry)
        return self.place + offset if offset else None

    def number(self, field, kind):
        place = self._offset(field)
        return 0 if place is None else _unpack(f"<{kind}", self.data, place)

    def table(self, field):
        place = self._offset(field)
        return None if place is None else _Table(self.data, self._follow(place))

    def _follow(self, place):
        return place + _unpack("<I", self.data, place)

    def _vector(self, field, width):
        """Place of the first entry, and number of entries."""
        place = self._offset(field)
        if place is None:
            return 0, 0
        place = self._follow(place)
        count = _unpack("<I", self.data, place)
        if place + 4 + count * width > len(self.data):
            raise DamagedTable(f"{count} entries reach beyond the end")
        return place + 4, count

    def tables(self, field):
        place, count = self._vector(field, 4)
        return [
            _Table(self.data, self._follow(place + 4 * number))
            for number in range(count)
        ]

    def text(self, field):
        place, count = self._vector(field, 1)
        return self.data[place : place + count].decode(errors="replace")

    def floats(self, field):
        place, count = self._vector(field, 4)
        return struct.unpack_from(f"<{count}f", self.data, place)


def _unpack(kind, data, place):
    if place < 0 or place + struct.calcsize(kind) > len(data):
        raise DamagedTable(f"place {place} is beyond the end")
    return struct.unpack_from(kind, data, place)[0]
