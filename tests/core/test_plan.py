"""From a job to its stages: what the defaults ask for, what a key holds, and what it does not."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from core.attacks import ATTACKS
from core.datasets import DATASETS
from core.defenses import DEFENSES
from core.errors import SpecError
from core.execution import Execution
from core.fields import parse_pixels
from core.figures import FIGURES
from core.jobs import JOB
from core.kinds import Kind, Spec
from core.networks import NETWORKS
from core.plan import ATTACKER_SEED, Model, Plan, _sorts, plan
from core.resolve import filled, resolved
from core.stages import STAGES
from core.stages.craft import Craft
from core.stages.evaluate import Evaluate
from core.stages.train import Train

EXECUTION = Execution(device="cpu", threads=2)


class Known:
    """The trained models that a test says there are."""

    def __init__(self, *trains: Train):
        self.trains = trains

    def by_key(self, key: str) -> Train | None:
        return next((train for train in self.trains if train.identity() == key), None)

    def like(self, train: Train) -> Train | None:
        return next((known for known in self.trains if known.recipe == train.recipe and known.seed == train.seed), None)


def planned(body: dict[str, Any], *known: Train, execution: Execution = EXECUTION) -> Plan:
    return plan(JOB.validate_python(body), execution, Known(*known))


def trains(found: Plan) -> list[Train]:
    return [stage.spec for stage in found.ordered if isinstance(stage.spec, Train)]


def only_train(body: dict[str, Any]) -> Train:
    return trains(planned({"kind": "train", **body}))[0]


BARE = {"defense": {"kind": "e2sad"}}


class TestTheBareBody:
    """`{"defense": {"kind": "e2sad"}}` and nothing else is the paper's benchmark."""

    def test_it_trains_the_target_and_the_attackers_own_substitutes_by_the_papers_protocol(self):
        found = planned(BARE)
        assert [(train.defense.kind, train.seed) for train in trains(found)] == [
            ("e2sad", 0), ("natural", ATTACKER_SEED), ("fgsm_adv", ATTACKER_SEED), ("ifgsm_adv", ATTACKER_SEED),
        ]  # fmt: skip
        assert {train.defense.targets_letter for train in trains(found)[1:]} == {"H"}
        for train in trains(found):
            assert (train.dataset, train.network.kind) == ("mnist", "mnist_cnn")
            schedule = train.training
            assert (schedule.iterations, schedule.batch_size, schedule.optimiser) == (30_000, 256, "adam")

    def test_it_attacks_the_target_with_the_whole_panel_and_looks_at_it_clean(self):
        found = planned(BARE)
        target = found.targets[0].key
        mine = [stage.evaluation for stage in found.ordered if stage.evaluation and stage.evaluation.target == target]
        assert [seen.attack.label() for seen in mine if seen.whitebox] == [
            "clean", "FGSM eps=0.3", "FGSM eps=0.4", "IFGSM eps=0.3 k=10", "IFGSM eps=0.3 k=30", "PGD eps=0.3 k=40",
        ]  # fmt: skip

    def test_it_transfers_the_strongest_ifgsm_from_each_substitute_and_measures_each_on_itself(self):
        found = planned(BARE)
        target, substitutes = found.targets[0].key, [model.key for model in found.substitutes]
        pairs = [
            (stage.evaluation.substitute, stage.evaluation.target, stage.evaluation.attack.label())
            for stage in found.ordered
            if stage.evaluation and stage.evaluation.substitute in substitutes
        ]
        strongest = "IFGSM eps=0.3 k=30"
        assert sorted(pairs) == sorted(
            (substitute, shown, strongest) for substitute in substitutes for shown in (substitute, target)
        )
        assert found.pairing == "independent"

    def test_it_takes_every_test_image_and_nothing_twice(self):
        found = planned(BARE)
        assert Counter(stage.spec.kind for stage in found.ordered) == {"train": 4, "craft": 8, "evaluate": 15}
        assert {stage.images for stage in found.ordered if stage.spec.kind != "train"} == {10_000}
        keys = [stage.key for stage in found.ordered]
        for position, stage in enumerate(found.ordered):
            assert all(parent in keys[:position] for parent in stage.spec.parents())

    def test_its_cost_is_the_sum_of_passes_by_hand(self):
        found = planned(BARE)
        forward = found.targets[0].train.network.flop
        train = next(stage for stage in found.ordered if stage.key == found.targets[0].key)
        # clean, first and second examples: 3 forward, 3 full backward at two each, and the second step's gradient
        assert train.flop == (3 + 3 * 2 + 1) * forward * 30_000 * 256
        craft = next(stage for stage in found.ordered if stage.title.startswith("craft PGD"))
        assert craft.flop == 40 * 2 * forward * 10_000  # each step: one pass forward, one back to the images
        clean = next(stage for stage in found.ordered if stage.title.endswith("clean"))
        assert clean.flop == forward * 10_000


