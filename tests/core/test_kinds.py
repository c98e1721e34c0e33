"""The folder is the registry: a file dropped into it is a kind everywhere, and a file that is none is refused."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from core.attacks import ATTACKS, Attack
from core.datasets import DATASETS
from core.defenses import DEFENSES
from core.figures import FIGURES
from core.kinds import BadKind, Kind, discover
from core.networks import NETWORKS
from core.stages import STAGES
from tests.outside import entry_point

ROOT = Path(__file__).parents[2]
ALL = {**ATTACKS, **DEFENSES, **NETWORKS, **DATASETS, **STAGES}
NEEDED = {
    "train", "craft", "evaluate", "natural", "fgsm_adv", "ifgsm_adv", "pgd_minmax", "e2sad", "none", "fgsm", "ifgsm",
    "pgd", "mnist", "fashion-mnist", "svhn", "cifar10", "mnist-mini", "mnist_cnn", "svhn_cnn",
}  # fmt: skip


class TestRegistered:
    """What holds for every kind there is."""

    def test_those_that_the_paper_needs_are_there(self):
        assert set(ALL) >= NEEDED

    @pytest.mark.parametrize("name", ALL)
    def test_its_name_is_its_files(self, name: str):
        cls = ALL[name]
        assert cls.model_fields["kind"].default == name
        assert cls.__module__.rpartition(".")[2] in (name, name.replace("-", "_"))
        assert cls.version >= 1

    @pytest.mark.parametrize("name", ALL)
    def test_it_says_what_it_and_each_of_its_fields_is(self, name: str):
        self.says(ALL[name])

    @pytest.mark.parametrize("name", FIGURES)
    def test_a_figure_says_so_too(self, name: str):
        self.says(FIGURES[name])

    def says(self, cls: Any):
        name = cls.__name__
        assert cls.__doc__
        for field, info in cls.model_fields.items():
            assert info.description or field == "kind", f"{name}.{field} has no docstring"

    @pytest.mark.parametrize("name", [*ATTACKS, *DEFENSES, *NETWORKS])
    def test_it_needs_nothing_but_its_name_and_is_frozen_and_strict(self, name: str):
        cls: Any = ALL[name]
        kind = cls()
        with pytest.raises(ValidationError):
            cls(surprise=1)
        with pytest.raises(ValidationError):
            kind.kind = "other"

    @pytest.mark.parametrize("name", [*ATTACKS, *DEFENSES, *NETWORKS])
    def test_its_schema_bounds_every_number_and_spells_every_default(self, name: str):
        properties = ALL[name].model_json_schema()["properties"]
        for field, schema in properties.items():
            assert "default" in schema, f"{name}.{field}"
            assert schema.get("description"), f"{name}.{field}"
            if schema.get("type") in ("integer", "number"):
                assert {"minimum", "exclusiveMinimum"} & set(schema), f"{name}.{field}"
                assert {"maximum", "exclusiveMaximum"} & set(schema), f"{name}.{field}"
        json.dumps(properties)


class Toy(Kind):
    """Base of the kinds in the folders that these tests write."""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable, empty folder of kinds."""
    name = f"toys_{tmp_path.name.replace('-', '_')}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def toy(class_name: str, kind: str) -> str:
    return (
        f"class {class_name}(Toy):\n    kind: Literal[{kind!r}] = {kind!r}\n"
        if kind
        else f"class {class_name}(Toy):\n    pass\n"
    )


def write(package: Path, module: str, *classes: str) -> None:
    head = "from typing import Literal\nfrom tests.core.test_kinds import Toy\n\n"
    (package / f"{module}.py").write_text(head + "\n".join(classes))


def discovered(package: Path) -> dict[str, type[Toy]]:
    return dict(discover(package.name, Toy, "gauntlet.toys"))


