"""Figures: what the small stages find, and that a picture is a function of its values."""

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from base64 import b64decode
from functools import cache
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

from core.attacks.ifgsm import IFGSM
from core.drawing import COLOURS, forms, styled
from core.evaluation import craft, predict
from core.figures import FIGURES
from core.figures.base import Part
from core.figures.curves import CurvesFigure
from core.figures.illustration import IllustrationFigure, cross_entropy, loss
from core.figures.samples import SamplesFigure
from core.stages.draw import MEDIA, VALUES, Draw
from core.stages.surface import Surface
from core.stages.train import loaded
from core.suites import expand_suite
from core.surface_page import page
from core.surfaces import two_steps
from tests.core.test_plan import only_train, planned
from tests.core.test_portions import memory_for
from tests.worker.calm import EXECUTION, Calm, calm

ROOT = Path(__file__).parents[2]


@cache
def tiny() -> Calm:
    """Return the suite of every kind of figure, computed."""
    return calm(expand_suite({"suite": "figures-tiny"}))


def drawn() -> list[tuple[str, Draw]]:
    return [(key, stage.spec) for key, stage in tiny().plan.stages.items() if isinstance(stage.spec, Draw)]


def values_of(kind: str) -> dict[str, Any]:
    key = next(key for key, spec in drawn() if spec.figure.kind == kind)
    return json.loads(tiny().outcomes[key].artifacts[VALUES][1])


def of_kind(kind: str) -> tuple[Any, Any]:
    """Return the first stage of that kind and its outcome."""
    key, stage = next((key, stage) for key, stage in tiny().plan.stages.items() if stage.spec.kind == kind)
    return stage.spec, tiny().outcomes[key]


def test_the_tiny_suite_draws_every_kind_there_is():
    assert {spec.figure.kind for _, spec in drawn()} == set(FIGURES)


class TestPictures:
    """PNG, SVG and page, of every kind of figure."""

    @pytest.mark.parametrize("kind", FIGURES)
    def test_a_figure_has_its_values_and_both_pictures(self, kind: str):
        for key, spec in drawn():
            if spec.figure.kind == kind:
                outcome = tiny().outcomes[key]
                surface = {"html"} if FIGURES[kind].surface else set()
                assert set(outcome.artifacts) == {VALUES, "png", "svg"} | surface
                assert {name: media for name, (media, _) in outcome.artifacts.items()}.items() <= MEDIA.items()
                width, height = Image.open(BytesIO(outcome.artifacts["png"][1])).size
                assert 600 < width < 3000
                assert 300 < height < 3000
                assert ET.fromstring(outcome.artifacts["svg"][1]).tag.endswith("svg")
                assert outcome.payload["caption"]

    @pytest.mark.parametrize("kind", FIGURES)
    def test_the_same_values_give_the_same_bytes(self, kind: str):
        key = next(key for key, spec in drawn() if spec.figure.kind == kind)
        with styled():
            again = forms(FIGURES[kind]().draw(values_of(kind)))
        expected = {name: tiny().outcomes[key].artifacts[name][1] for name in again}
        assert again == expected
        assert b"<dc:date>" not in again["svg"]

    def test_also_in_another_process_with_another_configuration(self, tmp_path: Path):
        (tmp_path / "matplotlibrc").write_text("axes.facecolor: red\nfont.size: 20\nsvg.hashsalt: other\n")
        program = (
            "import sys, json, hashlib; from core.drawing import styled, forms; from core.figures import FIGURES\n"
            "with styled(): found = forms(FIGURES['surfaces']().draw(json.load(sys.stdin)))\n"
            "print(hashlib.sha256(found['svg']).hexdigest())"
        )
        found = subprocess.run(
            [sys.executable, "-c", program], input=json.dumps(values_of("surfaces")), capture_output=True, text=True,
            cwd=ROOT, env={**os.environ, "PYTHONPATH": ".", "MPLCONFIGDIR": str(tmp_path), "PYTHONHASHSEED": "7"},
            check=True,
        )  # fmt: skip
        key = next(key for key, spec in drawn() if spec.figure.kind == "surfaces")
        assert found.stdout.strip() == tiny().artifacts(key)["svg"]

    @pytest.mark.parametrize("kind", [kind for kind in FIGURES if kind != "samples"])
    def test_every_plane_axis_is_labelled(self, kind: str):
        with styled():
            picture = FIGURES[kind]().draw(values_of(kind))
            for axes in picture.axes:
                shared = axes.get_shared_y_axes().get_siblings(axes) + axes.get_shared_x_axes().get_siblings(axes)
                for name in ("x", "y"):
                    if axes.get_label() != "<colorbar>":
                        assert any(getattr(one, f"get_{name}label")() for one in shared), (kind, name)

    def test_labels_are_words_not_mathematics_and_not_markup(self):
        found = values_of("surfaces")
        found["models"][0]["label"] = "$x_1$ --></script><script>alert(1)</script> & $\\frac{"
        with styled():
            written = forms(FIGURES["surfaces"]().draw(found))["svg"]
        assert "script" not in {element.tag.rpartition("}")[2] for element in ET.fromstring(written).iter()}
        assert page(found).count("</script>") == 1

    def test_colours_differ(self):
        assert len(set(COLOURS)) == len(COLOURS) == 8


