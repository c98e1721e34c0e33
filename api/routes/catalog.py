"""What can be asked for: kinds with their schemas, and suites."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from api.schemas import SuiteReply
from api.service import ServiceDep
from core.attacks import ATTACKS
from core.datasets import DATASETS
from core.defenses import DEFENSES
from core.figures import FIGURES
from core.networks import NETWORKS
from core.stages import STAGES
from core.suites import ABOUT, suites

router = APIRouter(tags=["catalog"])


@router.get("/catalog")
def catalog(service: ServiceDep) -> dict[str, Any]:
    """Answer with every kind: its fields, units, bounds and defaults as JSON schema, and its code version."""
    return {
        "attacks": _schemas(ATTACKS),
        "defenses": _schemas(DEFENSES),
        "networks": _schemas(NETWORKS),
        "stages": _schemas(STAGES),
        "figures": _schemas(FIGURES),
        "datasets": {name: _dataset(name, service) for name in DATASETS},
    }


def _schemas(kinds: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    return {
        name: {"version": getattr(cls, "version", 1), "schema": cls.model_json_schema()} for name, cls in kinds.items()
    }


def _dataset(name: str, service: ServiceDep) -> dict[str, Any]:
    dataset = DATASETS[name]()
    missing = dataset.missing(service.settings.data_dir)
    return {
        "title": dataset.title, "note": dataset.note, "real": dataset.real, "shape": dataset.shape,
        "classes": dataset.classes, "train_size": dataset.train_size, "test_size": dataset.test_size,
        "sha256": dataset.sha256, "network": dataset.network, "eps": dataset.eps, "panel": dataset.panel,
        "transfer": dataset.transfer, "defaults": dataset.defaults, "installed": not missing,
        "remedy": dataset.remedy if missing else None,
    }  # fmt: skip


@router.get("/suites")
def list_suites() -> list[SuiteReply]:
    """List the named suites."""
    return [
        SuiteReply(
            name=name, description=spec.get(ABOUT, ""),
            spec={key: value for key, value in spec.items() if key != ABOUT},
        )
        for name, spec in suites().items()
    ]  # fmt: skip
