"""The Python client and the `gauntlet` command. It talks HTTP only."""
