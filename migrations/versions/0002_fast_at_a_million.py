"""Indexes that match their queries at 100,000 ready stages and 1,000,000 evaluations; the number of a cell."""

from hashlib import sha256

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
PARTIAL = (
    ("ix_stages_ready", ["queue", sa.text("priority DESC"), "id"], "state = 'ready'"),
    ("ix_stages_blocked", ["id"], "state = 'blocked'"),
    ("ix_stages_lease", ["lease_expires"], "state = 'running'"),
    ("ix_stages_measured", ["queue", "id"], "state = 'succeeded' AND kind IN ('train', 'craft')"),
)
CELLS = (
    "dataset", "device", "image_limit", "whitebox", "cell", "target_seed", "substitute_seed", "n", "n_correct",
    "target_id", "stage_id",
)  # fmt: skip
evaluations = sa.table(
    "evaluations", sa.column("stage_id"), sa.column("target_recipe"), sa.column("substitute_recipe"),
    sa.column("attack_id"), sa.column("cell"),
)  # fmt: skip

numbers = sa.Table(
    "cell_numbers", sa.MetaData(), sa.Column("target_recipe", sa.String(64), primary_key=True),
    sa.Column("substitute", sa.String(64), primary_key=True), sa.Column("attack_id", sa.String(64), primary_key=True),
    sa.Column("number", ID), prefixes=["TEMPORARY"],
)  # fmt: skip


def upgrade() -> None:
    op.drop_index("ix_stages_claim", "stages")
    op.drop_index("ix_stages_lease", "stages")
    for name, columns, where in PARTIAL:
        condition = sa.text(where)
        op.create_index(name, "stages", columns, postgresql_where=condition, sqlite_where=condition)
    op.create_index("ix_stages_state", "stages", ["state", "queue"])

    op.create_index("ix_attempts_outcome", "attempts", ["outcome"])

    op.drop_index("ix_evaluations_scope", "evaluations")
    op.add_column("evaluations", sa.Column("cell", ID, nullable=True))
    _fill()
    with op.batch_alter_table("evaluations", schema=None) as batch_op:
        batch_op.alter_column("cell", existing_type=ID, nullable=False)
    op.create_index("ix_evaluations_cells", "evaluations", list(CELLS))


def _fill() -> None:
    """Number the cells of what has been evaluated; the formula is `cell_of` of this revision's models.

    A row per cell in a table of its own, then one statement: a statement per cell would read all evaluations each.
    """
    connection = op.get_bind()
    numbers.create(connection)
    substitute = sa.func.coalesce(evaluations.c.substitute_recipe, "")
    names = (evaluations.c.target_recipe, substitute.label("substitute"), evaluations.c.attack_id)
    rows = connection.execute(sa.select(*names).distinct()).mappings().all()
    for start in range(0, len(rows), 400):
        found = [{**row, "number": _number(*row.values())} for row in rows[start : start + 400]]
        connection.execute(sa.insert(numbers), found)
    mine = (
        numbers.c.target_recipe == evaluations.c.target_recipe, numbers.c.substitute == substitute,
        numbers.c.attack_id == evaluations.c.attack_id,
    )  # fmt: skip
    number = sa.select(numbers.c.number).where(*mine).scalar_subquery()
    connection.execute(sa.update(evaluations).values(cell=number))
    numbers.drop(connection)


def _number(target: str, substitute: str, attack: str) -> int:
    return int.from_bytes(sha256(f"{target}:{substitute}:{attack}".encode()).digest()[:8], "big") >> 1


def downgrade() -> None:
    op.drop_index("ix_evaluations_cells", "evaluations")
    with op.batch_alter_table("evaluations", schema=None) as batch_op:
        batch_op.drop_column("cell")
    op.create_index(
        "ix_evaluations_scope", "evaluations", ["dataset", "device", "image_limit", "whitebox", "attack_id"]
    )
    op.drop_index("ix_attempts_outcome", "attempts")
    op.drop_index("ix_stages_state", "stages")
    for name, *_ in PARTIAL:
        op.drop_index(name, "stages")
    op.create_index("ix_stages_lease", "stages", ["state", "lease_expires"])
    op.create_index("ix_stages_claim", "stages", ["queue", "state", "priority", "id"])
