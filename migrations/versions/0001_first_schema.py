"""first schema."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "artifacts",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", ID, nullable=False),
        sa.Column("media_type", sa.String(length=100), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_artifacts")),
    )
    op.create_table(
        "jobs",
        sa.Column("id", ID, nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("suite", sa.String(length=100), nullable=True),
        sa.Column("tags", JSON, nullable=False),
        sa.Column("spec", JSON, nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("pairing", sa.String(length=12), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("archived", sa.Boolean(), nullable=False),
        sa.Column("last_event", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=True),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.create_index("ix_jobs_name", ["name"], unique=False)
        batch_op.create_index("ix_jobs_state", ["state"], unique=False)
        batch_op.create_index("ix_jobs_suite", ["suite"], unique=False)

    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("expires", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    op.create_table(
        "stages",
        sa.Column("id", ID, nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("title", sa.String(length=300), nullable=False),
        sa.Column("spec", JSON, nullable=False),
        sa.Column("recipe", sa.String(length=64), nullable=True),
        sa.Column("seed", ID, nullable=True),
        sa.Column("dataset", sa.String(length=60), nullable=False),
        sa.Column("queue", sa.String(length=20), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("flop", sa.Float(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("fence", ID, nullable=False),
        sa.Column("lease_owner", sa.String(length=64), nullable=True),
        sa.Column("lease_expires", sa.Float(), nullable=True),
        sa.Column("not_before", sa.Float(), nullable=False),
        sa.Column("announced_at", sa.Float(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("losses", sa.Integer(), nullable=False),
        sa.Column("error", JSON, nullable=True),
        sa.Column("progress", JSON, nullable=True),
        sa.Column("device_seconds", sa.Float(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=True),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stages")),
        sa.UniqueConstraint("key", name=op.f("uq_stages_key")),
    )
    with op.batch_alter_table("stages", schema=None) as batch_op:
        batch_op.create_index("ix_stages_claim", ["queue", "state", "priority", "id"], unique=False)
        batch_op.create_index("ix_stages_lease", ["state", "lease_expires"], unique=False)
        batch_op.create_index("ix_stages_recipe", ["recipe"], unique=False)

    op.create_table(
        "attempts",
        sa.Column("stage_id", ID, nullable=False),
        sa.Column("fence", ID, nullable=False),
        sa.Column("worker", sa.String(length=64), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("outcome", sa.String(length=12), nullable=True),
        sa.Column("error", JSON, nullable=True),
        sa.ForeignKeyConstraint(["stage_id"], ["stages.id"], name=op.f("fk_attempts_stage_id")),
        sa.PrimaryKeyConstraint("stage_id", "fence", name=op.f("pk_attempts")),
    )
    op.create_table(
        "checkpoints",
        sa.Column("stage_id", ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("fence", ID, nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["stage_id"], ["stages.id"], name=op.f("fk_checkpoints_stage_id")),
        sa.PrimaryKeyConstraint("stage_id", "number", name=op.f("pk_checkpoints")),
    )
    op.create_table(
        "evaluations",
        sa.Column("stage_id", ID, nullable=False),
        sa.Column("target_id", ID, nullable=False),
        sa.Column("target_recipe", sa.String(length=64), nullable=False),
        sa.Column("target_seed", ID, nullable=False),
        sa.Column("substitute_id", ID, nullable=True),
        sa.Column("substitute_recipe", sa.String(length=64), nullable=True),
        sa.Column("substitute_seed", ID, nullable=True),
        sa.Column("whitebox", sa.Boolean(), nullable=False),
        sa.Column("attack_id", sa.String(length=64), nullable=False),
        sa.Column("attack", JSON, nullable=False),
        sa.Column("attack_label", sa.String(length=200), nullable=False),
        sa.Column("dataset", sa.String(length=60), nullable=False),
        sa.Column("device", sa.String(length=10), nullable=False),
        sa.Column("image_limit", sa.Integer(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=True),
        sa.Column("n_correct", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["stage_id"], ["stages.id"], name=op.f("fk_evaluations_stage_id")),
        sa.ForeignKeyConstraint(["substitute_id"], ["stages.id"], name=op.f("fk_evaluations_substitute_id")),
        sa.ForeignKeyConstraint(["target_id"], ["stages.id"], name=op.f("fk_evaluations_target_id")),
        sa.PrimaryKeyConstraint("stage_id", name=op.f("pk_evaluations")),
    )
    with op.batch_alter_table("evaluations", schema=None) as batch_op:
        batch_op.create_index(
            "ix_evaluations_scope", ["dataset", "device", "image_limit", "whitebox", "attack_id"], unique=False
        )
        batch_op.create_index("ix_evaluations_target_id", ["target_id"], unique=False)

    op.create_table(
        "events",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("data", JSON, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_events_job_id")),
        sa.PrimaryKeyConstraint("job_id", "seq", name=op.f("pk_events")),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("request_sha256", sa.String(length=64), nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_idempotency_keys_job_id")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_idempotency_keys")),
    )
    op.create_table(
        "job_models",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("stage_id", ID, nullable=False),
        sa.Column("role", sa.String(length=12), nullable=False),
        sa.Column("recipe", sa.String(length=64), nullable=False),
        sa.Column("label", sa.String(length=200), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_models_job_id")),
        sa.ForeignKeyConstraint(["stage_id"], ["stages.id"], name=op.f("fk_job_models_stage_id")),
        sa.PrimaryKeyConstraint("job_id", "stage_id", "role", name=op.f("pk_job_models")),
    )
    with op.batch_alter_table("job_models", schema=None) as batch_op:
        batch_op.create_index("ix_job_models_recipe", ["recipe"], unique=False)

    op.create_table(
        "job_stages",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("stage_id", ID, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("reused", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_stages_job_id")),
        sa.ForeignKeyConstraint(["stage_id"], ["stages.id"], name=op.f("fk_job_stages_stage_id")),
        sa.PrimaryKeyConstraint("job_id", "stage_id", name=op.f("pk_job_stages")),
    )
    with op.batch_alter_table("job_stages", schema=None) as batch_op:
        batch_op.create_index("ix_job_stages_stage_id", ["stage_id"], unique=False)

    op.create_table(
        "results",
        sa.Column("stage_id", ID, nullable=False),
        sa.Column("fence", ID, nullable=False),
        sa.Column("payload", JSON, nullable=False),
        sa.Column("environment", JSON, nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["stage_id"], ["stages.id"], name=op.f("fk_results_stage_id")),
        sa.PrimaryKeyConstraint("stage_id", name=op.f("pk_results")),
    )
    op.create_table(
        "stage_artifacts",
        sa.Column("stage_id", ID, nullable=False),
        sa.Column("name", sa.String(length=60), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["sha256"], ["artifacts.sha256"], name=op.f("fk_stage_artifacts_sha256")),
        sa.ForeignKeyConstraint(["stage_id"], ["stages.id"], name=op.f("fk_stage_artifacts_stage_id")),
        sa.PrimaryKeyConstraint("stage_id", "name", name=op.f("pk_stage_artifacts")),
    )
    with op.batch_alter_table("stage_artifacts", schema=None) as batch_op:
        batch_op.create_index("ix_stage_artifacts_sha256", ["sha256"], unique=False)

    op.create_table(
        "stage_logs",
        sa.Column("id", ID, nullable=False),
        sa.Column("stage_id", ID, nullable=False),
        sa.Column("fence", ID, nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("line", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["stage_id"], ["stages.id"], name=op.f("fk_stage_logs_stage_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stage_logs")),
    )
    with op.batch_alter_table("stage_logs", schema=None) as batch_op:
        batch_op.create_index("ix_stage_logs_stage_id", ["stage_id", "id"], unique=False)

    op.create_table(
        "stage_parents",
        sa.Column("stage_id", ID, nullable=False),
        sa.Column("parent_id", ID, nullable=False),
        sa.ForeignKeyConstraint(["parent_id"], ["stages.id"], name=op.f("fk_stage_parents_parent_id")),
        sa.ForeignKeyConstraint(["stage_id"], ["stages.id"], name=op.f("fk_stage_parents_stage_id")),
        sa.PrimaryKeyConstraint("stage_id", "parent_id", name=op.f("pk_stage_parents")),
    )
    with op.batch_alter_table("stage_parents", schema=None) as batch_op:
        batch_op.create_index("ix_stage_parents_parent_id", ["parent_id"], unique=False)

    op.create_table(
        "workers",
        sa.Column("incarnation", sa.String(length=64), nullable=False),
        sa.Column("host", sa.String(length=200), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("device", sa.String(length=10), nullable=False),
        sa.Column("device_name", sa.String(length=200), nullable=False),
        sa.Column("queues", JSON, nullable=False),
        sa.Column("versions", JSON, nullable=False),
        sa.Column("stage_id", ID, nullable=True),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("seen_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["stage_id"], ["stages.id"], name=op.f("fk_workers_stage_id")),
        sa.PrimaryKeyConstraint("incarnation", name=op.f("pk_workers")),
    )


def downgrade() -> None:
    op.drop_table("workers")
    with op.batch_alter_table("stage_parents", schema=None) as batch_op:
        batch_op.drop_index("ix_stage_parents_parent_id")

    op.drop_table("stage_parents")
    with op.batch_alter_table("stage_logs", schema=None) as batch_op:
        batch_op.drop_index("ix_stage_logs_stage_id")

    op.drop_table("stage_logs")
    with op.batch_alter_table("stage_artifacts", schema=None) as batch_op:
        batch_op.drop_index("ix_stage_artifacts_sha256")

    op.drop_table("stage_artifacts")
    op.drop_table("results")
    with op.batch_alter_table("job_stages", schema=None) as batch_op:
        batch_op.drop_index("ix_job_stages_stage_id")

    op.drop_table("job_stages")
    with op.batch_alter_table("job_models", schema=None) as batch_op:
        batch_op.drop_index("ix_job_models_recipe")

    op.drop_table("job_models")
    op.drop_table("idempotency_keys")
    op.drop_table("events")
    with op.batch_alter_table("evaluations", schema=None) as batch_op:
        batch_op.drop_index("ix_evaluations_target_id")
        batch_op.drop_index("ix_evaluations_scope")

    op.drop_table("evaluations")
    op.drop_table("checkpoints")
    op.drop_table("attempts")
    with op.batch_alter_table("stages", schema=None) as batch_op:
        batch_op.drop_index("ix_stages_recipe")
        batch_op.drop_index("ix_stages_lease")
        batch_op.drop_index("ix_stages_claim")

    op.drop_table("stages")
    op.drop_table("leases")
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_index("ix_jobs_suite")
        batch_op.drop_index("ix_jobs_state")
        batch_op.drop_index("ix_jobs_name")

    op.drop_table("jobs")
    op.drop_table("artifacts")
