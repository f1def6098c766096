import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import odd_networks as odd
from sfda.errors import UserError
from sfda.networks.assemble import probed_segmenter
from sfda.networks.build import build_network
from sfda.networks.outputs import Form
from sfda.networks.probe import probe
from sfda.networks.probe_sizes import MULTIPLES, one_stride, sizes_of
from sfda.networks.segmenter import BACKBONE, HEAD_INPUT

K = 5
IMAGES = torch.rand(2, 3, 45, 70, generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def head_of(module: nn.Module, num_outputs: int = K):
    found = probe(module, num_outputs)
    return found.head, found.align_corners


def test_the_head_is_the_module_that_gives_the_logits_not_the_last_convolution():
    assert list(dict(odd.Merged(K).named_modules()))[-1] == "merge"
    assert head_of(odd.Merged(K)) == ("last", False)
    assert head_of(odd.Aligned(K)) == ("last", True)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (nn.Conv2d(8, K, 1), "top"),
        (nn.Sequential(nn.Dropout(0.5), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, K, 1)), "top.3"),
        (nn.Sequential(nn.Conv2d(8, K, 1), nn.Upsample(scale_factor=4, mode="bilinear"), nn.Identity()), "top.0"),
        (nn.ConvTranspose2d(8, K, 4, stride=4), "top"),
        (odd.Pyramid(K), "top"),
        (nn.Sequential(nn.Conv2d(8, K, 1), nn.BatchNorm2d(K)), "top.1"),
    ],
    ids=["convolution", "sequence", "upsampled", "transposed", "sum of branches", "norm at the end"],
)
def test_heads_of_many_kinds(head, name):
    assert head_of(odd.Then(head))[0] == name
    nn.init.zeros_(next(iter(head.parameters())))  # a head that starts with zeros is found too
    assert head_of(odd.Then(head))[0] == name


def test_no_head_where_the_logits_are_no_modules_output():
    assert head_of(odd.headless(K))[0] is None
    twice = odd.Then(nn.Conv2d(8, K, 1), lambda logits, _: F.interpolate(logits, scale_factor=2, mode="bilinear"))
    assert head_of(twice)[0] == "top"
    twice.after = lambda logits, _: F.interpolate(
        F.interpolate(logits, scale_factor=2, mode="bilinear"), scale_factor=2, mode="bilinear"
    )
    assert head_of(twice)[0] is None
    shared = odd.Then(nn.Conv2d(8, K, 1))
    shared.forward = lambda images: shared.top(shared.encoder(images) * 0) * 0 + shared.top(shared.encoder(images))
    assert head_of(shared)[0] is None


@pytest.mark.parametrize(
    ("arrange", "name"),
    [
        (lambda main, aux: (aux, main), "1"),
        (lambda main, aux: (main, aux), "0"),
        (lambda main, aux: [aux, main, aux.mean()], "1"),
        (lambda main, aux: {"aux": aux, "logits": main}, "logits"),
        (lambda main, aux: {"deep": [aux, {"main": main}]}, "deep.1.main"),
        (lambda main, aux: (main[:, :2], main), "1"),
    ],
    ids=["aux first", "main first", "list", "dict", "nest", "other channels"],
)
@pytest.mark.parametrize("in_training", [False, True], ids=["both modes", "train mode"])
def test_of_several_outputs_the_logits_are_those_that_depend_on_most(arrange, name, in_training):
    found = probe(odd.ManyMaps(K, arrange, in_training), K)
    assert {mode: form.name for (mode, _), form in found.forms.items()} == {
        False: "" if in_training else name,
        True: name,
    }
    assert found.head == "main"


def test_the_form_of_either_mode_is_taken_in_it(monkeypatch):
    bare = odd.ManyMaps(K, lambda main, aux: (aux, main), in_training=True)
    monkeypatch.setattr(odd, "merged", lambda _: bare)
    network = build_network("odd_networks.merged", K)
    for mode in (True, False):
        network.train(mode)
        # Dropout-free, so the two passes of train mode normalise by the same batch.
        main = bare(IMAGES)[1] if mode else bare(IMAGES)
        assert torch.equal(network(IMAGES), F.interpolate(main, (45, 70), mode="bilinear"))


@pytest.mark.parametrize(
    ("module", "multiple"),
    [
        (odd.Merged(K), 1),
        (odd.Needs32(K), 32),
        (odd.DropsTheRest(K), 16),
        (nn.Sequential(nn.Conv2d(3, 4, 14, stride=14), nn.Conv2d(4, K, 1)), 14),
        (nn.Sequential(nn.Conv2d(3, 4, 7, stride=8, padding=3), nn.Conv2d(4, K, 1)), 1),
        (nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.Conv2d(4, K, 1)), 2),
    ],
    ids=["any", "32", "16 in silence", "14", "stride 8", "2 in silence"],
)
def test_the_multiple_is_the_smallest_of_which_all_odd_multiples_pass(module, multiple):
    assert probe(module, K).multiple == multiple