class TestDefaults:
    """What is left out comes from the dataset; what is given wins."""

    @pytest.mark.parametrize(
        ("dataset", "kind", "fields"),
        [
            ("svhn", "fgsm_adv", {"eps": "24/255"}),
            ("svhn", "ifgsm_adv", {"eps": "24/255", "steps": 10}),
            ("svhn", "pgd_minmax", {"eps": "24/255", "steps": 10, "step_size": "2/255"}),
            ("svhn", "e2sad", {"eps1": "24/255", "eps2": "8/255", "dissimilarity_weight": 0.3}),
            ("mnist", "fgsm_adv", {"eps": "0.3"}),
            ("mnist", "ifgsm_adv", {"eps": "0.3", "steps": 30}),
            ("mnist", "e2sad", {"eps1": "0.3", "eps2": "0.1", "dissimilarity_weight": 0.1}),
            ("mnist-mini", "e2sad", {"eps1": "0.3", "eps2": "0.1", "dissimilarity_weight": 0.1}),
            ("cifar10", "fgsm_adv", {"eps": "8/255"}),
        ],
    )  # fmt: skip
    def test_a_defense_has_its_datasets_numbers(self, dataset: str, kind: str, fields: dict[str, Any]):
        dumped = only_train({"dataset": dataset, "defense": {"kind": kind}}).defense.model_dump(mode="json")
        assert {name: dumped[name] for name in fields} == fields

    @pytest.mark.parametrize("dataset", DATASETS)
    @pytest.mark.parametrize(
        "cls",
        [cls for cls in (*ATTACKS.values(), *DEFENSES.values()) if "eps" in cls.model_fields],
        ids=lambda cls: cls.__name__,
    )
    def test_every_radius_that_is_left_out_is_the_datasets(self, dataset: str, cls: Any):
        assert filled(cls(), DATASETS[dataset]()).eps == parse_pixels(DATASETS[dataset].eps)
        assert filled(cls(eps="1/255"), DATASETS[dataset]()).eps == parse_pixels("1/255")

    def test_the_radius_of_a_uniform_second_step_is_the_datasets_eps2(self):
        def radius(**body: Any) -> str:
            defense = {"kind": "e2sad", **body.pop("defense", {})}
            return only_train({**body, "defense": defense}).defense.model_dump(mode="json")["radius"]

        uniform = {"second_step": "uniform"}
        assert radius(dataset="svhn", defense=uniform) == radius(dataset="synth-digits", defense=uniform) == "8/255"
        assert radius(dataset="svhn", defense={**uniform, "eps2": "1/255"}) == "8/255"
        assert radius(dataset="svhn", defense={**uniform, "radius": "0.1"}) == "0.1"
        assert radius(dataset="mnist", defense=uniform) == "0.1"
        assert radius(dataset="svhn") == "0.1", "a field without a meaning keeps its default, and the key what it was"

    def test_a_number_that_is_given_wins_even_where_it_equals_the_kinds_own_default(self):
        train = only_train({"dataset": "svhn", "defense": {"kind": "fgsm_adv", "eps": 0.3}})
        assert train.defense.model_dump(mode="json")["eps"] == "0.3"

    def test_an_attack_has_its_datasets_numbers_too(self):
        found = planned({**BARE, "dataset": "svhn", "attacks": [{"kind": "fgsm"}, {"kind": "fgsm", "eps": 0.3}]})
        labels = [stage.evaluation.attack.label() for stage in found.ordered if stage.evaluation]
        assert {"FGSM eps=24/255", "FGSM eps=0.3"} <= set(labels)

    @pytest.mark.parametrize(
        ("dataset", "network", "iterations"),
        [("mnist", "mnist_cnn", 30_000), ("fashion-mnist", "mnist_cnn", 30_000), ("mnist-mini", "mnist_cnn", 5_000),
         ("svhn", "svhn_cnn", 20 * 287), ("cifar10", "svhn_cnn", None)],
    )  # fmt: skip
    def test_network_and_length_are_the_datasets(self, dataset: str, network: str, iterations: int | None):
        train = only_train({**BARE, "dataset": dataset})
        assert train.network.kind == network
        assert iterations in (None, train.training.iterations)

    @pytest.mark.parametrize(("batch_size", "iterations"), [(256, 2 * 40), (1000, 2 * 10), (9_999, 2 * 2)])
    def test_epochs_become_iterations_rounded_up(self, batch_size: int, iterations: int):
        schedule = {"epochs": 2, "batch_size": batch_size}
        assert only_train({**BARE, "dataset": "mnist-mini", "training": schedule}).training.iterations == iterations

    def test_a_whole_schedule_can_be_given(self):
        schedule = {"iterations": 7, "batch_size": 8, "optimiser": "sgd", "lr": 0.1, "momentum": 0.5,
                    "weight_decay": 0.01}  # fmt: skip
        assert only_train({**BARE, "training": schedule}).training.model_dump() == {"precision": "float32", **schedule}
        assert only_train({**BARE, "training": {"precision": "tf32"}}).training.precision == "tf32"

    def test_a_network_can_be_given(self):
        body = {**BARE, "dataset": "svhn", "network": {"kind": "svhn_cnn", "input": "per-image"}}
        assert only_train(body).network.model_dump() == {"kind": "svhn_cnn", "input": "per-image"}

    def test_the_jobs_label_smoothing_is_for_defenses_that_set_none(self):
        defenses = [{"kind": "natural"}, {"kind": "fgsm_adv", "label_smoothing": 0}, {"kind": "e2sad"}]
        body = {"kind": "train", "training": {"label_smoothing": 0.25}, "defenses": defenses}
        found = planned(body)
        assert [train.defense.label_smoothing for train in trains(found)] == [0.25, 0, 0.25]
        assert [model.label for model in found.targets] == ["natural S", "fgsm_adv H", "e2sad S"]

    def test_e2sad_takes_the_jobs_label_smoothing_over_its_own_default(self):
        assert only_train({**BARE, "training": {"label_smoothing": 0.1}}).defense.label_smoothing == 0.1
        assert only_train(BARE).defense.label_smoothing == 0.25

    def test_a_defense_may_have_a_schedule_of_its_own(self):
        own = {"defense": {"kind": "natural"}, "name": "long", "training": {"iterations": 900, "label_smoothing": 0.5}}
        body = {"kind": "train", "training": {"epochs": 3, "batch_size": 64, "lr": 0.01},
                "defenses": [{"kind": "natural"}, own]}  # fmt: skip
        short, long = trains(planned(body))
        assert (short.training.iterations, short.training.batch_size) == (3 * 938, 64)
        assert (long.training.iterations, long.training.batch_size, long.training.lr) == (900, 64, 0.01)
        assert (short.defense.label_smoothing, long.defense.label_smoothing) == (0, 0.5)

    def test_an_optimiser_of_its_own_takes_no_momentum_over(self):
        body = {"kind": "train", "training": {"iterations": 9, "optimiser": "sgd", "momentum": 0.5},
                "defenses": [{"kind": "natural"}, {**BARE, "training": {"optimiser": "adam"}},
                             {**BARE, "name": "sgd", "training": {"optimiser": "sgd"}}]}  # fmt: skip
        found = [(train.training.optimiser, train.training.momentum) for train in trains(planned(body))]
        assert found == [("sgd", 0.5), ("adam", 0.9), ("sgd", 0.5)], "0.9 is the default, which adam has no use for"

    @pytest.mark.parametrize(
        ("body", "whose", "path"),
        [
            ({"training": {"momentum": 0.5}, "defenses": [{**BARE, "name": "x", "training": {"optimiser": "sgd"}}]},
             "substitute natural H", "training.momentum"),
            ({"training": {"epochs": 900_000}, "defenses": [{**BARE, "name": "x", "training": {"batch_size": 1}}]},
             "defense x", "training.epochs"),
            ({"defenses": [{"kind": "natural"}, {**BARE, "training": {"momentum": 0.5}}]},
             "defense e2sad S", "defenses.1.training.momentum"),
        ],
        ids=["default substitute", "the job's", "its own"],
    )  # fmt: skip
    def test_a_schedule_that_cannot_be_says_whose_it_is(self, body: dict[str, Any], whose: str, path: str):
        with pytest.raises(SpecError, match=f"^{whose}: ") as refused:
            planned(body)
        assert ".".join(map(str, refused.value.path)) == path

    def test_a_limit_of_the_whole_test_set_is_none(self):
        assert list(planned({**BARE, "limit": 10_000}).stages) == list(planned(BARE).stages)
        part = planned({**BARE, "limit": 300})
        assert {stage.images for stage in part.ordered if stage.spec.kind != "train"} == {300}


