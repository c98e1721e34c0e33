"""Hamm's minimax: eq. 5 by hand on a linear model, finite differences, its readings apart by what they say."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from core.attacks.fgsm import FGSM
from core.defenses.base import Batch
from core.defenses.fgsm_adv import FgsmTraining
from core.defenses.hamm_minimax import HammMinimax
from core.passes import Passes
from tests.core import naive
from tests.core.counting import CountPasses
from tests.core.small import tiny_model
from tests.core.test_defenses import batch_of, split_gradients

READINGS = [
    HammMinimax(norm=norm, power=power, reduction=reduction, constant=0.02)
    for norm in ("l1", "l2", "linf")
    for power in (1, 2)
    for reduction in ("batch-mean", "batch-sum", "example-mean", "example-sum")
]
GOLDEN = {
    "defenses/hamm_minimax@1": {
        "losses": [1.4192981301865655, 1.398073240039384, 1.406612779037745, 0.00012395734872101754],
        "0.weight": [1.2442681416250008, -0.8366554124685721, -0.70945422793638],
        "0.bias": [-0.30011138550678246, -0.36086155826097527, 0.036503880772131674],
        "3.weight": [0.049106436501742845, 0.2307102062279599, -0.25169028380045677],
        "3.bias": [-0.48257885503220593, 0.04843507260199168, -0.08283629020547763],
        "7.weight": [-2.264669442112046, 1.25145694832171, -2.130149894951233],
        "7.bias": [0.10297163546292307, 0.05248607868862698, -0.04961636802562394],
        "9.weight": [-1.1258971962776483, -1.9227439230256786, 2.030310799224782],
        "9.bias": [-0.3791383781450433, -0.27225772139527266, 0.33490787914843756],
    },
    "defenses/hamm_minimax@1 norm=l1": {
        "losses": [1.4197974935433122, 1.3998329900155706, 1.4435391093807355, 0.08930079488517038],
        "0.weight": [1.1977372444821488, -0.8073245161081221, -0.667801023098711],
        "0.bias": [-0.30197892239061846, -0.3622622596443551, 0.03460302457305811],
        "3.weight": [0.05688535076942158, 0.19745196421159708, -0.28757919450230407],
        "3.bias": [-0.48250974990944795, 0.04891593803199128, -0.0828881834930901],
        "7.weight": [-2.2210303416296755, 1.2634002183319935, -2.1317735888015243],
        "7.bias": [0.10576276373747315, 0.0510662929028623, -0.05103703896699216],
        "9.weight": [-1.1193458048760196, -1.9256269415431215, 2.0192359586999657],
        "9.bias": [-0.379429058699283, -0.27252497117275537, 0.33497577146144847],
    },
    "defenses/hamm_minimax@1 norm=linf": {
        "losses": [1.4193024005999968, 1.3980726967510058, 1.4065653071207946, 1.8220754806432274e-06],
        "0.weight": [1.2437774074248653, -0.8335820539038674, -0.7102253844150019],
        "0.bias": [-0.3001113207110045, -0.3608615796005533, 0.03650409536528684],
        "3.weight": [0.0491607111571406, 0.2307030589493438, -0.2515879666536489],
        "3.bias": [-0.4825789119601521, 0.04843449825611404, -0.0828362603847211],
        "7.weight": [-2.264694996336506, 1.2514449614108714, -2.1301587607753514],
        "7.bias": [0.10297177888936537, 0.05248634921833334, -0.049616262068417266],
        "9.weight": [-1.125784862519888, -1.9227113913753766, 2.030380210584246],
        "9.bias": [-0.37913799010289095, -0.2722574539617692, 0.3349077783455272],
    },
    "defenses/hamm_minimax@1 reduction=batch-sum": {
        "losses": [1.4190029076308481, 1.3981794814923745, 1.409790993145687, 0.008205352994807352],
        "0.weight": [1.2451731582831573, -0.8395419952510308, -0.7086769044713563],
        "0.bias": [-0.2998669368069564, -0.3606662747112339, 0.036815744987763716],
        "3.weight": [0.04878399226113794, 0.2316634476148644, -0.25624278599339245],
        "3.bias": [-0.4823146197545179, 0.048776845949223296, -0.08266845055895383],
        "7.weight": [-2.255258433354463, 1.2483353865773772, -2.1184795833974217],
        "7.bias": [0.10572886063521422, 0.051200363612286, -0.051081689773537026],
        "9.weight": [-1.1306343810120387, -1.9178044974556303, 2.0239911392656564],
        "9.bias": [-0.3791555445288445, -0.2722724648357283, 0.33491193253310214],
    },
    "defenses/hamm_minimax@1 reduction=example-mean": {
        "losses": [1.4192981301865655, 1.398073240039384, 1.406612779037745, 0.00012395734872101748],
        "0.weight": [1.2442681416250008, -0.8366554124685721, -0.70945422793638],
        "0.bias": [-0.30011138550678246, -0.36086155826097527, 0.036503880772131674],
        "3.weight": [0.049106436501742845, 0.2307102062279599, -0.25169028380045677],
        "3.bias": [-0.48257885503220593, 0.04843507260199168, -0.08283629020547763],
        "7.weight": [-2.264669442112046, 1.25145694832171, -2.130149894951233],
        "7.bias": [0.10297163546292307, 0.05248607868862698, -0.04961636802562394],
        "9.weight": [-1.1258971962776483, -1.9227439230256786, 2.030310799224782],
        "9.bias": [-0.3791383781450433, -0.27225772139527266, 0.33490787914843756],
    },
    "defenses/hamm_minimax@1 reduction=example-sum": {
        "losses": [1.4189563454736644, 1.3980675549232406, 1.406839711053625, 0.0010415997755376142],
        "0.weight": [1.2456430144688875, -0.8389380000827624, -0.7138891014451741],
        "0.bias": [-0.30000025187250035, -0.3607944767623576, 0.03667558912364845],
        "3.weight": [0.05545065462978771, 0.2284493492993696, -0.25145890536444715],
        "3.bias": [-0.48231209608658054, 0.04878946732363617, -0.08264880991843045],
        "7.weight": [-2.258920626878101, 1.2502544735870698, -2.1264368048448246],
        "7.bias": [0.10575550411472277, 0.051205725244399536, -0.05108840699330336],
        "9.weight": [-1.1241757691591516, -1.9203702769195328, 2.0283832521437906],
        "9.bias": [-0.3791394698225376, -0.2722587575054857, 0.33490802159321464],
    },
    "defenses/hamm_minimax@1 clip=False": {
        "losses": [1.4210266513276242, 1.3979647545758165, 1.4072366847434843, 0.0001179286673614672],
        "0.weight": [1.239505975932865, -0.8268316210925726, -0.7097684872362081],
        "0.bias": [-0.30176239264037524, -0.3625538414892273, 0.03444019163699706],
        "3.weight": [0.05013482893501564, 0.23039994939715802, -0.26867560144351843],
        "3.bias": [-0.4821246698244764, 0.0487873797784564, -0.08284024321408742],
        "7.weight": [-2.2731327111526083, 1.2393947115962334, -2.127661158576096],
        "7.bias": [0.10351071463985902, 0.05240088847457064, -0.048874380473075296],
        "9.weight": [-1.1246579319876937, -1.9225584959234214, 2.039895770105521],
        "9.bias": [-0.37915823948744926, -0.2722609626026951, 0.3349165401696469],
    },
    "defenses/hamm_minimax@1 alpha=0.0": {
        "losses": [1.4162604672268926, 1.3992522938599645, 1.4163901865799573, 0.0001297193530646232],
        "0.weight": [1.236498393792494, -0.8230008209797867, -0.7327002305684563],
        "0.bias": [-0.3114106846469579, -0.3704547883114164, 0.03351897561287238],
        "3.weight": [0.02752611384213055, 0.18503417716070641, -0.24414308860942813],
        "3.bias": [-0.48470675347325415, 0.049035109257337166, -0.08244078221814011],
        "7.weight": [-2.2338104597429016, 1.227829598572669, -2.111455705184947],
        "7.bias": [0.10242629248506718, 0.052208471976100124, -0.05032521657236794],
        "9.weight": [-1.1228726778710971, -1.9170969529281472, 2.0247937430714105],
        "9.bias": [-0.3791646328844863, -0.2722403593797683, 0.3349155935891083],
    },
    "defenses/hamm_minimax@1 alpha=1.0": {
        "losses": [1.3973925642807097, 1.3973925642807097],
        "0.weight": [1.2606130520895216, -0.8537216881151585, -0.7173520244799468],
        "0.bias": [-0.30110243271330817, -0.36190465360436486, 0.0366960458448488],
        "3.weight": [0.06155713853438227, 0.23267674063564914, -0.2548948137320195],
        "3.bias": [-0.4815982833882829, 0.04789171621079848, -0.08242390610727517],
        "7.weight": [-2.2885582479041515, 1.295212918589142, -2.1101149661137275],
        "7.bias": [0.1060868933816346, 0.05011655703909748, -0.050225524243482755],
        "9.weight": [-1.1141601583356917, -1.9363463570660757, 2.036378376526914],
        "9.bias": [-0.3791291663450831, -0.2722812277482804, 0.3349051996131521],
    },
    "defenses/hamm_minimax@1 power=1": {
        "losses": [1.4183748744757678, 1.3981460354001527, 1.4111727064878066, 0.012337838643519521],
        "0.weight": [1.244037233107132, -0.8433411904617434, -0.7107745114641781],
        "0.bias": [-0.29973328990225356, -0.3605375212702339, 0.037107477626404275],
        "3.weight": [0.05392148878887548, 0.2356772667065492, -0.2530078915635542],
        "3.bias": [-0.48258704096327, 0.0484486042295446, -0.08283493602701901],
        "7.weight": [-2.262822772404183, 1.2505922618625025, -2.1220677892093667],
        "7.bias": [0.10296922217021322, 0.052475662562169456, -0.04961937590608276],
        "9.weight": [-1.1279855467508546, -1.9222029377865462, 2.0253622628947907],
        "9.bias": [-0.3791570274446511, -0.27227060225579025, 0.3349129319076646],
    },
}


@pytest.mark.parametrize("defense", [*READINGS, HammMinimax(clip=False), HammMinimax(alpha=0)], ids=lambda d: d.label())
def test_every_reading_equals_its_naive_form(defense):
    model = tiny_model()
    batch = batch_of(defense, model)
    found = defense.gradients(batch)
    loss = naive.hamm_minimax(model, defense, batch.images, batch.targets, batch.indices, batch.seed, batch.iteration)
    expected = torch.autograd.grad(loss, batch.params)
    assert found.losses["loss"].item() == pytest.approx(loss.item(), rel=1e-12)
    for gradient, other in zip(found.weights, expected, strict=True):
        assert torch.allclose(gradient, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("defense", [*READINGS, HammMinimax(alpha=1, power=1)], ids=lambda d: d.label())
def test_it_is_additive_where_the_gradients_of_parts_add_up(defense):
    batch = batch_of(defense, tiny_model())
    whole, parts = defense.gradients(batch).weights, split_gradients(defense, batch)
    same = all(torch.allclose(one, other, rtol=1e-9, atol=1e-9) for one, other in zip(whole, parts, strict=True))
    assert defense.additive == same


@pytest.mark.parametrize("defense", READINGS, ids=lambda d: d.label())
def test_the_gradient_of_the_whole_loss_agrees_with_finite_differences(defense):
    """Of eq. 3 with eq. 5, x_adv held where it is: the largest weight gradient of every layer, in float64."""
    model = tiny_model()
    batch = batch_of(defense, model, n=3)
    found = defense.gradients(batch).weights
    adversarial = FGSM(eps=defense.eps, loss="training").run(batch.images, batch.oracle())

    def loss() -> float:
        penalised, _ = defense.adversarial_loss(batch, adversarial)
        return (0.6 * batch.losses(model(batch.images)).mean() + 0.4 * penalised).item()

    for weight, gradient in zip(batch.params, found, strict=True):
        position = int(gradient.abs().argmax())
        flat, nudge = weight.data.view(-1), 1e-6
        flat[position] += nudge
        above = loss()
        flat[position] -= 2 * nudge
        below = loss()
        flat[position] += nudge
        assert (above - below) / (2 * nudge) == pytest.approx(gradient.view(-1)[position].item(), rel=1e-5)


class TestByHand:
    """z = w x of two classes, one pixel: J' = (p_1 - t_1) (w_1 - w_0), so that the penalty has a formula."""

    gap = 3.0
    x = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)

    def batch(self) -> Batch:
        layer = nn.Linear(1, 2, bias=False).double()
        layer.weight.data = torch.tensor([[0.0], [self.gap]], dtype=torch.float64)
        return Batch(
            model=nn.Sequential(nn.Flatten(), layer), params=[layer.weight], images=self.x.view(3, 1, 1, 1),
            labels=torch.zeros(3, dtype=torch.int64), targets=torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64),
            indices=torch.arange(3), iteration=0, seed=0,
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("reduction", "power", "size"),
        [
            ("batch-mean", 2, lambda g: (g**2).sum() / 3),
            ("batch-sum", 2, lambda g: 3 * (g**2).sum()),
            ("example-mean", 2, lambda g: (g**2).mean()),
            ("example-sum", 1, lambda g: g.abs().sum()),
            ("batch-mean", 1, lambda g: (g**2).sum().sqrt()),
        ],
    )
    def test_the_penalty(self, reduction, power, size):
        found = HammMinimax(eps="0.1", constant=0.7, power=power, reduction=reduction, alpha=0).gradients(self.batch())
        adversarial = (self.x + 0.1).clamp(max=1)
        share = torch.sigmoid(self.gap * adversarial)
        loss = -torch.log(1 - share).mean()
        assert found.losses["adversarial"].item() == pytest.approx(loss.item(), rel=1e-12)
        assert found.losses["sensitivity"].item() == pytest.approx(0.07 * size(share * self.gap).item(), rel=1e-12)
        assert found.losses["loss"].item() == pytest.approx(
            (loss + 0.07 * size(share * self.gap)).item(), rel=1e-12
        )  # fmt: skip

    def test_with_the_defaults_batches_of_any_size_weigh_the_penalty_alike(self):
        one, twice = self.batch(), self.batch()
        twice = Batch(**{**twice.__dict__, **{
            name: torch.cat([getattr(twice, name)] * 2) for name in ("images", "labels", "targets", "indices")
        }})  # fmt: skip
        first, second = (HammMinimax().gradients(batch).losses["sensitivity"].item() for batch in (one, twice))
        assert first == pytest.approx(second, rel=1e-12)