class Links(HTMLParser):
    """Collects whatever a page could load."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "srcset", "data", "action")]


class TestPage:
    """The interactive page is whole in itself."""

    def test_it_loads_nothing_and_says_so(self):
        text = page(values_of("path"))
        links = Links()
        links.feed(text)
        assert links.found == []
        assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttp|import\(", text)
        assert "default-src 'none'" in text
        assert len(text) < 200_000

    def test_its_values_are_the_figures(self):
        text = page(values_of("path"))
        assert json.loads(text.split("const figure = ")[1].split(";\n")[0]) == values_of("path")


class TestValues:
    """What the pictures show is what the models do."""

    def test_a_surface_stage_starts_at_the_clean_loss(self):
        spec, outcome = of_kind("surface")
        train, model, *_ = loaded(tiny(), spec.target, EXECUTION)
        data = tiny().dataset(train.dataset)
        logits = model(data.test_images[:20].float() / 255)
        expected = torch.nn.functional.cross_entropy(logits, data.test_labels[:20]).item()
        assert outcome.payload["clean_loss"] == pytest.approx(expected, rel=1e-5)
        assert outcome.payload["n"] == 20

    def test_ticks_are_exact(self):
        ticks = Surface(target="0" * 64, direction=IFGSM(), points=21).ticks
        assert (ticks[0], ticks[15], ticks[20], len(ticks)) == (0.0, 0.3, 0.4, 21)

    def test_a_sweep_counts_what_craft_and_predict_give(self):
        spec, outcome = of_kind("sweep")
        train, model, *_ = loaded(tiny(), spec.target, EXECUTION)
        data = tiny().dataset(train.dataset)
        images, labels = data.test_images[:20], data.test_labels[:20]
        for eps, correct in zip(outcome.payload["eps"], outcome.payload["n_correct"], strict=True):
            shown = images if eps == "0" else craft(IFGSM(eps=eps, steps=2), model, images, labels, EXECUTION)
            assert int((predict(model, shown, EXECUTION) == labels).sum()) == correct
        assert outcome.payload["eps"] == ["0", "0.2", "0.4"]

    def test_samples_are_one_image_of_every_class_and_both_steps(self):
        spec, outcome = of_kind("samples")
        _, model, *_ = loaded(tiny(), spec.target, EXECUTION)
        images = load(outcome.artifacts["images"][1])
        labels = torch.tensor(outcome.payload["labels"])
        assert labels.tolist() == list(range(10))
        first, second = two_steps(spec.path, model, images["clean"], labels, torch.tensor(outcome.payload["positions"]))
        assert torch.equal(images["first"], first)
        assert torch.equal(images["second"], second)
        assert (images["first"] - images["clean"]).abs().max() <= 0.3 + 1e-6
        assert (images["second"] - images["first"]).abs().max() <= 0.1 + 1e-6
        for name, predicted in outcome.payload["predictions"].items():
            assert predict(model, images[name], EXECUTION).tolist() == predicted

    @pytest.mark.parametrize("kind", ["samples", "surface"])
    def test_where_memory_runs_out_fewer_images_are_looked_at_together(self, kind: str):
        spec, outcome = of_kind(kind)
        with memory_for(4):
            found = spec.run(tiny())
        assert found.environment["micro_batch"] <= 4
        for name, value in outcome.payload.items():
            close = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            assert found.payload[name] == close, name

    def test_curves_are_the_trainings_own(self):
        models = values_of("curves")["models"]
        assert [model["label"] for model in models] == ["Natural H", "e2SAD S"]
        assert set(models[0]["losses"]) == {"clean"}
        assert set(models[1]["losses"]) == {"clean", "adversarial", "dissimilarity"}
        assert models[1]["losses"]["clean"]["iteration"] == [1, 2]

    def test_curves_say_what_every_loss_is_of(self):
        def losses(kind: str, *parts: str) -> set[str]:
            spec = only_train({"defense": {"kind": kind}})
            curve = json.dumps([{"iteration": 1, "loss": 2.0, **dict.fromkeys(parts, 1.0)}]).encode()
            found = CurvesFigure().values([Part("a", spec, {}, lambda _: curve)])
            with styled():
                assert len(CurvesFigure().draw(found).axes) == max(1, len(parts))
            return set(found["models"][0]["losses"])

        assert losses("natural") == {"clean"}
        assert losses("pgd_minmax") == losses("strong_adversary") == {"adversarial"}
        assert losses("fgsm_adv") == {"loss"}, "of a defense that should have said more"
        assert losses("hamm_minimax", "clean", "adversarial", "sensitivity") == {"clean", "adversarial", "sensitivity"}

    @pytest.mark.parametrize("reach", [0.0, 0.5])
    def test_pixels_outside_the_box_are_drawn_as_its_ends_and_the_caption_says_so(self, reach: float):
        stage, outcome = of_kind("samples")
        images = load(outcome.artifacts["images"][1])
        images["second"] = images["second"] * (1 + 2 * reach) - reach
        found = SamplesFigure().values([Part("a", stage, outcome.payload, lambda _: save(images))])
        pixels = [np.frombuffer(b64decode(image), np.uint8) for image in found["models"][0]["rows"][2]["pixels"]]
        assert np.array_equal(pixels, (images["second"].clamp(0, 1) * 255).round().byte().flatten(1).numpy())
        assert ("drawn as its ends: a." in found["caption"]) == (reach > 0)

    def test_a_label_changes_the_picture_and_not_the_surface(self):
        spec = expand_suite({"suite": "figures-tiny"})
        spec["defenses"] = [{**spec["defenses"][0], "name": "plain"}, spec["defenses"][1]]
        renamed = planned(spec, execution=EXECUTION)
        kept = set(renamed.stages) & set(tiny().plan.stages)
        assert {s.spec.kind for k, s in renamed.stages.items() if k not in kept} == {"draw"}
        assert {s.spec.kind for k, s in renamed.stages.items() if k in kept} >= {"train", "surface", "sweep"}


class TestIllustration:
    """The paper's Figure 2: the loss misleads, the dissimilarity does not."""

    def test_it_shows_what_the_paper_says(self):
        points = IllustrationFigure().values([])["points"]
        assert [points[name]["predicted"] for name in ("clean", "first", "by_loss", "by_dissimilarity")] == [1, 1, 1, 2]
        assert max(points, key=lambda name: points[name]["loss"]) == "by_loss"
        assert points["clean"]["loss"] < points["first"]["loss"], "the first step climbs the loss"

    def test_as_printed_there_is_no_slope_at_the_first_example(self):
        first = IllustrationFigure().values([])["points"]["first"]["input"]
        slope = (cross_entropy(first, first + 1e-5) - cross_entropy(first, first - 1e-5)) / 2e-5
        exchanged = (cross_entropy(first + 1e-5, first) - cross_entropy(first - 1e-5, first)) / 2e-5
        assert abs(slope) < 1e-8
        assert exchanged < -1e-3
        assert loss(first + 1e-5) > loss(first)

    def test_its_points_are_those_of_this_version(self):
        points = IllustrationFigure().values([])["points"]
        losses = {name: round(point["loss"], 4) for name, point in points.items()}
        assert IllustrationFigure.version == 1
        assert losses == {"clean": 0.5258, "first": 0.5297, "by_loss": 0.9208, "by_dissimilarity": 0.8279}
