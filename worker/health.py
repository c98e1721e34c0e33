"""`python -m worker.health worker|keeper`: exit 0 where this host's worker lives, or the keeper does its duties."""

import socket
import sys

from store import workers
from store.database import Database
from store.settings import settings


def healthy(role: str) -> bool:
    """Return whether the process of that role has reported lately, a keeper that it has done all its duties."""
    chosen = settings()
    database = Database(chosen.sql_url)
    with database.read() as session:
        if role == "keeper":
            return workers.keeper_trouble(session, chosen.keeper_seconds) is None
        alive = workers.all_workers(session, chosen.alive_seconds)
        return any(ok and worker.host == socket.gethostname() for worker, ok, _ in alive)


def main() -> None:
    """Exit 0 where healthy, 1 where not, 2 where the role is none of ours."""
    roles = ("worker", "keeper")
    if len(sys.argv) != 2 or sys.argv[1] not in roles:
        sys.exit(f"usage: python -m worker.health {'|'.join(roles)}")
    sys.exit(0 if healthy(sys.argv[1]) else 1)


if __name__ == "__main__":
    main()
