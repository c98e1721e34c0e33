"""Withdrawn results, a count of a job's unfinished stages, Idempotency-Keys in progress, indexes over rare kinds."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
PARTIAL = (
    ("ix_stages_train", ["dataset", "seed", "id"], "kind = 'train'"),
    ("ix_stages_trained", ["id"], "kind = 'train' AND state = 'succeeded'"),
    ("ix_stages_draw", ["id"], "kind = 'draw'"),
)
COUNT = """
UPDATE jobs SET unfinished = (
    SELECT count(*) FROM job_stages JOIN stages ON stages.id = job_stages.stage_id
    WHERE job_stages.job_id = jobs.id AND stages.state IN ('blocked', 'ready', 'running')
) WHERE state NOT IN ('succeeded', 'failed', 'cancelled')
"""


def upgrade() -> None:
    op.create_table(
        "lost_results",
        sa.Column("stage_id", ID, nullable=False),
        sa.Column("fence", ID, nullable=False),
        sa.Column("payload", JSON, nullable=False),
        sa.Column("environment", JSON, nullable=False),
        sa.Column("artifacts", JSON, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("withdrawn_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["stage_id"], ["stages.id"], name=op.f("fk_lost_results_stage_id")),
        sa.PrimaryKeyConstraint("stage_id", "fence", name=op.f("pk_lost_results")),
    )
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("unfinished", sa.Integer(), nullable=True))
        batch_op.drop_column("archived")
    op.execute(COUNT)
    op.execute("UPDATE jobs SET unfinished = 0 WHERE unfinished IS NULL")
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.alter_column("unfinished", existing_type=sa.Integer(), nullable=False)

    op.drop_column("stages", "generation")  # in place: a copy on SQLite would forget an index's direction
    for name, columns, where in PARTIAL:
        condition = sa.text(where)
        op.create_index(name, "stages", columns, postgresql_where=condition, sqlite_where=condition)

    with op.batch_alter_table("idempotency_keys", schema=None) as batch_op:
        batch_op.add_column(sa.Column("owner", sa.String(length=32), nullable=True))
        batch_op.add_column(sa.Column("expires", sa.Float(), nullable=True))
        batch_op.add_column(sa.Column("answer", sa.Text(), nullable=True))
        batch_op.alter_column("job_id", existing_type=ID, nullable=True)


def downgrade() -> None:
    op.execute("DELETE FROM idempotency_keys WHERE job_id IS NULL")
    with op.batch_alter_table("idempotency_keys", schema=None) as batch_op:
        batch_op.alter_column("job_id", existing_type=ID, nullable=False)
        batch_op.drop_column("answer")
        batch_op.drop_column("expires")
        batch_op.drop_column("owner")
    for name, *_ in PARTIAL:
        op.drop_index(name, "stages")
    op.add_column("stages", sa.Column("generation", sa.Integer(), nullable=False, server_default="0"))
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_column("unfinished")
        batch_op.add_column(sa.Column("archived", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.drop_table("lost_results")
