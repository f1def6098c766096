import json
import socket
import sys

import pytest
import torch
import torch.nn.functional as F

from sfda.errors import UserError
from sfda.networks.build import build_network
from sfda.networks.hugging_face import HUGGING_FACE_PREFIX, hugging_face_classes, hugging_face_weights
from sfda.networks.hugging_face_modules import window_starts
from sfda.networks.segmenter import BACKBONE, HEAD_INPUT

transformers = pytest.importorskip("transformers")

NAMES = {0: "road", 1: "car", 2: "tree", 3: "sky", 4: "void"}
STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
LABELS = {"id2label": NAMES, "label2id": {name: key for key, name in NAMES.items()}}
PREPROCESSING = {"do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255, "image_mean": [0.5, 0.4, 0.3]}
PREPROCESSING |= {"image_std": [0.2, 0.25, 0.3]}
IMAGES = torch.rand(1, 3, 45, 70, generator=torch.Generator().manual_seed(3))


def swin():
    return transformers.SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4, **STAGES)


def segformer():
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16, **LABELS
    )
    return transformers.SegformerForSemanticSegmentation(config)


def upernet():
    convnext = transformers.ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4, **STAGES)
    config = transformers.UperNetConfig(
        backbone_config=convnext, hidden_size=8, pool_scales=[1, 2], auxiliary_in_channels=8, **LABELS
    )
    return transformers.UperNetForSemanticSegmentation(config)


def transformer(**more):
    return {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 64} | LABELS | more


def beit():
    config = transformers.BeitConfig(
        **transformer(num_hidden_layers=4, out_indices=[1, 2, 3, 4], pool_scales=[1, 2]),
        use_relative_position_bias=True,
    )
    return transformers.BeitForSemanticSegmentation(config)


def dpt():
    layers = {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8] * 4}
    return transformers.DPTForSemanticSegmentation(
        transformers.DPTConfig(**transformer(**layers), fusion_hidden_size=8, is_hybrid=False)
    )


def mask2former():
    config = transformers.Mask2FormerConfig(
        backbone_config=swin(), feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=6, **LABELS,
    )  # fmt: skip
    return transformers.Mask2FormerForUniversalSegmentation(config)


def eomt():
    config = transformers.EomtConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=64, num_queries=6, num_blocks=1,
        num_upscale_blocks=1, num_register_tokens=0, **LABELS,
    )  # fmt: skip
    return transformers.EomtForUniversalSegmentation(config)


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def save(tmp_path):
    def to_folder(model, preprocessing=PREPROCESSING, **options):
        torch.manual_seed(0)
        for parameter in model.parameters():  # what starts as zeros would hide a mistake
            torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(tmp_path, **options)
        if preprocessing is not None:
            (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessing))
        return str(tmp_path)

    return to_folder


def load(folder, num_classes=5, **options):
    network = build_network(f"hf:{folder}", num_classes, options=options or None).eval()
    weights = hugging_face_weights(folder)
    network.network.load_state_dict({HUGGING_FACE_PREFIX + key: value for key, value in weights.items()})
    return network


def normalised():
    mean, std = (torch.tensor(PREPROCESSING[name]).view(1, 3, 1, 1) for name in ("image_mean", "image_std"))
    return (IMAGES - mean) / std


def like(model):
    return model.eval().to(memory_format=torch.channels_last)


@pytest.mark.parametrize(("family", "multiple"), [(segformer, 1), (upernet, 1), (beit, 16)])
def test_logits_of_semantic_networks_are_those_of_transformers(family, multiple, save, offline):
    model = like(family())
    network = load(save(model))
    padded = F.pad(normalised(), (0, -70 % multiple, 0, -45 % multiple), mode="replicate")
    with torch.no_grad():
        logits = F.interpolate(model(padded).logits, padded.shape[-2:], mode="bilinear")[..., :45, :70]
        assert torch.equal(network(IMAGES), logits)
        head_input = network(IMAGES, HEAD_INPUT)[1]
        torch.testing.assert_close(network.apply_head(head_input, (45, 70)), logits)
        assert network(IMAGES, BACKBONE)[1].ndim == 4
    assert network.multiple == multiple


def scores_by_hand(model, images):
    output = model(images)
    masks = F.interpolate(output.masks_queries_logits, images.shape[-2:], mode="bilinear").sigmoid()
    classes = output.class_queries_logits.softmax(-1)[..., :-1]
    return torch.stack([(classes[0, :, k, None, None] * masks[0]).sum(0) for k in range(classes.shape[2])])[None]


def test_scores_of_mask2former_are_probabilities(save, offline):
    model = like(mask2former())
    network = load(save(model))
    with torch.no_grad():
        scores = scores_by_hand(model, normalised())
        torch.testing.assert_close(network(IMAGES).softmax(1), scores / scores.sum(1, keepdim=True))
        assert network(IMAGES, BACKBONE)[1].shape[1] == 64
    with pytest.raises(UserError, match=r"no module gives the logits"):
        network.feature_channels(HEAD_INPUT)


