"""The image sets a benchmark runs on: one file each, found by their folder."""

from core.datasets.base import Data, Dataset
from core.kinds import discover

DATASETS = discover("core.datasets", Dataset, "gauntlet.datasets")

__all__ = ["DATASETS", "Data", "Dataset"]