STRONG = {"kind": "figure", "dataset": "mnist-mini", "defense": {"kind": "natural"}}
DIM = {"kind": "e2sad", "second_step": "noise", "sigma": 1e-6}
SOFT = {"label_smoothing": 0.9}


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"defense": DIM}, "defense.sigma"),
        ({"defenses": [{"kind": "natural"}, DIM]}, "defenses.1.sigma"),
        ({**BARE, "substitutes": [{"defense": DIM, "name": "d"}]}, "substitutes.0.defense.sigma"),
        ({"defense": {"kind": "e2sad", "second_step": "uniform", "radius": 0}}, "defense.radius"),
        ({"defense": {"kind": "e2sad", "second_step": "vat", "xi": 1e-7}}, "defense.xi"),
        ({"defense": {"kind": "pgd_minmax", "step_size": 0}}, "defense.step_size"),
        ({**BARE, "attacks": [{"kind": "none"}, {"kind": "pgd", "step_size": 0}]}, "attacks.1.step_size"),
        ({**BARE, "transfer": [{"kind": "pgd", "random_start": False, "seed": 1}]}, "transfer.0.seed"),
        ({**STRONG, "figures": [{"kind": "accuracy", "attack": {"kind": "pgd", "step_size": 0}}]},
         "figures.0.attack.step_size"),
        ({**STRONG, "figures": [{"kind": "path", "path": DIM}]}, "figures.0.path.sigma"),
        *(({**STRONG, "figures": [{"kind": kind, "direction": {"kind": "fgsm", "eps": 0}}]}, "figures.0.direction")
          for kind in ("surfaces", "path")),
        ({"defense": {"kind": "natural", **SOFT}}, "defense.label_smoothing"),
        ({**BARE, "training": SOFT}, "training.label_smoothing"),
        ({"defenses": [{**BARE, "training": SOFT}]}, "defenses.0.training.label_smoothing"),
    ],
    ids=json.dumps,
)  # fmt: skip
def test_what_cannot_work_is_refused_and_stays_readable(body: dict[str, Any], path: str):
    with pytest.raises(SpecError, match="give") as refused:
        planned(body)
    assert ".".join(map(str, refused.value.path)) == path


