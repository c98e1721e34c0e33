"""A model's weights are lost or altered: the job that needs them has them made again, through the real service."""

from pathlib import Path

import pytest

from store.artifacts import FolderStore
from tests.worker import specs
from tests.worker.calm import assert_as_calm
from tests.worker.conftest import Service


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
