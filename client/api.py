"""A thin client: a method for what is done with jobs, models and results; `get` and `text` for every other address."""

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import httpx

DEFAULT_URL = "http://127.0.0.1:8000"
ENDED = ("succeeded", "failed", "cancelled")
TIMEOUT = 30.0
"""How long an answer is waited for, in seconds."""
REPEAT_AFTER = 1.0
REPEAT_SECONDS = 300.0
"""How long a POST whose answer was lost is repeated: longer than a service that died holds on to its key."""
SHARE = 20
"""A job is asked for again after so many times the time its answer took: one of thousands of stages is megabytes."""
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.LocalProtocolError, httpx.UnsupportedProtocol)
"""What is raised where no service has heard a request; an earlier try of it may have been heard."""
SAID_AFTER = 5.0
"""Seconds without an answer, after which it is said that one is waited for: a service that starts anew takes fewer."""
UNAVAILABLE = httpx.codes.SERVICE_UNAVAILABLE.value
T = TypeVar("T")


def service_url(given: str | None) -> str:
    """Return the service's address: the one given, else GAUNTLET_URL, else this machine; http where it names none."""
    url = (given or os.environ.get("GAUNTLET_URL") or DEFAULT_URL).rstrip("/")
    return url if "://" in url else f"http://{url}"


class ApiRefused(Exception):
    """The service answered with an error; the message says which field and what would be right."""

    def __init__(self, status: int, body: Any):
        self.status = status
        said: Any = body.get("error", body) if isinstance(body, dict) else body
        error: dict[str, Any] = said if isinstance(said, dict) else {"message": said}  # of a proxy, in its own shape
        self.code: str = error.get("code", "")
        self.fields: list[dict[str, Any]] = error.get("fields", [])
        super().__init__(f"{status}: {error.get('message', error)}")


class AnswerLost(Exception):
    """The service may have done what it was asked for, and has not said so however often it was asked again."""


class NoAnswer(Exception):
    """The service answered once, and then no more."""


def _to_nobody(_: str) -> None:
    """Tell nobody."""


