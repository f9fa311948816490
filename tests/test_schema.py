"""The records: plain JSON and back, nothing lost."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultllm import schema
from vaultllm.schema import from_dict, to_dict

RECORDS = [
    record for record in vars(schema).values() if isinstance(record, type) and dataclasses.is_dataclass(record) and record is not schema.Run
]
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))


def strategy(record: type) -> st.SearchStrategy[object]:
    """Any instance of a record; free dictionaries hold plain JSON values."""
    fields = {}
    for name, hint in schema._fields(record).items():
        if "dict[str, typing.Any]" in str(hint):
            fields[name] = st.dictionaries(st.text(max_size=5), PLAIN, max_size=3)
        elif dataclasses.is_dataclass(hint):
            fields[name] = strategy(hint)
        elif "vaultllm.schema" in str(hint):
            (inner, _) = hint.__args__
            fields[name] = st.lists(strategy(inner), max_size=2).map(tuple)
        else:
            fields[name] = st.from_type(hint)
    return st.builds(record, **fields)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
@given(data=st.data())
def test_to_dict_and_from_dict_are_inverses_through_json(record: type, data: st.DataObject) -> None:
    value = data.draw(strategy(record))
    assert from_dict(record, json.loads(json.dumps(to_dict(value)))) == value


def test_an_unknown_field_is_an_error() -> None:
    with pytest.raises(TypeError, match="no field"):
        from_dict(schema.Problem, {"code": "E-X", "message": "m", "colour": 1})


def test_every_field_is_documented() -> None:
    import ast
    from pathlib import Path

    tree = ast.parse(Path(schema.__file__).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign):
                    documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    assert documented, f"{node.name}.{field.target.id} has no docstring"  # type: ignore[union-attr]
