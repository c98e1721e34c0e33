"""Running sums count one evaluation of those that measure the same thing, no longer each as a seed of its own."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

FILL = """
INSERT INTO tallies (cell, same, image_limit, n, dataset, device, first, evaluations, total, squares, lowest, highest)
SELECT cell, target_seed = substitute_seed, image_limit, n, dataset, device, min(stage_id), count(*),
       sum(CAST(n_correct AS BIGINT)), sum(CAST(n_correct AS BIGINT) * n_correct), min(n_correct), max(n_correct)
FROM evaluations e WHERE n IS NOT NULL AND NOT whitebox {once}
GROUP BY cell, target_seed = substitute_seed, image_limit, n, dataset, device
"""
ONCE = """
AND NOT EXISTS (
    SELECT 1 FROM evaluations again
    WHERE again.dataset = e.dataset AND again.device = e.device AND again.image_limit = e.image_limit
    AND NOT again.whitebox AND again.cell = e.cell AND again.target_seed = e.target_seed
    AND again.substitute_seed = e.substitute_seed AND again.n IS NOT NULL AND again.stage_id > e.stage_id
)
"""


def upgrade() -> None:
    op.execute("DELETE FROM tallies")
    op.execute(FILL.format(once=ONCE))


def downgrade() -> None:
    op.execute("DELETE FROM tallies")
    op.execute(FILL.format(once=""))
