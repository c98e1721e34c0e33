"""Why results of a spec are to be read with care: said in plans before it runs, and beside its results."""

from collections.abc import Iterable

from core.stages.train import Train


def cautions(trains: Iterable[Train]) -> list[str]:
    """Return what is known against believing models trained so, once each, under the defense's own label."""
    said = (f"{train.defense.label()}: {train.defense.caution}" for train in trains if train.defense.caution)
    return list(dict.fromkeys(said))