class TestResolved:
    """A job's dump with the defaults of its dataset asks for the same stages when it is posted again."""

    @pytest.mark.parametrize("dataset", DATASETS)
    def test_a_benchmark(self, dataset: str):
        named = {"defense": {"kind": "e2sad", "alpha": 0.1}, "name": "x"}
        body = {
            "dataset": dataset, "training": {"label_smoothing": 0.1}, "transfer": [{"kind": "ifgsm"}],
            "defenses": [*({"kind": kind} for kind in DEFENSES), named],
            "attacks": [{"kind": kind} for kind in ATTACKS], "substitutes": ["x", {"kind": "natural"}],
        }  # fmt: skip
        job = JOB.validate_python(body)
        dumped = resolved(job, dataset).model_dump(mode="json", exclude_none=True)
        assert list(planned(dumped).stages) == list(planned(body).stages)
        assert [model.label for model in planned(dumped).targets] == [model.label for model in planned(body).targets]

    def test_an_evaluation(self):
        known = only_train({"dataset": "svhn", "defense": {"kind": "e2sad"}})
        model = {"dataset": "svhn", "defense": {"kind": "e2sad"}}
        other = only_train({"dataset": "svhn", "defense": {"kind": "natural"}})
        body = {"kind": "evaluate", "targets": [model, {"key": other.identity(), "name": "other"}],
                "attacks": [{"kind": "fgsm"}]}  # fmt: skip
        dumped = resolved(JOB.validate_python(body), "svhn").model_dump(mode="json", exclude_none=True)
        assert dumped["attacks"][0]["eps"] == dumped["targets"][0]["defense"]["eps1"] == "24/255"
        assert list(planned(dumped, known, other).stages) == list(planned(body, known, other).stages)


class TestTwice:
    """What is asked for twice is refused: of two columns with the same cells one would be lost."""

    @pytest.mark.parametrize(
        ("body", "said", "path"),
        [
            ({"defenses": [{"kind": "natural"}, {**BARE, "name": "a"}, {"kind": "e2sad", "eps1": "3/10"}]},
             "defenses 1 and 2 are the same training", ("defenses", 2)),
            ({"defenses": [{"kind": "natural"}], "substitutes": ["natural H", {"kind": "natural"}]},
             "substitutes 0 and 1 are the same training", ("substitutes", 1)),
            ({**STRONG, "figures": [{"kind": "curves", "models": ["natural H", "natural H"]}]},
             "'natural H' is named twice", ("figures", 0, "models", 1)),
        ],
        ids=["defenses", "substitutes", "models of a figure"],
    )  # fmt: skip
    def test_in_one_job(self, body: dict[str, Any], said: str, path: tuple[Any, ...]):
        with pytest.raises(SpecError, match=f"{said}: leave one out") as refused:
            planned(body)
        assert refused.value.path == path

    @pytest.mark.parametrize("role", ["targets", "substitutes", "models"])
    def test_among_existing_models(self, role: str):
        known = only_train(BARE)
        twice = [{"key": known.identity()}, {**BARE, "name": "again"}]
        body = {"kind": "figure", "figures": [{"kind": "curves"}]} if role == "models" else {"kind": "evaluate"}
        targets = {"targets": twice[:1]} if role == "substitutes" else {}
        with pytest.raises(SpecError, match=f"{role} 0 and 1 are the same model: leave one out") as refused:
            planned({**body, **targets, role: twice}, known)
        assert refused.value.path == (role, 1)


