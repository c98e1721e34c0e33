"""Rows by the million, made inside PostgreSQL: a service after years of work, for the figures of bench/service.py.

Specs of trainings are real ones; those of the other stages, which no measured query reads, are short.
"""

import json
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from core.attacks import ATTACKS
from core.defenses import DEFENSES
from core.execution import Execution
from core.networks import NETWORKS
from core.stages.train import Train
from core.training import Training
from store import tallies
from store.database import Database
from store.models import cell_of

IMAGES = 2_000
ATTACK = ATTACKS["ifgsm"].model_validate({"kind": "ifgsm"})
_STAGE = """
INSERT INTO stages (id, key, kind, title, spec, recipe, seed, dataset, queue, state, priority, flop, fence,
                    not_before, announced_at, cancel_requested, failures, losses, device_seconds, created_at)
"""
_REST = "0, 0, 0, false, 0, 0, 1, 0"


def fill_evaluations(database: Database, targets: int, substitutes: int, seeds: int) -> int:
    """Return the number of finished evaluations in an empty database: targets x substitutes x seeds, a job per seed.

    The substitutes are the first of the targets, so the table's diagonal is white-box.
    """
    execution = Execution(threads=1)
    trains = [
        Train(
            defense=DEFENSES["fgsm_adv"].model_validate({"kind": "fgsm_adv", "eps": f"{number}/1000"}),
            network=NETWORKS["mnist_cnn"](), training=Training(iterations=1), dataset="mnist-mini", dataset_sha256="0",
            execution=execution,
        )
        for number in range(1, targets + 1)
    ]  # fmt: skip
    with database.write() as session:
        session.execute(text("SET LOCAL statement_timeout = 0"))
        _models(session, trains, substitutes)
        _finished_jobs(session, targets, substitutes, seeds)
        tallies.recount_all(session)
    _settle(database)
    return targets * substitutes * seeds


def _models(session: Session, trains: list[Train], substitutes: int) -> None:
    """Keep recipes, and the cells they make with the attack, in tables of this transaction."""
    session.execute(text("CREATE TEMP TABLE recipe (number int, recipe text, spec jsonb, label text) ON COMMIT DROP"))
    session.execute(text("CREATE TEMP TABLE cell (target int, substitute int, cell bigint) ON COMMIT DROP"))
    rows = [
        {"number": number, "recipe": train.recipe, "label": train.defense.label(), "spec": json.dumps(_dump(train))}
        for number, train in enumerate(trains)
    ]
    session.execute(text("INSERT INTO recipe VALUES (:number, :recipe, CAST(:spec AS jsonb), :label)"), rows)
    cells = [
        {"t": t, "s": s, "cell": cell_of(trains[t].recipe, trains[s].recipe, ATTACK.identity())}
        for t in range(len(trains))
        for s in range(substitutes)
    ]
    session.execute(text("INSERT INTO cell VALUES (:t, :s, :cell)"), cells)
    session.execute(text("ANALYZE recipe, cell"))


def _dump(train: Train) -> dict[str, Any]:
    return train.model_dump(mode="json")