@pytest.mark.parametrize(("family", "universal"), [(eomt, True), (dpt, False)])
def test_networks_of_squares_see_larger_images_in_windows(family, universal, save, offline):
    model = like(family())
    network = load(save(model))
    wide = F.interpolate(normalised(), (64, 100), mode="bilinear")  # 45x70, brought to a height of 64
    with torch.no_grad():
        parts = []
        for start in (0, 36):
            part = wide[..., start : start + 64]
            part = scores_by_hand(model, part) if universal else model(part).logits
            parts.append(F.interpolate(part, (64, 64), mode="bilinear"))
        total = torch.zeros(1, 5, 64, 100)
        total[..., :64] += parts[0]
        total[..., 36:] += parts[1]
        total[..., 36:64] /= 2
        maps = F.interpolate(total, (45, 70), mode="bilinear")
        logits = (maps / maps.sum(1, keepdim=True)).log() if universal else maps
        torch.testing.assert_close(network(IMAGES), logits)
        assert network(IMAGES.transpose(2, 3)).shape == (1, 5, 70, 45)
    assert "windows of 64x64" in network.description


def test_windows_cover_all_with_even_overlaps():
    assert window_starts(64, 64) == [0]
    assert window_starts(65, 64) == [0, 1]
    assert window_starts(160, 64) == [0, 48, 96]


@pytest.mark.parametrize("options", [{"max_shard_size": "20KB"}, {}], ids=["sharded", "one file"])
def test_all_weights_are_found(options, save):
    model = segformer()
    weights = hugging_face_weights(save(model, **options))
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_weights_of_torchs_own_format_and_their_faults(save, tmp_path):
    model = segformer()
    folder = save(model)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds neither model.safetensors nor pytorch_model.bin"):
        hugging_face_weights(folder)
    state = model.state_dict()
    lacking = next(iter(state))
    torch.save({**state, "more": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    weights = hugging_face_weights(folder)
    assert weights.keys() == state.keys() | {"more"}
    state.pop(lacking)
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert hugging_face_weights(folder).keys() == state.keys()
    content = bytearray((tmp_path / "pytorch_model.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"pytorch_model\.bin is damaged"):
        hugging_face_weights(folder)
    (tmp_path / "pytorch_model.bin").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"transformers refuses it"):
        hugging_face_weights(folder)


def test_class_names_and_dropped_outputs(save):
    folder = save(segformer())
    assert hugging_face_classes(folder) == list(NAMES.values())
    whole, network = load(folder), load(folder, 4, drop_outputs=[4])
    assert torch.equal(network(IMAGES), whole(IMAGES)[:, :4])
    with pytest.raises(UserError, match=r"gives 5 outputs for 4 classes: 1 is no class\? .*drop_outputs"):
        build_network(f"hf:{folder}", 4)


@pytest.mark.parametrize(
    ("said", "by_hand"),
    [
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [50.0] * 3}, lambda x: (255 * x - 127.5) / 50),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}, lambda x: 2 * x - 1),
        ({"do_normalize": False, "image_mean": [0.5] * 3}, lambda x: x),
        ({"do_normalize": False, "do_flip_channel_order": True}, lambda x: x[:, [2, 1, 0]]),
    ],
    ids=["0 to 255", "own factor", "as it is", "BGR"],
)
def test_the_folders_preprocessing(said, by_hand, save):
    model = like(segformer())
    network = load(save(model, said))
    with torch.no_grad():
        logits = F.interpolate(model(by_hand(IMAGES)).logits, (45, 70), mode="bilinear")
        torch.testing.assert_close(network(IMAGES), logits, atol=1e-4, rtol=1e-4)


def test_what_a_user_says_goes_before_the_folder_and_a_lack_is_told(save):
    folder = save(segformer(), None)
    network = build_network(f"hf:{folder}", 5)
    assert "no preprocessor_config.json: ImageNet's mean and deviation are taken" in network.description
    told = build_network(f"hf:{folder}", 5, options={"mean": [0.0, 0.0, 0.5], "channel_order": "bgr"})
    assert told.mean.flatten().tolist() == [0.0, 0.0, 0.5]
    assert told.channel_order == "bgr"


def test_folders_that_hold_no_segmentation_network(tmp_path, save, monkeypatch):
    with pytest.raises(UserError, match=r"no such folder; none is downloaded"):
        build_network("hf:nvidia/segformer-b0", 5)
    with pytest.raises(UserError, match=r"there is no config.json in it"):
        build_network(f"hf:{tmp_path}", 5)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=r"no segmentation network is of model_type 'bert', but .*segformer"):
        build_network(f"hf:{tmp_path}", 5)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json cannot be read"):
        build_network(f"hf:{tmp_path}", 5)
    with pytest.raises(UserError, match=r"weights come from a checkpoint.*pretrained none"):
        build_network(f"hf:{tmp_path}", 5, "imagenet")


def test_a_backbone_from_the_hub_is_never_fetched(tmp_path, save, offline):
    config = json.loads(transformers.UperNetConfig(**LABELS).to_json_string())
    config |= {"model_type": "upernet", "backbone": "somebody/backbone", "backbone_config": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"transformers refuses it"):
        build_network(f"hf:{tmp_path}", 5)


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs the package transformers: `pip install transformers`"):
        hugging_face_classes("anywhere")