class TestTooMuch:
    """What needs more stages than a job may have is refused before its keys are computed."""

    @pytest.mark.parametrize(
        ("more", "path", "said"),
        [({}, "seeds", "1 defenses under 100 seeds, with 12 stages each, are 1200"),
         ({"kind": "train"}, "seeds", "1 defenses under 100 seeds, with 1 stages each, are 100"),
         ({"seeds": [0], "substitutes": ["D"], "substitute_seeds": list(range(100))}, "substitute_seeds",
          "1 substitutes under 100 seeds, with 4 stages each, are 400")],
        ids=["targets", "trainings", "substitutes"],
    )  # fmt: skip
    def test_by_the_number_of_seeds(self, more: dict[str, Any], path: str, said: str, monkeypatch):
        monkeypatch.setattr("core.plan.MAX_STAGES", 99)
        body = {"defenses": [{**BARE, "name": "D"}], "seeds": list(range(100)), **more}
        identity, asked = Train.identity, list[Train]()
        monkeypatch.setattr(Train, "identity", lambda train: asked.append(train) or identity(train))
        with pytest.raises(SpecError, match=f"needs more than 99 stages: {said}; split it") as refused:
            planned(body)
        assert refused.value.path == (path,)
        assert len(asked) <= 1

    @pytest.mark.parametrize("seeds", [([0], [0]), ([0], [1]), ([0, 1], [1]), ([0, 1], [2, 3]), ([0], [])], ids=str)
    @pytest.mark.parametrize("kinds", ["aa", "ab"])
    def test_which_pairs_there_are_is_known_without_looking_at_each(self, seeds: tuple[list[int], ...], kinds: str):
        specs = {"a": {"kind": "natural"}, "b": {"kind": "fgsm_adv"}}
        targets, substitutes = (
            [Model(only_train({"defense": specs[kind], "seeds": [seed]}), kind) for seed in group]
            for kind, group in zip(kinds, seeds, strict=True)
        )
        pairs = [(t, s) for t in targets for s in substitutes if t.key != s.key]
        expected = {"same" if t.train.seed == s.train.seed else "independent" for t, s in pairs}
        assert _sorts(targets, substitutes) == expected


class TestSubstitutes:
    """Who attacks whom."""

    def test_the_default_ones_have_hard_targets_whatever_the_job_says(self):
        found = planned({**BARE, "training": {"label_smoothing": 0.25}})
        assert {model.train.defense.label_smoothing for model in found.substitutes} == {0}
        assert {model.key for model in found.substitutes} == {model.key for model in planned(BARE).substitutes}

    def test_every_seed_has_attackers_of_its_own(self):
        found = planned({**BARE, "seeds": [0, 5]})
        assert sorted(model.train.seed for model in found.substitutes) == sorted(
            3 * [ATTACKER_SEED] + 3 * [ATTACKER_SEED + 5]
        )

    def test_named_ones_share_the_targets_weights_and_pair_by_seed(self):
        body = {"defenses": [{"kind": "natural"}, {"defense": {"kind": "fgsm_adv"}, "name": "F"}], "seeds": [0, 1],
                "substitutes": ["F"], "transfer": [{"kind": "fgsm"}], "attacks": [{"kind": "none"}]}  # fmt: skip
        found = planned(body)
        assert found.pairing == "same"
        assert {model.key for model in found.substitutes} < {model.key for model in found.targets}
        seeds = {model.key: model.train.seed for model in found.targets}
        pairs = [s.evaluation for s in found.ordered if s.evaluation and s.evaluation.substitute]
        assert len(pairs) == 4
        assert all(seeds[pair.target] == seeds[str(pair.substitute)] for pair in pairs)

    def test_independent_pairs_are_all_of_different_seeds_and_each_ones_own(self):
        body = {"defenses": [{"kind": "natural"}], "seeds": [0, 1, 2], "substitutes": ["natural H"],
                "pairing": "independent", "transfer": [{"kind": "fgsm"}], "attacks": [{"kind": "none"}]}  # fmt: skip
        pairs = [s.evaluation for s in planned(body).ordered if s.evaluation and s.evaluation.substitute]
        assert len(pairs) == 9
        assert sum(pair.whitebox for pair in pairs) == 3

    def test_none_means_no_transfer(self):
        found = planned({**BARE, "substitutes": []})
        assert found.substitutes == []
        assert all(stage.evaluation.whitebox for stage in found.ordered if stage.evaluation)

    def test_seeds_of_substitutes_can_be_given(self):
        found = planned({**BARE, "substitute_seeds": [7, 8]})
        assert {model.train.seed for model in found.substitutes} == {7, 8}
        assert found.pairing == "independent", "no seeds meet"
        assert any(stage.evaluation and not stage.evaluation.whitebox for stage in found.ordered)
        assert planned({**BARE, "substitute_seeds": [0, 8]}).pairing == "same"

    def test_the_attackers_seeds_must_fit(self):
        with pytest.raises(SpecError, match="give substitute_seeds") as refused:
            planned({**BARE, "seeds": [0, 2**31 - 1]})
        assert refused.value.path == ("seeds", 1)
        assert planned({**BARE, "seeds": [2**31 - 1], "substitutes": []})


