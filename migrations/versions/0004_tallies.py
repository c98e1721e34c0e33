"""Running sums of black-box evaluations, and an index over those that have not finished."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
UNFINISHED = sa.text("n IS NULL")
FILL = """
INSERT INTO tallies (cell, same, image_limit, n, dataset, device, first, evaluations, total, squares, lowest, highest)
SELECT cell, target_seed = substitute_seed, image_limit, n, dataset, device, min(stage_id), count(*),
       sum(CAST(n_correct AS BIGINT)), sum(CAST(n_correct AS BIGINT) * n_correct), min(n_correct), max(n_correct)
FROM evaluations WHERE n IS NOT NULL AND NOT whitebox
GROUP BY cell, target_seed = substitute_seed, image_limit, n, dataset, device
"""


def upgrade() -> None:
    op.create_table(
        "tallies",
        sa.Column("cell", ID, autoincrement=False, nullable=False),
        sa.Column("same", sa.Boolean(), nullable=False),
        sa.Column("image_limit", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("n", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("dataset", sa.String(length=60), nullable=False),
        sa.Column("device", sa.String(length=10), nullable=False),
        sa.Column("first", ID, nullable=False),
        sa.Column("evaluations", sa.Integer(), nullable=False),
        sa.Column("total", ID, nullable=False),
        sa.Column("squares", ID, nullable=False),
        sa.Column("lowest", sa.Integer(), nullable=False),
        sa.Column("highest", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("cell", "same", "image_limit", "n", name=op.f("pk_tallies")),
    )
    op.create_index(
        "ix_evaluations_unfinished", "evaluations", ["dataset", "device", "image_limit"],
        postgresql_where=UNFINISHED, sqlite_where=UNFINISHED,
    )  # fmt: skip
    op.execute(FILL)


def downgrade() -> None:
    op.drop_index("ix_evaluations_unfinished", "evaluations")
    op.drop_table("tallies")