def test_readings_lie_as_far_apart_as_the_batch_is_large():
    def size(reduction: str) -> float:
        defense = HammMinimax(norm="l2", power=2, reduction=reduction)
        return defense.gradients(batch_of(defense, tiny_model())).losses["sensitivity"].item()

    assert size("batch-sum") == pytest.approx(8**2 * size("batch-mean"))
    assert size("example-sum") == pytest.approx(8 * size("example-mean"))


def test_a_sure_model_has_no_nan():
    """In float32 the gradient of a confident example is exactly 0, where a norm has no derivative."""
    model = tiny_model(dtype=torch.float32)
    with torch.no_grad():
        model[-1].weight.zero_()
        model[-1].bias.copy_(torch.tensor([400.0, 0.0, 0.0, 0.0]))
    for norm in ("l1", "l2", "linf"):
        for power in (1, 2):
            defense = HammMinimax(norm=norm, power=power, label_smoothing=0)
            batch = batch_of(defense, model)
            batch = Batch(**{**batch.__dict__, "images": batch.images.float(), "targets": batch.targets.float()})
            assert all(bool(weight.isfinite().all()) for weight in defense.gradients(batch).weights)


def test_it_costs_three_units_more_than_fgsm_training():
    """Its gradient at x_adv, a pass up the network, and the weights' half of a backward pass."""
    assert HammMinimax().passes() == Passes(forward=3, input_backward=1, full_backward=2.5)
    assert HammMinimax().passes().units == FgsmTraining().passes().units + 3
    with CountPasses(8) as counted:
        HammMinimax().gradients(batch_of(HammMinimax(), tiny_model()))
    assert counted.passes == HammMinimax().passes()
    assert counted.first_layer == 2, "one for the attack, one for the penalty"


@pytest.mark.parametrize(
    "fields", [{"constant": 0}, {"constant": -1}, {"norm": "l3"}, {"power": 3}, {"power": True}, {"reduction": "mean"}]
)
def test_bad_specs_are_refused(fields):
    with pytest.raises(ValidationError):
        HammMinimax(**fields)
