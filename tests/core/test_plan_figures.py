"""Figure jobs: what they plan, what they share, and what they refuse."""

import json
from fractions import Fraction
from typing import Any

import pytest
from pydantic import ValidationError

from core.errors import ModelMissing, SpecError
from core.jobs import JOB, FigureJob
from core.plan import Plan
from core.ranges import MAX_POINTS, MAX_RADII
from core.resolve import resolved
from tests.core.test_plan import only_train, planned

MINI = {"kind": "figure", "dataset": "mnist-mini", "training": {"iterations": 10}}
TWO = {**MINI, "defenses": [{"kind": "natural"}, {"kind": "e2sad", "alpha": 0.2}]}
SURFACES = {"kind": "surfaces"}


def figures(*wanted: dict[str, Any], **more: Any) -> Plan:
    return planned({**TWO, "figures": list(wanted), **more})


def specs(found: Plan, kind: str) -> list[Any]:
    return [stage.spec for stage in found.ordered if stage.spec.kind == kind]


class TestStages:
    """A figure is a draw stage over one look at each model."""

    def test_each_model_is_looked_at_once_and_drawn_together(self):
        found = figures(SURFACES)
        assert [stage.spec.kind for stage in found.ordered] == ["train"] * 2 + ["surface"] * 2 + ["draw"]
        (draw,) = specs(found, "draw")
        assert draw.labels == ["natural H", "e2sad alpha=0.2 S"]
        assert [found.stages[key].spec.target for key in draw.parts] == [model.key for model in found.targets]

    def test_two_figures_of_one_look_share_it(self):
        found = figures(SURFACES, {**SURFACES, "models": ["natural H"]})
        assert (len(specs(found, "surface")), len(specs(found, "draw"))) == (2, 2)

    def test_curves_are_drawn_from_the_trainings(self):
        (draw,) = specs(figures({"kind": "curves"}), "draw")
        assert draw.parents() == tuple(model.key for model in figures({"kind": "curves"}).targets)

    def test_an_illustration_needs_no_model(self):
        found = planned({"kind": "figure", "figures": [{"kind": "illustration"}]})
        assert [stage.spec.kind for stage in found.ordered] == ["draw"]

    def test_the_papers_numbers_are_the_defaults(self):
        surface = specs(figures(SURFACES, dataset="mnist"), "surface")[0]
        assert (surface.ticks[-1], float(surface.direction.eps), surface.limit) == (0.4, 0.3, None)
        path = specs(figures({"kind": "path"}, dataset="mnist"), "surface")[0]
        assert (path.limit, path.direction.kind, path.direction.steps) == (128, "ifgsm", 30)
        sweep = specs(figures({"kind": "accuracy"}, dataset="mnist"), "sweep")[0]
        assert [float(eps) for eps in sweep.eps] == [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4]

    def test_another_dataset_has_its_own(self):
        surface = specs(figures(SURFACES, dataset="svhn"), "surface")[0]
        assert (str(surface.reach), str(surface.direction.eps)) == ("32/255", "8/85")

    def test_a_path_is_the_models_own_where_it_is_e2sads(self):
        natural, own = specs(figures({"kind": "path"}), "surface")
        assert (natural.path.alpha, own.path.alpha) == (0.6, 0.2)
        assert {stage.across for stage in (natural, own)} == {"path"}

    def test_radii_are_sorted_and_counted_once(self):
        wanted = {"kind": "accuracy", "eps": ["0.3", 0, "3/10", 0.1]}
        assert [float(eps) for eps in specs(figures(wanted), "sweep")[0].eps] == [0, 0.1, 0.3]

    def test_the_eps_of_a_swept_attack_is_part_of_no_key(self):
        asked = [{"kind": "accuracy", "attack": {"kind": "fgsm", **eps}} for eps in ({}, {"eps": 0.1}, {"eps": 0})]
        assert len({tuple(figures(wanted, dataset=name).stages) for wanted in asked for name in ["svhn"]}) == 1
        assert specs(figures(asked[1], dataset="mnist"), "sweep")[0].attack.eps == Fraction(3, 10)

    def test_a_limit_beyond_the_test_set_is_the_test_set(self):
        assert set(figures({**SURFACES, "limit": 2_000}).stages) == set(figures(SURFACES).stages)
        assert set(figures({**SURFACES, "limit": 1_999}).stages) != set(figures(SURFACES).stages)

    def test_seeds_are_told_apart(self):
        (draw,) = specs(figures(SURFACES, seeds=[0, 1]), "draw")
        assert draw.labels == [f"{name}, seed {seed}" for name in ("natural H", "e2sad alpha=0.2 S") for seed in (0, 1)]

    def test_the_spec_that_is_stored_asks_for_the_same_stages(self):
        wanted = [{"kind": kind} for kind in ("surfaces", "path", "accuracy", "curves", "samples", "illustration")]
        body = {**TWO, "dataset": "svhn", "figures": wanted}
        stored = resolved(JOB.validate_python(body), "svhn").model_dump(mode="json", exclude_none=True)
        assert list(planned(stored).stages) == list(planned(body).stages)


