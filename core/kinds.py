"""Kinds: named variants that the folder they stand in registers.

A kind is one file with one class. Dropping the file into its folder puts the kind into validation, OpenAPI, the
catalog and the contract tests. Packages outside this repository add kinds through the entry-point groups
``gauntlet.attacks``, ``gauntlet.defenses``, ``gauntlet.networks``, ``gauntlet.datasets``, ``gauntlet.stages``,
``gauntlet.figures``.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from fractions import Fraction
from importlib.metadata import entry_points
from typing import Annotated, Any, ClassVar, Self, TypeVar, Union

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, JsonValue
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from core.canonical import digest
from core.fields import format_pixels


def known_name(registry: Mapping[str, Any], what: str) -> Callable[[str], str]:
    """Return the validator that refuses a name which the registry does not have, and says which it has."""

    def known(name: str) -> str:
        if name not in registry:
            allowed = sorted(registry)
            said = {"said": f"unknown {what} {name!r}; allowed: {', '.join(allowed)}", "allowed": allowed}
            raise PydanticCustomError("unknown_name", "{said}", said)
        return name

    return known


def names_of(registry: Mapping[str, Any]) -> Any:
    """Return the field that tells OpenAPI the registry's names."""
    return Field(json_schema_extra={"enum": list[JsonValue](sorted(registry))})


class Spec(BaseModel):
    """Frozen, strict about unknown fields, and free of NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler, /) -> JsonSchemaValue:
        """Return the schema with pixel distances spelled as users write them: pydantic leaves defaults unformatted."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, field in cls.model_fields.items():
            if isinstance(field.default, Fraction) and name in properties:
                properties[name]["default"] = format_pixels(field.default)
        return schema


class Kind(Spec):
    """Base of every variant: a spec whose `kind` names it and whose `version` counts changes of its results."""

    version: ClassVar[int] = 1
    kind: Any = ""  # each kind narrows it to its own name

    def canonical(self) -> dict[str, Any]:
        """Return the spec with every default filled in and the code versions of it and of every kind inside it."""
        whole = self.model_dump(mode="json")
        inner = {name: value.canonical() for name, value in self if isinstance(value, Kind)}
        return {**whole, **inner, "version": self.version}

    def identity(self) -> str:
        """Return the sha256 of the canonical spec."""
        return digest(self.canonical())

    def filled(self, defaults: Mapping[str, Any]) -> Self:
        """Return the spec with the fields its author left out set to `defaults`, a dataset's own for this kind."""
        update = {name: value for name, value in defaults.items() if name not in self.model_fields_set}
        return type(self).model_validate({**self.model_dump(), **update}) if update else self

    def unfit(self) -> tuple[str, str] | None:
        """Return a field and why no new job may ask for what it holds, or None; a stored spec stays readable."""
        return None

    def differences(self, leave_out: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Return the fields that differ from this kind's defaults, in the order they are declared."""
        dumped = self.model_dump(mode="json", exclude_defaults=True)
        return {name: value for name, value in dumped.items() if name != "kind" and name not in leave_out}


K = TypeVar("K", bound=Kind)


class BadKind(TypeError):
    """A module in a folder of kinds does not hold exactly one kind of its own name, or an entry point holds none."""


def discover(package: str, base: type[K], group: str) -> Mapping[str, type[K]]:
    """Return kind name -> class for every module of `package`, then every entry point of `group`.

    Raises:
        BadKind: a module holds no kind, several, or one whose name is not the module's; an entry point is no kind of
            this base, or its module lacks it or is being imported now; or a name is taken twice.
    """
    found: dict[str, type[K]] = {}
    folder = importlib.import_module(package)
    for info in sorted(pkgutil.iter_modules(folder.__path__), key=lambda module: module.name):
        if info.name == "base":
            continue
        module = importlib.import_module(f"{package}.{info.name}")
        own = [
            cls
            for _, cls in inspect.getmembers(module, inspect.isclass)
            if issubclass(cls, base) and cls.__module__ == module.__name__ and cls.model_fields["kind"].default
        ]
        if len(own) != 1:
            raise BadKind(f"{module.__name__} must define exactly one {base.__name__} with a kind, found {len(own)}")
        _register(found, own[0], module.__name__, info.name)
    for point in entry_points(group=group):
        try:
            cls = point.load()
        except AttributeError as error:  # its module is imported first, and imports this package, which loads it again
            first = f"where {point.module} is imported first, its package's __init__.py must `import {package}`"
            raise BadKind(f"{point.value} cannot be had: {error}; {first}") from error
        if not (inspect.isclass(cls) and issubclass(cls, base)):
            raise BadKind(f"{point.value} is no class made from {base.__name__}, which {group} asks for")
        _register(found, cls, point.value, point.name)
    return found


def _register(found: dict[str, type[K]], cls: type[K], where: str, name: str) -> None:
    kind = cls.model_fields["kind"].default
    if kind != name and kind != name.replace("_", "-"):
        raise BadKind(f"{where}: the kind is {kind!r}, but the module is named {name!r}")
    if kind in found:
        raise BadKind(f"{where}: the kind {kind!r} is already defined by {found[kind].__module__}")
    found[kind] = cls


def union_of(kinds: Mapping[str, type[K]]) -> Any:
    """Return the type "one of these kinds", told apart by `kind`, for use as a pydantic field."""
    return Annotated[Union[tuple(kinds.values())], Field(discriminator="kind")]  # noqa: UP007
