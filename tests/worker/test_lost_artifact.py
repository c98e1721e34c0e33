"""A model's weights are lost or altered: the job that needs them has them made again, through the real service."""

import time
from pathlib import Path

import pytest
from sqlalchemy import update

from store import lost, stages
from store.artifacts import FolderStore
from store.broker import Ringer, celery_app
from store.models import Stage
from store.refusals import AGAIN_SECONDS
from store.settings import Settings
from store.waiting import reasons
from tests import factories
from tests.worker import specs
from tests.worker.calm import assert_as_calm
from tests.worker.conftest import Service
from worker.runner import StageRunner
from worker.watch import Watch


@pytest.mark.parametrize("content", [None, b"something else"])
def test_lost_weights_are_made_again(service: Service, content: bytes | None) -> None:
    spec = specs.white_box(6)
    first = service.succeeded(service.post(spec))
    train = service.stage(first, "train")
    weights = FolderStore(Path(service.environment["STATE_DIR"]) / "artifacts").path(train["artifacts"]["weights"])
    weights.unlink() if content is None else weights.write_bytes(content)
    attack = {**spec, "attacks": [specs.IFGSM]}
    job = service.succeeded(service.post(attack))
    assert_as_calm(service, job, attack)
    again = service.stage(job, "train")
    assert again["artifacts"]["weights"] == train["artifacts"]["weights"]
    assert [attempt["outcome"] for attempt in again["attempts"]] == ["succeeded", "succeeded"]
    assert "is withdrawn: artifact" in "".join(service.log_of(train["key"]))
    assert service.succeeded(service.post(spec))["state"] == "succeeded"


def test_a_stage_whose_parent_has_no_result_is_given_back(database_url: str, tmp_path: Path) -> None:
    """No failure is counted however long the parent runs again, and the stage says what it waits for."""
    chosen = Settings(state_dir=tmp_path)
    with factories.opened(database_url) as database:
        runner = StageRunner(chosen, database, FolderStore(tmp_path / "artifacts"), Ringer(celery_app(chosen)))
        factories.post(database, factories.body())
        train = factories.claim(database)
        factories.succeed(database, train)
        with database.write() as session:
            lost.withdraw(session, [train.stage_id], "lost")
        for _ in range(chosen.max_failures + 1):
            with database.write() as session:
                clean = factories.stages_by_title(database)["evaluate natural H, seed 0, clean"]
                session.execute(update(Stage).where(Stage.id == clean.id).values(state="ready"))
                held = stages.claim_one_of(session, [clean.key], "w", factories.LEASE)
            assert held is not None
            runner.run(held, Watch(held, time.monotonic(), 60, runner.keep_checkpoint))
            row = factories.stage(database, held.stage_id)
            assert (row.state, row.failures, row.lease_owner) == ("ready", 0, None)
            with database.read() as session:
                why = reasons(session, [row], 60)
                assert row.not_before - why.now == pytest.approx(AGAIN_SECONDS, abs=5)
                assert str(why.of(row)).endswith(f"s after: the parent stage {train.key} has no result")
