"""Reads compose files as Docker Compose would, and runs their services as local processes: no Docker engine is at hand.

Only what our files use is understood: `${NAME:-default}`, mappings that merge, commands and health checks as lists.
"""

import fnmatch
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml

from tests import servers

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")

Spec = dict[str, Any]


def interpolate(value: Any, environment: Mapping[str, str]) -> Any:
    """Return a parsed file with `${NAME}` and `${NAME:-default}` replaced in all its strings."""
    match value:
        case dict():
            return {key: interpolate(item, environment) for key, item in value.items()}
        case list():
            return [interpolate(item, environment) for item in value]
        case str():
            return VARIABLE.sub(lambda found: environment.get(found[1]) or found[2] or "", value)
        case _:
            return value


def merge(base: Spec, override: Spec) -> Spec:
    """Return two files as one: mappings merge, whatever else the second has replaces the first's."""
    merged = dict(base)
    for key, value in override.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def load(*names: str, environment: Mapping[str, str] | None = None) -> Spec:
    """Return the composition that these files of the repository make together."""
    composition: Spec = {}
    for name in names:
        composition = merge(composition, yaml.safe_load((ROOT / name).read_text()))
    return interpolate(composition, environment or {})


def start_order(services: Spec) -> list[str]:
    """Return the services, each after those it depends on."""
    ordered: list[str] = []

    def visit(name: str) -> None:
        if name not in ordered:
            for needed in services[name].get("depends_on", {}):
                visit(needed)
            ordered.append(name)

    for name in services:
        visit(name)
    return ordered


def instructions(dockerfile: str = "Dockerfile.gpu") -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions, continued lines joined and comments gone."""
    text = re.sub(r"^#.*\n", "", (ROOT / dockerfile).read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in lines) if word]


def build_context() -> set[Path]:
    """Return the files that .dockerignore lets into the build, relative to the repository."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]

    def matches(path: Path, pattern: str) -> bool:
        parts = [str(part) for part in (path, *path.parents[:-1])]
        anywhere, pattern = pattern.startswith("**/"), pattern.removeprefix("**/")
        return any(fnmatch.fnmatch(Path(part).name if anywhere else part, pattern) for part in parts)

    context: set[Path] = set()
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in {".git", ".venv", "var"}]
        for file in files:
            path = (Path(folder) / file).relative_to(ROOT)
            admitted = True
            for rule in rules:
                if matches(path, rule.removeprefix("!")):
                    admitted = rule.startswith("!")
            if admitted:
                context.add(path)
    return context


def copy_image(folder: Path) -> dict[str, str]:
    """Copy into a folder what the Dockerfile copies into /app, and return the environment it sets."""
    context, environment = build_context(), {}
    for word, rest in instructions():
        if word == "COPY":
            *sources, _ = rest.split()
            for path in context:
                if any(path.is_relative_to(source) for source in sources):
                    (folder / path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / path, folder / path)
        elif word == "ENV":
            environment |= dict(pair.split("=", 1) for pair in rest.split())
    return environment