class TestExistingModels:
    """Evaluate jobs name models by key or by spec and train nothing."""

    def test_by_key_and_by_spec_find_one_model(self):
        known = only_train({**BARE, "seeds": [4]})
        by_key = planned({"kind": "evaluate", "targets": [{"key": known.identity()}]}, known)
        by_spec = planned({"kind": "evaluate", "targets": [{**BARE, "seed": 4}]}, known)
        assert list(by_key.stages) == list(by_spec.stages)
        assert [model.label for model in by_key.targets] == ["e2sad S"]

    def test_by_spec_it_has_the_same_defaults_as_a_training(self):
        known = only_train({"dataset": "svhn", "defense": {"kind": "e2sad"}, "training": {"label_smoothing": 0.1}})
        model = {"dataset": "svhn", "defense": {"kind": "e2sad"}, "training": {"label_smoothing": 0.1}, "name": "mine"}
        found = planned({"kind": "evaluate", "targets": [model]}, known)
        assert (found.targets[0].label, found.dataset) == ("mine", "svhn")

    def test_models_of_two_datasets_do_not_meet(self):
        mnist, mini = only_train(BARE), only_train({**BARE, "dataset": "mnist-mini"})
        for role in ("targets", "substitutes"):
            body = {"kind": "evaluate", "targets": [{"key": mnist.identity()}]}
            body[role] = [*body.get(role, []), {"key": mini.identity()}]
            with pytest.raises(SpecError, match="trained on mnist-mini, but the first target on mnist") as refused:
                planned(body, mnist, mini)
            assert refused.value.path == (role, len(body[role]) - 1)

    @pytest.mark.parametrize(("seed", "pairing"), [(0, "same"), (3, "independent")])
    def test_the_pairing_is_what_the_seeds_allow(self, seed: int, pairing: str):
        target, other = only_train(BARE), only_train({"defense": {"kind": "natural"}, "seeds": [seed]})
        body = {"kind": "evaluate", "targets": [{"key": target.identity()}], "substitutes": [{"key": other.identity()}]}
        found = planned(body, target, other)
        assert found.pairing == pairing
        assert any(stage.evaluation and not stage.evaluation.whitebox for stage in found.ordered)

    def test_every_named_pair_is_shown_unless_a_pairing_says_otherwise(self):
        a, b = (only_train({"defense": {"kind": "natural"}, "seeds": [seed]}) for seed in (0, 1))
        other = only_train({"defense": {"kind": "fgsm_adv"}, "seeds": [0]})
        body = {"kind": "evaluate", "targets": [{"key": a.identity()}, {"key": b.identity()}],
                "substitutes": [{"key": other.identity()}], "attacks": [{"kind": "none"}]}  # fmt: skip

        def met(**more: Any) -> tuple[str, set[int]]:
            found = planned({**body, **more}, a, b, other)
            seeds = {model.key: model.train.seed for model in found.targets}
            seen = [s.evaluation for s in found.ordered if s.evaluation and s.evaluation.substitute]
            return found.pairing, {seeds[pair.target] for pair in seen if not pair.whitebox}

        assert met() == met(pairing="all") == ("all", {0, 1})
        assert met(pairing="same") == ("same", {0})
        assert met(pairing="independent") == ("independent", {1})
        with pytest.raises(SpecError, match="no target meets a substitute of another seed") as refused:
            met(targets=body["targets"][:1], pairing="independent")
        assert refused.value.path == ("pairing",)


