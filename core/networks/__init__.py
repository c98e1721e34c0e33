"""Networks: one file per kind."""

from typing import TYPE_CHECKING

from core.kinds import discover, union_of
from core.networks.base import Network

NETWORKS = discover("core.networks", Network, "gauntlet.networks")
if TYPE_CHECKING:
    AnyNetwork = Network
else:
    AnyNetwork = union_of(NETWORKS)

__all__ = ["NETWORKS", "AnyNetwork", "Network"]