class Stack:
    """The services of a composition, run as local processes in the order and on the conditions of `depends_on`.

    `replace` maps words of commands, environments and health checks, such as `db:5432`, to what they are here.
    Services in `provided` run already; only their health is asked. Every process's log stays in the folder, and the
    end of each is added to the error when the block fails.
    """

    def __init__(
        self,
        services: Spec,
        folder: Path,
        image_environment: Mapping[str, str],
        replace: Mapping[str, str],
        provided: Mapping[str, Mapping[str, str]],
    ) -> None:
        self.services, self.folder, self.replace, self.provided = services, folder, replace, provided
        self.image_environment = image_environment
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.codes: dict[str, int] = {}

    def here(self, text: str) -> str:
        """Return a string of the compose file as it must read on this machine."""
        old = "|".join(re.escape(word) for word in self.replace)
        return re.sub(rf"(?<![\w.])({old})(?!\w)", lambda found: self.replace[found[1]], text)

    def command(self, words: list[str]) -> list[str]:
        """Return a command line with its program found beside our Python."""
        program = sys.executable if words[0] == "python" else shutil.which(words[0], path=self.path())
        assert program, f"{words[0]} is neither beside {sys.executable} nor in {self.folder / 'bin'}"
        return [program, *(self.here(word) for word in words[1:])]

    def path(self) -> str:
        """Return the PATH of the services: our environment's programs, and those put into the folder's `bin`."""
        return os.pathsep.join([str(self.folder / "bin"), str(BIN), os.defpath])

    def environment(self, name: str) -> dict[str, str]:
        """Return what the service's environment is: nothing is inherited from ours."""
        own = self.services[name].get("environment", {})
        given = {key: self.here(str(value)) for key, value in {**self.image_environment, **own}.items()}
        return {"PATH": self.path(), **given, **self.provided.get(name, {})}

    def log(self, name: str) -> Path:
        """Return where a service's output goes."""
        return self.folder / f"{name}.log"

    def start(self, name: str) -> None:
        """Start a service's command, without waiting for anything."""
        with self.log(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self.command(self.services[name]["command"]),
                cwd=self.folder / "app",
                env=self.environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=servers.die_with_parent(),
            )

    def is_healthy(self, name: str) -> bool:
        """Run the service's health check as it stands in the file."""
        check = self.services[name]["healthcheck"]
        assert check["test"][0] == "CMD"
        with self.log(f"{name}.health").open("ab") as log:
            timeout = float(check["timeout"].removesuffix("s"))
            command = self.command(check["test"][1:])
            try:
                done = subprocess.run(
                    command,
                    cwd=self.folder / "app",
                    env=self.environment(name),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    check=False,
                    timeout=timeout,
                )
            except subprocess.TimeoutExpired:
                log.write(f"no answer within {timeout} s\n".encode())
                return False
        return done.returncode == 0

    def wait(self, name: str, condition: str, seconds: float = 90) -> None:
        """Wait until a service has come as far as `condition` says."""
        deadline = time.monotonic() + seconds
        process = self.processes.get(name)
        if condition == "service_completed_successfully":
            assert process is not None
            code = process.wait(seconds)
            assert code == 0, f"{name} exited with {code}"
        while condition == "service_healthy" and not self.is_healthy(name):
            assert process is None or process.poll() is None, f"{name} exited with {process and process.returncode}"
            assert time.monotonic() < deadline, f"{name} is not healthy after {seconds} s"
            time.sleep(0.2)

    def up(self) -> None:
        """Start everything, as `docker compose up --wait` does."""
        for name in start_order(self.services):
            for needed, how in self.services[name].get("depends_on", {}).items():
                self.wait(needed, how["condition"])
            if name not in self.provided:
                self.start(name)
        for name in self.services:
            if name not in self.provided and "healthcheck" in self.services[name]:
                self.wait(name, "service_healthy")

    def down(self) -> dict[str, int]:
        """Stop everything in reverse order with SIGTERM; return the exit codes.

        Raises:
            subprocess.TimeoutExpired: a service outlasts its stop_grace_period; Docker would kill it.
        """
        for name in reversed(start_order(self.services)):
            if name in self.processes:
                self.processes[name].send_signal(signal.SIGTERM)
                grace = float(self.services[name].get("stop_grace_period", "10s").removesuffix("s"))
                self.codes[name] = self.processes[name].wait(grace)
        return self.codes

    def logs(self) -> str:
        """Return the end of every log."""
        files = sorted(self.folder.glob("*.log"))
        tails = {file: file.read_text(errors="replace").splitlines()[-40:] for file in files}
        return "\n".join(line for file, tail in tails.items() for line in (f"----- {file}", *tail))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its own session: nobody else is hit
                process.wait()
        if error is not None:
            error.add_note(self.logs())