def spec_of(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    found = next(stage for stage in planned(body).ordered if stage.spec.kind == kind)
    return found.spec.model_dump(mode="json")


FAST = {"dataset": "mnist-mini", "training": {"iterations": 10}, "substitutes": []}
FIGURE = {"kind": "figure", "dataset": "mnist-mini", "training": {"iterations": 10}, "defense": {"kind": "e2sad"}}
PATHS = [{"kind": "e2sad", "second_step": step} for step in ("entropy", "noise", "uniform", "vat")]
SGD = {"dataset": "mnist-mini", "training": {"iterations": 10, "optimiser": "sgd"}, "kind": "train"}
BASES = {
    "train": [
        *(spec_of("train", {**SGD, "defense": {"kind": kind}}) for kind in DEFENSES),
        *(spec_of("train", {**SGD, "defense": {"kind": "e2sad", "second_step": step}})
          for step in ("noise", "uniform", "vat")),
        spec_of("train", {**SGD, "dataset": "svhn", "defense": {"kind": "natural"}}),
    ],
    "craft": [spec_of("craft", {**FAST, "defense": {"kind": "natural"}, "attacks": [{"kind": kind}]})
              for kind in ATTACKS if kind != "none"],
    "evaluate": [spec_of("evaluate", {**FAST, "defense": {"kind": "natural"}})],
    "surface": [spec_of("surface", {**FIGURE, "figures": [{"kind": "surfaces"}]}),
                *(spec_of("surface", {**FIGURE, "defense": own, "figures": [{"kind": "path"}]}) for own in PATHS)],
    "sweep": [spec_of("sweep", {**FIGURE, "figures": [{"kind": "accuracy"}]})],
    "samples": [spec_of("samples", {**FIGURE, "defense": own, "figures": [{"kind": "samples"}]}) for own in PATHS],
    "draw": [spec_of("draw", {**FIGURE, "figures": [{"kind": kind}]}) for kind in FIGURES],
}  # fmt: skip
for _bases in BASES.values():
    _bases.append({**_bases[0], "execution": {**_bases[0]["execution"], "device": "cuda", "captured": True}})
CANDIDATES: tuple[Any, ...] = (
    True, False, 1, 2, 3, 50, 0, 0.05, 0.15, 0.5, "0.2", "f" * 64, "e" * 64, "svhn", "mnist", "sgd", "adam",
    ["0.1"], ["a"], {"kind": "e2sad", "alpha": 0.5},
)  # fmt: skip


def paths(spec: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the place of every leaf of the spec."""
    if isinstance(spec, dict):
        for name, value in spec.items():
            yield from paths(value, (*at, name))
    else:
        yield at


def literals(cls: type[Spec], path: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the words that the field at `path` may hold, where it holds one of a few."""
    if path and path[0] not in cls.model_fields:
        return ()
    if len(path) == 1:
        found = get_args(cls.model_fields[path[0]].annotation)
        return tuple(word for word in found if isinstance(word, str))
    inner = {
        "defense": (DEFENSES, "kind"),
        "attack": (ATTACKS, "kind"),
        "network": (NETWORKS, "kind"),
        "direction": (ATTACKS, "kind"),
        "path": (DEFENSES, "kind"),
        "figure": (FIGURES, "kind"),
    }.get(path[0])
    if inner is None:
        annotation: Any = cls.model_fields[path[0]].annotation
        return literals(annotation, path[1:])
    words = [literals(kind, path[1:]) for kind in inner[0].values()]
    return tuple(dict.fromkeys(word for group in words for word in group))


def changed(spec: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    copied = json.loads(json.dumps(spec))
    here = copied
    for name in path[:-1]:
        here = here[name]
    here[path[-1]] = value
    return copied


def mutations(kind: str, path: tuple[str, ...]) -> Iterator[tuple[Kind, Kind]]:
    """Yield (stage, the same stage with another valid value at `path`)."""
    cls = STAGES[kind]
    for base in BASES[kind]:
        if path not in list(paths(base)):
            continue
        before = cls.model_validate(base)
        for value in (*literals(cls, path), *CANDIDATES):
            try:
                after = cls.model_validate(changed(base, path, value))
            except ValidationError:
                continue
            if after != before:
                yield before, after


FIELDS = sorted({(kind, path) for kind, bases in BASES.items() for base in bases for path in paths(base)})
ONE_KIND_ONLY = {(kind, ("kind",)) for kind in STAGES}
"""The stage's own kind: another one is another class."""


class TestKeys:
    """A key holds whatever changes the result, and nothing else."""

    @pytest.mark.parametrize(("kind", "path"), FIELDS, ids=[f"{kind}.{'.'.join(path)}" for kind, path in FIELDS])
    def test_every_field_is_part_of_it(self, kind: str, path: tuple[str, ...]):
        found = list(mutations(kind, path))
        if not found:
            assert (kind, path) in ONE_KIND_ONLY or path[-1] == "kind", (
                "no other valid value was found: add a candidate"
            )
        for before, after in found:
            assert after.identity() != before.identity(), (before, after)

    def test_the_fields_above_are_all_there_are(self):
        named = {path for kind, path in FIELDS if kind == "train"}
        assert {("seed",), ("dataset_sha256",), ("execution", "device"), ("execution", "threads"),
                ("training", "momentum"), ("defense", "xi"), ("network", "input")} <= named  # fmt: skip
        assert ("attack", "restarts") in {path for kind, path in FIELDS if kind == "craft"}
        assert ("examples",) in {path for kind, path in FIELDS if kind == "evaluate"}

    @pytest.mark.parametrize(
        "cls",
        [*ATTACKS.values(), *DEFENSES.values(), *NETWORKS.values(), *STAGES.values(), *FIGURES.values()],
        ids=lambda cls: cls.__name__,
    )
    def test_the_code_version_of_every_kind_inside_is_part_of_it(self, cls: type[Kind], monkeypatch):
        specs = [STAGES[kind].model_validate(base) for kind, bases in BASES.items() for base in bases]
        using = [spec for spec in specs if isinstance(spec, cls) or any(type(inner) is cls for _, inner in spec)]
        before = [spec.identity() for spec in using]
        monkeypatch.setattr(cls, "version", cls.version + 1)
        assert cls.model_fields["kind"].default == "none" or using
        assert all(spec.identity() != key for spec, key in zip(using, before, strict=True))

    def test_other_files_of_a_dataset_are_another_key(self, monkeypatch):
        before = only_train({**BARE, "dataset": "mnist"}).identity()
        cls = DATASETS["mnist"]
        monkeypatch.setattr(cls, "checksums", {**cls.checksums, "MNIST/raw/train-images-idx3-ubyte": "0" * 32})
        assert only_train({**BARE, "dataset": "mnist"}).identity() != before

    def test_stages_downstream_change_with_the_stages_they_need(self):
        a, b = (planned({**FAST, "defense": {"kind": "natural"}, "seeds": [seed]}) for seed in (0, 1))
        assert not set(a.stages) & set(b.stages)

    @pytest.mark.parametrize(
        "more",
        [{"name": "mine"}, {"tags": ["a"]}, {"priority": 9}, {"seeds": [0]}, {"dataset": "mnist"}, {"device": "cpu"},
         {"training": {"iterations": 30_000}}, {"network": {"kind": "mnist_cnn"}}, {"limit": 10_000},
         {"defense": {"kind": "e2sad", "eps1": "3/10", "label_smoothing": 0.25}}],
        ids=json.dumps,
    )  # fmt: skip
    def test_what_changes_no_result_changes_no_key(self, more: dict[str, Any]):
        assert set(planned({**BARE, **more}).stages) == set(planned(BARE).stages)

    def test_a_label_changes_no_key(self):
        named = planned({"defenses": [{"defense": {"kind": "e2sad"}, "name": "ours"}]})
        assert set(named.stages) == set(planned(BARE).stages)
        assert named.targets[0].label == "ours"

    @pytest.mark.parametrize("eps", [0.3, "0.3", "3/10", "0.30", " 0.3"])
    def test_one_distance_however_it_is_written(self, eps: Any):
        body = {"defense": {"kind": "fgsm_adv", "eps": eps}, "attacks": [{"kind": "fgsm", "eps": eps}]}
        usual = planned({"defense": {"kind": "fgsm_adv"}, "attacks": [{"kind": "fgsm"}]})
        assert set(planned(body).stages) == set(usual.stages)

    def test_a_spec_read_back_from_json_has_the_key_it_had(self):
        everything = {**BARE, "attacks": [{"kind": kind} for kind in ATTACKS], "dataset": "svhn"}
        for stage in planned(everything).ordered:
            text = json.dumps(stage.spec.model_dump(mode="json"))
            assert STAGES[stage.spec.kind].model_validate(json.loads(text)).identity() == stage.key

    def test_it_is_the_same_in_every_process(self):
        program = (
            "import sys; sys.path.insert(0, '.'); from tests.core.test_plan import planned, BARE, FAST;"
            "print(*planned(BARE).stages, *planned({**FAST, 'defense': {'kind': 'natural'}}).stages)"
        )
        printed = {
            subprocess.run(
                [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True,
                text=True, check=True,
            ).stdout
            for seed in ("1", "2")
        }  # fmt: skip
        here = [*planned(BARE).stages, *planned({**FAST, "defense": {"kind": "natural"}}).stages]
        assert printed == {" ".join(here) + "\n"}

    def test_it_is_what_it_was(self):
        """Where this fails, every result so far stops being found: bump a kind's version if that is meant."""
        found = planned({**FAST, "defense": {"kind": "natural"}, "attacks": [{"kind": "fgsm", "eps": "24/255"}]})
        train, craft, evaluate = (
            next(stage for stage in found.ordered if isinstance(stage.spec, cls)) for cls in (Train, Craft, Evaluate)
        )
        assert (train.key, craft.key, evaluate.key) == GOLDEN


GOLDEN = (
    "23d22b6e2d89860f7c3b6984ca726d11f634113dd2eabe7c2f7d9163d75d63d6",
    "967d766bdf987187279f27d3e11c7a1a1540080eb6d1e41c17824d7a04b4cf16",
    "34ec974c11c807667cf0ccd52e7d22bdcfafbf259a947120a25fc70c6228afcc",
)


def test_rows_and_columns_are_the_key_without_the_seed():
    zero, one = trains(planned({**BARE, "seeds": [0, 1], "kind": "train"}))
    assert zero.recipe == one.recipe
    assert zero.identity() != one.identity()
    assert zero.recipe not in (zero.identity(), one.identity())


def test_a_seed_starts_alike_however_it_is_executed():
    here, there = (
        trains(planned({**BARE, "kind": "train"}, execution=execution))[0]
        for execution in (EXECUTION, Execution.on("cuda", 1))
    )
    assert here.recipe != there.recipe
    assert here.mathematics == there.mathematics
    other = here.model_copy(update={"defense": DEFENSES["natural"]()})
    assert here.mathematics != other.mathematics