class TestDiscover:
    """What `discover` takes and what it refuses, with a sentence that names the file."""

    def test_every_file_is_a_kind(self, package: Path):
        write(package, "one", toy("One", "one"))
        write(package, "two_words", toy("Two", "two-words"))
        write(package, "base", toy("NotOne", "x"), toy("NorTwo", "y"))
        assert sorted(discovered(package)) == ["one", "two-words"]

    def test_a_helper_class_without_a_kind_and_an_imported_kind_are_no_kinds_of_the_file(self, package: Path):
        write(package, "one", toy("One", "one"))
        write(package, "two", f"from {package.name}.one import One", toy("Helper", ""), toy("Two", "two"))
        assert sorted(discovered(package)) == ["one", "two"]

    def test_a_file_without_a_kind_is_refused(self, package: Path):
        write(package, "empty")
        with pytest.raises(BadKind, match=rf"{package.name}\.empty must define exactly one Toy with a kind, found 0"):
            discovered(package)

    def test_a_file_with_two_kinds_is_refused(self, package: Path):
        write(package, "pair", toy("A", "pair"), toy("B", "pear"))
        with pytest.raises(BadKind, match=r"pair must define exactly one Toy with a kind, found 2"):
            discovered(package)

    def test_a_kind_of_another_name_is_refused(self, package: Path):
        write(package, "left", toy("Right", "right"))
        with pytest.raises(BadKind, match=r"left: the kind is 'right', but the module is named 'left'"):
            discovered(package)

    def test_a_name_taken_twice_is_refused(self, package: Path):
        write(package, "same", toy("A", "same"))
        outside = package.parent / "outside_toys.py"
        outside.write_text("from typing import Literal\nfrom tests.core.test_kinds import Toy\n" + toy("B", "same"))
        _entry_point(package.parent, "same = outside_toys:B")
        with pytest.raises(BadKind, match=rf"the kind 'same' is already defined by {package.name}\.same"):
            discovered(package)

    @pytest.mark.parametrize("line", ["function = functools:reduce", "other = core.attacks.fgsm:FGSM"])
    def test_what_is_no_such_kind_is_refused(self, package: Path, line: str):
        write(package, "inner", toy("A", "inner"))
        _entry_point(package.parent, line)
        with pytest.raises(BadKind, match=r"is no class made from Toy, which gauntlet\.toys asks for"):
            discovered(package)

    def test_a_package_outside_adds_a_kind(self, package: Path):
        write(package, "inner", toy("A", "inner"))
        outside = package.parent / "outside_more.py"
        outside.write_text("from typing import Literal\nfrom tests.core.test_kinds import Toy\n" + toy("B", "outer"))
        _entry_point(package.parent, "outer = outside_more:B")
        assert sorted(discovered(package)) == ["inner", "outer"]


def _entry_point(folder: Path, line: str) -> None:
    entry_point(folder, "gauntlet.toys", line)
    importlib.invalidate_caches()


class TestIdentity:
    """Two kinds of one content are told apart by kind and version."""

    def test_it_holds_the_version_of_the_kind_and_of_kinds_inside(self):
        class Inner(Kind):
            kind: Literal["inner"] = "inner"

        class Outer(Kind):
            kind: Literal["outer"] = "outer"
            inner: Inner = Inner()

        before = Outer().identity()
        assert Outer().canonical() == {"kind": "outer", "version": 1, "inner": {"kind": "inner", "version": 1}}
        Inner.version = 2
        assert Outer().identity() != before

    def test_differences_name_what_is_not_default(self):
        attack: Any = ATTACKS["pgd"](steps=7, eps="0.3")
        assert attack.differences() == {"steps": 7}


DOCUMENT = ROOT / "docs" / "adding-a-kind.md"


