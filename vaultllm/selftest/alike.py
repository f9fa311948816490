"""Where two states part. Knows nothing about what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first place in which two facts part, in a line; `nothing` when they are equal."""
    for key in sorted({*found, *wanted}):
        one, other = found.get(key), wanted.get(key)
        if one != other:
            if isinstance(one, dict) and isinstance(other, dict):
                return f"{key}.{difference(one, other)}"
            if isinstance(one, list) and isinstance(other, list):
                more, less = ([row for row in rows if row not in rest] for rows, rest in ((one, other), (other, one)))
                return f"{key}: {len(one)} rows for {len(other)}; more: {str(more)[:200]}; less: {str(less)[:200]}"
            return f"{key}: {str(one)[:200]} for {str(other)[:200]}"
    return "nothing"