class Client:
    """Talks to one service; the URL defaults to GAUNTLET_URL, then to this machine."""

    def __init__(self, url: str | None = None, timeout: float = TIMEOUT):
        self.url = service_url(url)
        self._http = httpx.Client(base_url=self.url, timeout=timeout, trust_env=False)

    def post_job(self, spec: Any, *, dry_run: bool = False, key: str | None = None) -> dict[str, Any]:
        """Return the job made from `spec`, an object or the bytes of its JSON, or with `dry_run` its plan.

        A request whose answer is lost is repeated, under an Idempotency-Key, so that it makes no second job, also while
        the service starts anew. Who gives a `key` repeats it himself.

        Raises:
            AnswerLost: it was repeated for REPEAT_SECONDS in vain.
        """
        body = spec if isinstance(spec, bytes) else json.dumps(spec).encode()
        if dry_run:
            return self._json("POST", "/jobs", content=body, params={"dry_run": 1})
        return self._once("/jobs", key, content=body)

    def job(self, job_id: int) -> dict[str, Any]:
        """Return a job."""
        return self._json("GET", f"/jobs/{job_id}")

    def jobs(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """Yield jobs, newest first."""
        return self._pages("/jobs", "jobs", filters)

    def cancel(self, job_id: int) -> dict[str, Any]:
        """Return the job after asking it to stop."""
        return self._json("POST", f"/jobs/{job_id}/cancel")

    def retry(self, job_id: int, *, key: str | None = None) -> dict[str, Any]:
        """Return a new job of the spec of one that failed or was cancelled."""
        return self._once(f"/jobs/{job_id}/retry", key)

    def history(self, job_id: int, after: int = 0) -> Iterator[dict[str, Any]]:
        """Yield what happened to a job behind event `after`, oldest first, up to now."""
        while events := self._json("GET", f"/jobs/{job_id}/history", params={"after": after}):
            yield from events
            after = events[-1]["seq"]

    def models(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """Yield trained models, newest first."""
        return self._pages("/models", "models", filters)

    def workers(self) -> list[dict[str, Any]]:
        """Return worker processes, newest first."""
        return self._json("GET", "/workers")

    def log(self, key: str) -> Iterator[dict[str, Any]]:
        """Yield the lines of a stage's log, oldest first, up to now."""
        after = 0
        while lines := self._json("GET", f"/stages/{key}/log", params={"after": after}):
            yield from lines
            after = lines[-1]["number"]

    def watch(
        self, job_id: int, every: float = 1.0, tell: Callable[[str], object] = _to_nobody
    ) -> Iterator[dict[str, Any]]:
        """Yield the job again and again until it has ended; the last one yielded is its end.

        A large job is asked for less often, and at once when its events say that it has ended. A service that has
        answered once and then does not is waited for, which `tell` is told once.

        Raises:
            NoAnswer: it did not for REPEAT_SECONDS.
        """
        began = time.monotonic()
        job = self.job(job_id)
        while True:
            took = time.monotonic() - began
            yield job
            if job["state"] in ENDED:
                return
            self._rest(job, every, max(every, SHARE * took), tell)
            began = time.monotonic()
            job = self._when_it_answers(lambda: self.job(job_id), every, tell)

    def _rest(self, job: dict[str, Any], every: float, longest: float, tell: Callable[[str], object]) -> None:
        """Return when the job has ended, or after `longest`."""
        until = time.monotonic() + longest
        seen = job["last_event"]
        time.sleep(every)
        while (left := until - time.monotonic()) > 0:
            for event in self._when_it_answers(lambda after=seen: list(self.history(job["id"], after)), every, tell):
                seen = event["seq"]
                if event["kind"].removeprefix("job.") in ENDED:
                    return
            time.sleep(min(every, left))

    def _when_it_answers(self, ask: Callable[[], T], every: float, tell: Callable[[str], object]) -> T:
        began, told = time.monotonic(), False
        while True:
            try:
                return ask()
            except httpx.TransportError as error:
                failure: Exception = error
            except ApiRefused as refusal:
                if refusal.status != UNAVAILABLE:
                    raise
                failure = refusal
            said = f"no answer from {self.url} for {time.monotonic() - began:.0f} s ({failure})"
            if time.monotonic() - began > REPEAT_SECONDS:
                raise NoAnswer(said) from failure
            if time.monotonic() - began > SAID_AFTER and not told:
                tell(f"{said}, still trying")
                told = True
            time.sleep(every)

    def matrix(self, name: str, **filters: Any) -> dict[str, Any]:
        """Return the white-box or black-box matrix."""
        return self._json("GET", f"/results/{name}-matrix", params=filters)

    def paper(self, table: int, **filters: Any) -> dict[str, Any]:
        """Return a table of the paper, published beside measured."""
        return self._json("GET", f"/results/paper/{table}", params=filters)

    def cost(self, **filters: Any) -> dict[str, Any]:
        """Return what the trainings of one run cost, measured."""
        return self._json("GET", "/results/cost", params=filters)

    def figures(self, **filters: Any) -> list[dict[str, Any]]:
        """Return figures, newest first, with links to their pictures."""
        return self._json("GET", "/results/figures", params=filters)

    def text(self, path: str, **params: Any) -> str:
        """Return the text at `path`."""
        return self._send("GET", path, params=params).text

    def get(self, path: str, **params: Any) -> Any:
        """Return the JSON at `path`."""
        return self._json("GET", path, params=params)

    def ready(self) -> bool:
        """Return whether the service answers and is ready."""
        try:
            return self._http.get("/readyz").is_success
        except httpx.TransportError:
            return False

    def is_gauntlet(self) -> bool:
        """Return whether what answers is this service, and not another that speaks JSON too."""
        try:
            return self.get("/openapi.json")["info"]["title"] == "Gauntlet"
        except (ApiRefused, httpx.TransportError, LookupError, TypeError):
            return False

    def _pages(self, path: str, name: str, filters: dict[str, Any]) -> Iterator[dict[str, Any]]:
        cursor = None
        while True:
            page = self._json("GET", path, params={**filters, **({"cursor": cursor} if cursor else {})})
            yield from page[name]
            cursor = page["cursor"]
            if cursor is None:
                return

    def _once(self, path: str, key: str | None, **more: Any) -> dict[str, Any]:
        """Return the answer to a POST; one without a `key` gets its own and is repeated until it is answered."""
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        if key is not None:
            return self._json("POST", path, headers=headers, **more)
        until, lost = time.monotonic() + REPEAT_SECONDS, False
        while True:
            try:
                return self._json("POST", path, headers=headers, **more)
            except httpx.TransportError as error:
                if isinstance(error, NEVER_SENT) and not lost:
                    raise
                lost, failure = True, error
            except ApiRefused as refusal:
                if refusal.code != "in_progress" and not (lost and refusal.status == UNAVAILABLE):
                    raise
                failure = refusal
            if time.monotonic() > until:
                raise AnswerLost(f"{self.url} has not said what became of the request: {failure}") from failure
            time.sleep(REPEAT_AFTER)

    def _json(self, method: str, path: str, **more: Any) -> Any:
        response = self._send(method, path, **more)
        try:
            return response.json()
        except ValueError:
            raise ApiRefused(
                response.status_code, {"error": {"message": f"{self.url} is no Gauntlet service"}}
            ) from None

    def _send(self, method: str, path: str, **more: Any) -> httpx.Response:
        response = self._http.request(method, path, **more)
        if response.is_error:
            try:
                body = response.json()
            except ValueError:
                body = {"error": {"message": response.text[:500]}}
            raise ApiRefused(response.status_code, body)
        return response