def _finished_jobs(session: Session, targets: int, substitutes: int, seeds: int) -> None:
    """Per seed a job, its trainings and its evaluations; ids are numbered from 1, trainings first."""
    values = {
        "targets": targets, "substitutes": substitutes, "seeds": seeds, "trains": targets * seeds, "n": IMAGES,
        "attack_id": ATTACK.identity(), "attack": json.dumps(ATTACK.model_dump(mode="json")), "label": ATTACK.label(),
    }  # fmt: skip
    hashed = "encode(sha256(convert_to({}, 'UTF8')), 'hex')"
    statements = [
        f"""{_STAGE} SELECT s * :targets + r.number + 1, {hashed.format("'train ' || r.number || ' ' || s")}, 'train',
            'train ' || r.label, jsonb_set(r.spec, '{{seed}}', to_jsonb(s)), r.recipe, s, 'mnist-mini', 'cpu',
            'succeeded', 0, 1e9, {_REST} FROM generate_series(0, :seeds - 1) s, recipe r""",
        f"""{_STAGE} SELECT :trains + (s * :targets + c.target) * :substitutes + c.substitute + 1,
            {hashed.format("'evaluate ' || c.target || ' ' || c.substitute || ' ' || s")}, 'evaluate', 'evaluate',
            '{{}}', NULL, NULL, 'mnist-mini', 'cpu', 'succeeded', 0, 1e6, {_REST}
            FROM generate_series(0, :seeds - 1) s, cell c""",
        """INSERT INTO jobs (id, kind, name, tags, spec, state, priority, pairing, cancel_requested, unfinished,
                             last_event, created_at)
           SELECT s + 1, 'benchmark', '', '[]', '{}', 'succeeded', 0, 'same', false, 0, 0, 0
           FROM generate_series(0, :seeds - 1) s""",
        """INSERT INTO job_models SELECT s + 1, s * :targets + r.number + 1, role, r.recipe, r.label, r.number
           FROM generate_series(0, :seeds - 1) s, recipe r, (VALUES ('target'), ('substitute')) AS roles(role)
           WHERE role = 'target' OR r.number < :substitutes""",
        """INSERT INTO evaluations (stage_id, target_id, target_recipe, target_seed, substitute_id, substitute_recipe,
                                    substitute_seed, whitebox, attack_id, attack, attack_label, dataset, device,
                                    image_limit, n, n_correct, cell)
           SELECT :trains + (s * :targets + c.target) * :substitutes + c.substitute + 1, s * :targets + c.target + 1,
                  t.recipe, s, s * :targets + c.substitute + 1, b.recipe, s, c.target = c.substitute, :attack_id,
                  CAST(:attack AS jsonb), :label, 'mnist-mini', 'cpu', :n, :n, (c.cell + s * 7919) % :n, c.cell
           FROM generate_series(0, :seeds - 1) s, cell c
           JOIN recipe t ON t.number = c.target JOIN recipe b ON b.number = c.substitute""",
        """INSERT INTO job_stages (job_id, stage_id, position, reused)
           SELECT target_seed + 1, stage_id, stage_id, false FROM evaluations""",
        """INSERT INTO job_stages (job_id, stage_id, position, reused)
           SELECT seed + 1, id, id, false FROM stages WHERE kind = 'train'""",
        "SELECT setval('stages_id_seq', (SELECT max(id) FROM stages))",
        "SELECT setval('jobs_id_seq', (SELECT max(id) FROM jobs))",
    ]
    for statement in statements:
        session.execute(text(statement), values)


def fill_ready(database: Database, stages: int, jobs: int) -> None:
    """Fill an empty database with ready stages, spread over live jobs of three priorities."""
    values = {"stages": stages, "jobs": jobs}
    with database.write() as session:
        session.execute(text("SET LOCAL statement_timeout = 0"))
        session.execute(
            text(
                f"""{_STAGE} SELECT i, encode(sha256(convert_to('ready ' || i, 'UTF8')), 'hex'), 'train', 'train',
                '{{}}', NULL, i, 'mnist-mini', 'cpu', 'ready', i % 3, 1e9, {_REST}
                FROM generate_series(1, CAST(:stages AS int)) i"""
            ),
            values,
        )
        session.execute(
            text(
                """INSERT INTO jobs (id, kind, name, tags, spec, state, priority, pairing, cancel_requested, unfinished,
                                     last_event, created_at)
                SELECT i, 'train', '', '[]', '{}', 'queued', 0, 'same', false, 0, 0, 0
                FROM generate_series(1, CAST(:jobs AS int)) i"""
            ),
            values,
        )
        session.execute(
            text(
                "INSERT INTO job_stages (job_id, stage_id, position, reused) "
                "SELECT id % CAST(:jobs AS int) + 1, id, id, false FROM stages"
            ),
            values,
        )
        session.execute(
            text("UPDATE jobs SET unfinished = (SELECT count(*) FROM job_stages WHERE job_stages.job_id = jobs.id)")
        )
    _settle(database)


def _settle(database: Database) -> None:
    """Do what autovacuum does within a minute of such a load."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM ANALYZE"))