class TestExistingModels:
    """Named by key or by spec, like those of an evaluate job; nothing is trained."""

    def test_by_key_and_by_spec_find_one_model(self):
        known = only_train({"dataset": "mnist-mini", "defense": {"kind": "natural"}})
        by_key, by_spec = (
            planned({"kind": "figure", "models": [model], "figures": [SURFACES]}, known)
            for model in ({"key": known.identity()}, {"dataset": "mnist-mini", "defense": {"kind": "natural"}})
        )
        assert list(by_key.stages) == list(by_spec.stages)
        assert by_key.dataset == "mnist-mini"

    @pytest.mark.parametrize(
        ("model", "path"),
        [({"key": "0" * 64}, ("models", 0, "key")), ({"defense": {"kind": "natural"}}, ("models", 0))],
        ids=["key", "spec"],
    )
    def test_one_that_does_not_exist_is_missing(self, model: dict[str, Any], path: tuple[Any, ...]):
        with pytest.raises(ModelMissing) as refused:
            planned({"kind": "figure", "models": [model], "figures": [SURFACES]})
        assert refused.value.path == path

    def test_models_of_two_datasets_do_not_meet(self):
        mnist, mini = (
            only_train({"dataset": name, "defense": {"kind": "natural"}}) for name in ("mnist", "mnist-mini")
        )
        models = [{"key": mnist.identity()}, {"key": mini.identity()}]
        with pytest.raises(SpecError, match="trained on mnist-mini, but the first model on mnist") as refused:
            planned({"kind": "figure", "models": models, "figures": [SURFACES]}, mnist, mini)
        assert refused.value.path == ("models", 1)

    def test_two_of_one_name_are_refused(self):
        known = [only_train({"dataset": "mnist-mini", "defense": {"kind": kind}}) for kind in ("natural", "e2sad")]
        models = [{"key": train.identity(), "name": "a"} for train in known]
        with pytest.raises(SpecError, match="two models are called") as refused:
            planned({"kind": "figure", "models": models, "figures": [SURFACES]}, *known)
        assert refused.value.path == ("models", 1, "name")


class TestRefused:
    """Bad input names the field."""

    def test_a_name_that_no_model_has(self):
        with pytest.raises(SpecError, match="no model of this job is called 'nobody'") as refused:
            figures(SURFACES, {**SURFACES, "models": ["natural H", "nobody"]})
        assert refused.value.path == ("figures", 1, "models", 1)
        assert refused.value.allowed == ["natural H", "e2sad alpha=0.2 S"]

    def test_more_models_than_colours(self):
        with pytest.raises(SpecError, match="at most 8 models") as refused:
            figures(SURFACES, seeds=list(range(5)))
        assert refused.value.path == ("figures", 0, "models")

    @pytest.mark.parametrize(
        ("figure", "field"),
        [
            ({"kind": "surfaces", "points": MAX_POINTS + 1}, "points"),
            ({"kind": "surfaces", "points": 1}, "points"),
            ({"kind": "surfaces", "reach": 0}, "reach"),
            ({"kind": "surfaces", "reach": 1.1}, "reach"),
            ({"kind": "surfaces", "reach": "-0.1"}, "reach"),
            ({"kind": "surfaces", "direction": {"kind": "none"}}, "direction"),
            ({"kind": "path", "limit": 0}, "limit"),
            ({"kind": "accuracy", "eps": []}, "eps"),
            ({"kind": "accuracy", "eps": [0.01] * (MAX_RADII + 1)}, "eps"),
            ({"kind": "accuracy", "eps": [0.1, 1.5]}, "eps"),
            ({"kind": "accuracy", "attack": {"kind": "none"}}, "attack"),
        ],
        ids=json.dumps,
    )  # fmt: skip
    def test_grids_have_bounds(self, figure: dict[str, Any], field: str):
        with pytest.raises(ValidationError) as refused:
            JOB.validate_python({**TWO, "figures": [figure]})
        assert field in refused.value.errors()[0]["loc"]

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            ({"models": [{"key": "0" * 64}], "defense": {"kind": "natural"}}, "give one of"),
            ({}, "these figures show models"),
        ],
        ids=["both", "neither"],
    )
    def test_the_models_are_given_in_one_way(self, more: dict[str, Any], said: str):
        with pytest.raises(ValidationError, match=said):
            JOB.validate_python({"kind": "figure", "figures": [SURFACES], **more})

    def test_nothing_to_draw_is_refused(self):
        with pytest.raises(ValidationError):
            JOB.validate_python({**TWO, "figures": []})

    def test_a_figure_job_is_told_by_its_kind(self):
        assert isinstance(JOB.validate_python({**TWO, "figures": [SURFACES]}), FigureJob)