def written(language: str) -> list[str]:
    """Return the documents' examples in a language."""
    return re.findall(f"```{language}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)


PROGRAM = """
import json, sys, tempfile
from pathlib import Path
from starlette.testclient import TestClient
import core.attacks
from api.main import create_app
from store import migrate
from store.settings import Settings

state = Path(sys.argv[1])
url = f"sqlite:///{state / 'gauntlet.db'}"
migrate.upgrade(url)
job = {"defense": {"kind": "natural"}, "dataset": "mnist-mini", "attacks": [{"kind": "uniform_noise", "eps": "8/255"}]}
settings = Settings(_env_file=None, state_dir=state, database_url=url, data_download=True, redis_url="", device="cpu")
with TestClient(create_app(settings)) as client:
    plan = client.post("/jobs?dry_run=1", json=job)
    wrong = client.post("/jobs", json={**job, "attacks": [{"kind": "uniform_noise", "eps": 2}]})
    answers = {
        "where": core.attacks.__file__,
        "plan": [plan.status_code, [stage["title"] for stage in plan.json().get("stages", [])]],
        "wrong": wrong.json()["error"]["fields"][0],
        "catalog": client.get("/catalog").json()["attacks"]["uniform_noise"]["schema"]["properties"]["eps"]["default"],
        "openapi": "UniformNoise" in client.get("/openapi.json").json()["components"]["schemas"],
        "torch": "torch" in sys.modules,
    }
print(json.dumps(answers))
"""


def test_the_documents_attack_dropped_as_one_file_is_validated_planned_listed_and_documented(tmp_path: Path):
    for package in ("core", "api", "store", "migrations"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "alembic.ini", tmp_path)
    (code,) = (code for code in written("python") if "(Attack)" in code)
    (tmp_path / "core" / "attacks" / "uniform_noise.py").write_text(code)
    (tmp_path / "state").mkdir()
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "state")], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    answers = json.loads(found.stdout.splitlines()[-1])
    assert answers["where"] == str(tmp_path / "core" / "attacks" / "__init__.py")
    status, titles = answers["plan"]
    assert status == 200
    assert "craft UNIFORM_NOISE eps=8/255 on natural H, seed 0" in titles
    assert answers["wrong"]["path"] == "attacks.0.eps"
    assert answers["catalog"] == "0.3"
    assert answers["openapi"] is True
    assert answers["torch"] is False


TRAINING = """
from core.defenses import DEFENSES
from core.execution import Execution
from core.training import Training, train
from tests.core.small import TinyNet, tiny_pixels

images, labels = tiny_pixels(20)
defense = DEFENSES["gaussian_noise"](sigma=0.1)
schedule, execution = Training(iterations=2, batch_size=8), Execution(threads=1)
found = train(defense, TinyNet(), schedule, execution, mathematics="m", seed=0, images=images, labels=labels)
finite = [weight.isfinite().all().item() for weight in found.weights.values()]
print(defense.label(), len(found.curve), all(finite))
"""


def python(folder: Path, program: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])},
    )  # fmt: skip


@pytest.fixture
def documented(tmp_path: Path) -> Path:
    """A folder on whose path the package of docs/adding-a-kind.md is installed."""
    names = re.findall(r"^`(gauntlet_noise/\w+\.py)`", DOCUMENT.read_text(), re.MULTILINE)
    (project,) = written("toml")
    (tmp_path / "gauntlet_noise").mkdir()
    for name, code in zip(names, written("python"), strict=False):
        (tmp_path / name).write_text(code)
    points = tomllib.loads(project)["project"]["entry-points"]["gauntlet.defenses"]
    entry_point(tmp_path, "gauntlet.defenses", "\n".join(f"{name} = {value}" for name, value in points.items()))
    return tmp_path


def test_the_documents_example_of_a_package_trains(documented: Path):
    found = python(documented, TRAINING)
    assert found.stdout.endswith("True\n"), found.stderr
    assert found.stdout.startswith("gaussian_noise ")


def test_the_documents_example_may_be_imported_before_anything_of_ours(documented: Path):
    program = "from gauntlet_noise.gaussian import GaussianNoise as G; from core.defenses import DEFENSES as D"
    found = python(documented, f"{program}; print(D['gaussian_noise'] is G)")
    assert found.stdout == "True\n", found.stderr


def test_a_package_that_is_imported_first_and_does_not_import_the_registry_is_told_to(documented: Path):
    (documented / "gauntlet_noise" / "__init__.py").unlink()
    found = python(documented, "import gauntlet_noise.gaussian")
    last = found.stderr.splitlines()[-1]
    assert last.startswith("core.kinds.BadKind: gauntlet_noise.gaussian:GaussianNoise cannot be had: ")
    assert last.endswith("is imported first, its package's __init__.py must `import core.defenses`")


def test_the_registries_do_not_grow_by_being_looked_at():
    assert dict(discover("core.attacks", Attack, "gauntlet.attacks")) == dict(ATTACKS)
