"""Where in a job's body a validator's location points: the tags that tell union members apart are not the user's."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel

from core.jobs import JOB

Schema = dict[str, Any]


@cache
def _job() -> tuple[Schema, dict[str, Schema]]:
    """Return the core schema of a job, and its definitions by reference."""
    whole: Any = JOB.core_schema
    if whole["type"] == "definitions":
        return whole["schema"], {found["ref"]: found for found in whole["definitions"]}
    return whole, {}


def resolved(location: Sequence[Any]) -> tuple[list[Any], type[BaseModel] | None]:
    """Return the location without tags, and the model whose field its last part is, or would be."""
    schema, path, model = _bare(_job()[0]), list[Any](), None
    for part in location:
        if schema is None:
            path.append(part)
        elif schema["type"] == "tagged-union" and part in schema["choices"]:
            schema = _bare(schema["choices"][part])
        elif schema["type"] == "model":
            model, inside = schema["cls"], _bare(schema["schema"])
            field = inside["fields"].get(part) if inside else None
            path.append(part)
            schema = _bare(field["schema"]) if field else None
        else:
            path.append(part)
            schema = _bare(schema["items_schema"]) if schema["type"] == "list" else None
    if schema is not None and schema["type"] == "model":
        model = schema["cls"]
    return path, model


def _bare(schema: Schema | None) -> Schema | None:
    """Return the schema below defaults, validators and references."""
    while schema is not None and schema["type"] not in ("tagged-union", "model", "model-fields", "list"):
        below = _job()[1].get(schema["schema_ref"]) if schema["type"] == "definition-ref" else schema.get("schema")
        schema = below
    return schema