def test_tried_sizes_are_odd_multiples():
    for multiple in MULTIPLES:
        sides = [side for size in sizes_of(multiple) for side in size]
        assert all(side % multiple == 0 and side // multiple % 2 == 1 for side in sides)
    assert len({side % 8 for size in sizes_of(1) for side in size}) >= 3
    assert one_stride([(64, 96)], [(9, 13)], 1)  # pooling that rounds up
    assert not one_stride([(67, 91)], [(72, 96)], 1)  # a decoder that gives more than it was given


def test_padding_to_the_multiple_takes_images_of_any_size():
    network = build_network("odd_networks.needs_32", K).eval()
    padded = F.pad(IMAGES, (0, 96 - 70, 0, 64 - 45), mode="replicate")
    assert torch.equal(network(IMAGES), network.network(padded)[..., :45, :70])


def test_a_network_may_hide_what_torch_names_modules():
    """As ESPNet does, whose forward pass goes through a list of that name."""
    network = odd.Merged(K)
    network.modules = list(network.children())
    found = probed_segmenter("espnet", network, K, {})
    assert found.parts()["head"] is network.last
    assert found(IMAGES).shape[-2:] == IMAGES.shape[-2:]


def test_a_network_of_one_size_says_so_and_can_be_told():
    with pytest.raises(
        UserError, match=r"takes no image .*RuntimeError: .*size of tensor.*multiple.*data.init_args.size"
    ):
        build_network("odd_networks.one_size", K)
    assert build_network("odd_networks.one_size", K, options={"multiple": 96}).multiple == 96
    with pytest.raises(UserError, match=r"fails with .*multiple 64: RuntimeError"):
        build_network("odd_networks.one_size", K, options={"multiple": 64})


def test_probabilities_are_told_from_logits():
    assert probe(odd.Merged(K), K).forms[False, ("",)] == Form("", "logits")
    found = probe(odd.SoftmaxInEval(K), K)
    assert found.forms == {(False, ("",)): Form("", "probabilities"), (True, ("",)): Form("", "logits")}


@pytest.mark.parametrize(
    "after",
    [
        lambda logits, _: logits.softmax(1),
        lambda logits, _: logits.sigmoid(),
        lambda logits, images: F.interpolate(logits, images.shape[-2:], mode="bilinear").softmax(1),
        lambda logits, images: F.interpolate(logits, images.shape[-2:], mode="bilinear").sigmoid(),
    ],
    ids=["softmax", "sigmoid", "softmax at image size", "sigmoid at image size"],
)
def test_softmax_gives_probabilities_back(after, monkeypatch):
    bare = odd.Then(nn.Conv2d(8, K, 1), after)
    monkeypatch.setattr(odd, "softmax", lambda _: bare)
    network, images = build_network("odd_networks.softmax", K).eval(), IMAGES[..., :44, :68]
    scores = bare(images)
    expected = scores / scores.sum(1, keepdim=True)
    logits, head_input = network(images, HEAD_INPUT)
    small = expected.shape[-2:] != images.shape[-2:]
    got = network.resize(expected.log(), (44, 68)).softmax(1) if small else expected
    torch.testing.assert_close(logits.softmax(1), got)
    # A sigmoid at image size comes after the resize there, and before it here.
    close = {"atol": 1e-3, "rtol": 1e-2} if network._head_kind == "sigmoid" and not small else {}
    torch.testing.assert_close(network.apply_head(head_input, (44, 68)).softmax(1), got, **close)


def test_a_probability_of_0_stays_finite():
    bare = nn.Sequential(nn.Conv2d(3, K, 1), nn.Hardsigmoid())
    nn.init.constant_(bare[0].bias, -100)
    network = probe(bare, K, {"output_kind": "probabilities"})
    assert network.forms[False, ("",)].kind == "probabilities"


def test_dropped_outputs_are_left_out_of_logits_and_head():
    network = build_network("odd_networks.twenty_outputs", 18, options={"drop_outputs": [3, 19]}).eval()
    bare = network.network
    kept = [k for k in range(20) if k not in (3, 19)]
    logits, head_input = network(IMAGES, HEAD_INPUT)
    assert torch.equal(logits, bare(IMAGES)[:, kept])
    torch.testing.assert_close(network.apply_head(head_input, (45, 70)), logits)
    assert "20 outputs (3, 19 are dropped)" in network.description
    assert set(network.state_dict()) == {"mean", "std"} | {f"network.{key}" for key in bare.state_dict()}


@pytest.mark.parametrize("dropped", [[19, 19], [20], [-1]])
def test_outputs_that_cannot_be_dropped(dropped):
    with pytest.raises(UserError, match=r"drop_outputs .*different numbers from 0 to"):
        build_network("odd_networks.twenty_outputs", 20 - len(dropped), options={"drop_outputs": dropped})


def test_another_number_of_outputs_says_what_to_write():
    with pytest.raises(
        UserError, match=r"gives 20 outputs for 19 classes: 1 is no class\? say which with .*drop_outputs"
    ):
        build_network("odd_networks.twenty_outputs", 19)
    with pytest.raises(
        UserError, match=r"gives 20 outputs for 21 classes: give the class set of its 20 outputs as --data"
    ):
        build_network("odd_networks.twenty_outputs", 21)


def test_what_gives_no_map_is_refused():
    with pytest.raises(UserError, match=r"gives no map \(B, 5, h, w\)"):
        probe(nn.Sequential(nn.Conv2d(3, K, 1), nn.Flatten()), K)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "lst"}, r"head 'lst': there is no module of this name; did you mean last"),
        ({"backbone": "zzz"}, r"backbone 'zzz': .*its parts are last, encoder, merge"),
        ({"multiple": 0}, r"multiple: at least 1"),
        ({"std": [0.0, 1.0, 1.0]}, r"std: three numbers above 0"),
        ({"mean": [0.5]}, r"mean: three numbers"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        build_network("odd_networks.merged", K, options=options)


def test_an_output_that_is_not_there_is_refused():
    module = odd.ManyMaps(K, lambda main, aux: {"main": main, "aux": aux})
    assert probe(module, K, {"output": "aux"}).forms[False, ("main", "aux")].name == "aux"
    with pytest.raises(UserError, match=r"output 'mian': it gives main \(1, 5, 17, 23\), aux"):
        probe(module, K, {"output": "mian"})


def test_what_a_user_says_goes_before_what_is_found():
    options = {"head": "merge", "backbone": "encoder.0", "align_corners": True, "multiple": 8}
    network = build_network("odd_networks.merged", 8, options=options)
    assert (network._head, network._backbone, network.align_corners, network.multiple) == (
        "merge",
        "encoder.0",
        True,
        8,
    )
    assert "not the logits up to a change of size" in network.description


def test_methods_that_need_a_head_are_told_of_its_lack_before_anything_is_read():
    network = build_network("odd_networks.headless", K)
    with pytest.raises(UserError, match=r"no module gives the logits.*network_options\.head"):
        network.feature_channels(HEAD_INPUT)
    assert network.feature_channels(BACKBONE) == 8  # encoder
    parts = network.parts()
    assert not list(parts["head"].parameters())
    assert {id(p) for part in ("backbone", "classifier") for p in parts[part].parameters()} == {
        id(p) for p in network.parameters()
    }


def test_bgr_is_a_flip_after_the_normalisation():
    options = {"channel_order": "bgr", "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.25, 0.125]}
    network = build_network("odd_networks.merged", K, options=options).eval()
    mean, std = (torch.tensor(options[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    assert torch.equal(network(IMAGES), network.network(((IMAGES - mean) / std)[:, [2, 1, 0]]))


class Careless(nn.Module):
    """Draws random numbers, counts its passes, has dropout and BatchNorm, a frozen layer and mixed modes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = odd.encoder()
        self.drop = nn.Dropout(0.5)
        self.top = nn.Conv2d(8, K, 1)
        self.passes = 0
        self.encoder[0].requires_grad_(False)
        self.encoder[1].eval()
        self.top.weight.grad = torch.ones_like(self.top.weight)

    def forward(self, images):
        self.passes += 1
        return self.top(self.drop(self.encoder(images + torch.rand(()))))


def test_a_probe_leaves_no_trace():
    module = Careless()
    before = copy.deepcopy(module)
    random = torch.get_rng_state()
    found = probe(module, K)
    assert found.normalisation == {"BatchNorm": 1}
    assert torch.equal(torch.get_rng_state(), random)
    assert module.passes == 0
    assert torch.is_grad_enabled()
    for (name, layer), twin in zip(module.named_modules(), before.modules(), strict=True):
        assert layer.training == twin.training, name
        assert not layer._forward_hooks
    for mine, old in zip(module.state_dict().values(), before.state_dict().values(), strict=True):
        assert torch.equal(mine, old)
    for mine, old in zip(module.parameters(), before.parameters(), strict=True):
        assert mine.requires_grad == old.requires_grad
        assert (mine.grad is None) == (mine is not module.top.weight)
    assert torch.equal(module.top.weight.grad, torch.ones_like(module.top.weight))


def test_a_network_that_fails_is_named_with_the_size_and_its_last_words():
    network = build_network("odd_networks.one_size", K, options={"multiple": 96})
    with pytest.raises(
        UserError, match=r"'odd_networks.one_size' fails on images \(1, 3, 192, 96\): RuntimeError: .*size"
    ):
        network(torch.rand(1, 3, 100, 50))


def test_the_one_line():
    network = build_network("odd_networks.needs_32", 19, options={"drop_outputs": [19]})
    assert network.description == (
        "network odd_networks.needs_32: 20 outputs (19 is dropped); logits; head last, align_corners false; sizes are "
        "padded to multiples of 32; no normalisation layers"
    )
