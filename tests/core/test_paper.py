"""The published tables are the paper's, and every row and column of them is found in the suites."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import SpecError
from core.execution import Execution
from core.paper import ATTACKS, MODELS, fits, of_job, of_suite, published, standing, tables
from core.statistics import prediction_interval, t_quantile
from core.suites import suites

SHARED = Path(__file__).parents[3] / "shared" / "paper" / "tables.json"
SIZES = {1: (5, 9, 45), 2: (6, 9, 54), 3: (5, 4, 20)}
TABLE_2_SUBSTITUTES = ("Natural H", "FGSM .3 H", "IFGSM .3 H", "Natural S", "FGSM .3 S", "IFGSM .3 S")


@pytest.mark.skipif(
    not SHARED.is_file(), reason="the transcription lies beside a checkout only where this is developed"
)
def test_the_shipped_values_are_the_transcription() -> None:
    assert tables() == json.loads(SHARED.read_text())


@pytest.mark.parametrize("number", SIZES)
def test_every_cell_of_a_table_has_a_place(number: int) -> None:
    table = published(number)
    assert (len(table.rows), len(table.columns), len(table.accuracies)) == SIZES[number]
    assert set(table.accuracies) == {(row, column) for row in table.rows for column in table.columns}
    assert all(0 <= accuracy <= 1 for accuracy in table.accuracies.values())


def test_some_cells_by_hand() -> None:
    first, second, third = (published(number).accuracies for number in (1, 2, 3))
    assert first["clean", "e2SAD S"] == 0.9932
    assert first["IFGSM .3, k = 30", "e2SAD S"] == 0.8633
    assert first["FGSM .4", "FGSM .4 S"] == 0.9914
    assert second["Natural H", "e2SAD S"] == 0.8680
    assert second["Natural S", "Natural S"] == 0.0929
    assert third["IFGSM 24/255, k = 20", "e2SAD S"] == 0.4020
    assert published(2).rows == TABLE_2_SUBSTITUTES


def test_the_diagonal_of_table_2_is_table_1() -> None:
    diagonal, row = published(2).accuracies, published(1).accuracies
    for name in TABLE_2_SUBSTITUTES:
        assert diagonal[name, name] == pytest.approx(row["IFGSM .3, k = 30", name], abs=0.00011)


def test_the_full_suite_follows_the_protocol_and_has_every_cell() -> None:
    for number in (1, 2):
        found = standing(number, of_suite("e2sad-mnist"), Execution())
        assert found.reductions == ()
        assert [line.partition(":")[0] for line in found.choices] == [
            "equation 7 has no gradient as printed",
            "adversarial images of trainings and attacks are clipped to [0, 1]",
            "the optimiser is named for SVHN alone", "the weight of clean images is given for e2SAD alone",
        ]  # fmt: skip
        assert (
            "second_step entropy climbs the cross entropy with its arguments exchanged, at x1 (e2SAD S)"
            in found.choices[0]
        )
        assert (found.dataset, found.images) == ("mnist", 10_000)
        assert tuple(found.models) == tuple(MODELS["mnist"])
        assert {row for row, _ in found.attacks} == set(ATTACKS["mnist"])
        assert set(found.transfer) == {"label", "training"}
        assert found.substitutes == set(TABLE_2_SUBSTITUTES)


@pytest.mark.parametrize("suite", sorted(suites()))
def test_a_model_stands_for_the_paper_s_only_where_nothing_but_steps_differs(suite: str) -> None:
    for number in (1, 3):
        if not fits(number, suite):
            continue
        for name, model in standing(number, of_suite(suite), Execution()).models.items():
            words, _ = MODELS[published(number).dataset][name]
            defense = model.train.defense
            assert (defense.kind, defense.targets_letter) == (words["defense"], words["labels"])
            assert defense.differences(frozenset({"eps", "steps", "label_smoothing", "eps1", "eps2"})).keys() <= {
                "dissimilarity_weight"
            }


def test_a_shortened_twin_says_every_reduction_and_has_other_recipes() -> None:
    full, tiny = (
        standing(1, of_suite("e2sad-mnist"), Execution()),
        standing(1, of_suite("e2sad-mnist-tiny"), Execution()),
    )
    said = "\n".join(tiny.reductions)
    assert "MNIST (mini)" in said
    assert "iterations: 2 instead of 30000 (all models)" in said
    assert "batch_size: 16 instead of 256" in said
    assert "training steps: 2 instead of 30 (IFGSM .3 H, IFGSM .3 S)" in said
    assert "the first 20 instead of 10,000" in said
    assert set(full.models) == set(tiny.models)
    recipes = {model.train.recipe for model in full.models.values()}
    assert not recipes & {model.train.recipe for model in tiny.models.values()}


def test_other_readings_of_the_second_step_do_not_stand_for_e2sad() -> None:
    found = standing(1, of_suite("second-step"), Execution())
    assert found.models["e2SAD S"].label == "entropy"
    assert set(found.models) == {"e2SAD S"}


def test_executions_are_other_recipes() -> None:
    cpu, cuda = (standing(1, of_suite("quickstart"), Execution(device=device)) for device in ("cpu", "cuda"))
    assert cpu.models["Natural H"].train.recipe != cuda.models["Natural H"].train.recipe


def test_suites_on_other_images_do_not_fit() -> None:
    assert fits(1, "e2sad-mnist")
    assert not fits(3, "e2sad-mnist")
    with pytest.raises(SpecError, match="on other images than table 3"):
        standing(3, of_suite("e2sad-mnist"), Execution())


@pytest.mark.parametrize("suite", [name for name in suites() if name.startswith("figures")])
def test_a_suite_that_evaluates_nothing_does_not_fit(suite: str) -> None:
    assert not any(fits(number, suite) for number in SIZES)
    with pytest.raises(SpecError, match=f"the suite {suite} is no benchmark"):
        standing(1, of_suite(suite), Execution())


def test_every_reading_of_svhns_normalisation_stands_beside_table_3() -> None:
    """Also that in which 24/255 is 12/255 in pixel units, which it says."""
    names = ("e2sad-svhn", "e2sad-svhn-per-image", "e2sad-svhn-normalised")
    pixel, image, network = (standing(3, of_suite(name), Execution()) for name in names)
    for found in (pixel, image, network):
        assert set(found.models) == set(MODELS["svhn"])
        assert {row for row, _ in found.attacks} == set(ATTACKS["svhn"])
    assert pixel.reductions == ()
    assert image.reductions == ("network: svhn_cnn input=per-image (all models)",)
    assert "maps them to [-1, 1]" in pixel.choices[-1]
    assert "standardises each by itself" in image.choices[-1]
    assert [line.partition(":")[0] for line in network.reductions] == ["radii"]
    attack = network.attacks["FGSM 24/255", "label"]
    assert attack.model_dump(mode="json")["eps"] == "12/255"


def test_a_suite_on_another_dataset_says_which() -> None:
    found = standing(3, of_suite("e2sad-svhn", "synth-digits"), Execution())
    assert found.dataset == "synth-digits"
    assert found.reductions == ("dataset: synth-digits, 73,257 training images, instead of SVHN",)
    assert set(found.models) == set(MODELS["svhn"])
    assert found.source.command == "gauntlet submit --suite e2sad-svhn --dataset synth-digits --wait"
    assert of_suite("e2sad-svhn", "svhn") == of_suite("e2sad-svhn")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"kind": "train", "defense": {"kind": "natural"}}, "job 7 is no benchmark"),
        ({"defense": {"kind": "natural"}, "dataset": "svhn"}, "job 7 is on other images"),
        ({"defense": {"kind": "fgsm_adv", "eps": 0.2}}, "job 7 has no model of table 1"),
        ({"defense": {"kind": "forgotten"}}, "job 7 was made by another version"),
    ],
)
def test_a_job_of_which_nothing_stands_there_says_why(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        standing(1, of_job(7, None, spec), Execution())


def test_a_job_stands_there_by_its_models() -> None:
    found = standing(1, of_job(7, None, {"defense": {"kind": "natural"}, "limit": 10}), Execution())
    assert (set(found.models), found.images) == ({"Natural H"}, 10)
    assert found.source.command == "gauntlet watch 7"


class TestPrediction:
    def test_one_more_run(self) -> None:
        low, high = prediction_interval([0.70, 0.72, 0.74]) or (0, 0)
        half = t_quantile(2, 0.95) * 0.02 * (4 / 3) ** 0.5
        assert (low, high) == pytest.approx((0.72 - half, 0.72 + half))

    def test_fewer_images_widen_it(self) -> None:
        narrow, wide = prediction_interval([0.5, 0.6]), prediction_interval([0.5, 0.6], variance=0.01)
        assert narrow and wide and wide[0] < narrow[0] < narrow[1] < wide[1]

    @pytest.mark.parametrize("values", [[], [0.5]])
    def test_too_few_seeds_predict_nothing(self, values: list[float]) -> None:
        assert prediction_interval(values) is None

    def test_what_is_no_share_is_refused(self) -> None:
        with pytest.raises(ValueError, match="finite"):
            prediction_interval([0.5, float("nan")])
        with pytest.raises(ValueError, match="variance"):
            prediction_interval([0.5, 0.6], variance=-1)
