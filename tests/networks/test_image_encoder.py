"""The image encoder: what other projects' encoders gave, crops, norms, names and refusals."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from paths import SHARED
from safetensors.torch import load_file
from torch import nn

from asd_policy.formats.torch_files import TorchFile
from asd_policy.networks.image_encoder import ImageEncoder, SpatialSoftmax
from asd_policy.networks.resnet import ResNet

SMALL = {"widths": (16, 16, 32, 48), "blocks": (1, 1, 1, 1), "keypoints": 4, "feature_dim": 6}
CHILDREN = {"0": "conv1", "1": "bn1", **{str(i): f"layer{i - 3}" for i in range(4, 8)}}
"""Indices of the children of torchvision's ResNet, which robomimic and LeRobot save."""


def small(shape=(3, 40, 44), **options):
    torch.manual_seed(0)
    encoder = ImageEncoder(shape, **{**SMALL, **options})
    for parameter in encoder.parameters():  # no weight is zero, or a wrong use could hide
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return encoder.eval().requires_grad_(False)


def fixture(name):
    path = SHARED / "fixtures" / name
    if not path.exists():
        pytest.skip(f"{path} is not here: the small checkpoints of other projects")
    return path


def named_backbone(tensors, prefix):
    """What lies under a prefix, its children's numbers replaced by torchvision's names."""
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            child, rest = name.removeprefix(prefix).split(".", 1)
            found[f"backbone.{CHILDREN[child]}.{rest}"] = tensor
    return found


def widths(weights):
    return [weights[f"backbone.layer{i}.0.conv1.weight"].shape[0] for i in range(1, 5)]


def test_a_lerobot_encoder_gives_what_lerobot_gave():
    folder = fixture("lerobot_044_image")
    golden = np.load(folder / "golden_diffusers0352.npz")
    config = json.loads((folder / "pretrained_model/config.json").read_text())
    tensors = load_file(folder / "pretrained_model/model.safetensors")
    prefix = "diffusion.rgb_encoder.0."
    weights = named_backbone(tensors, prefix + "backbone.")
    for name in ("pool.nets.weight", "pool.nets.bias", "out.weight", "out.bias"):
        weights[name] = tensors[prefix + name]
    encoder = ImageEncoder(
        config["input_features"]["observation.images.wrist_cam_left"]["shape"],
        widths=widths(weights),
        norm="group" if config["use_group_norm"] else "batch",
        resize=config["resize_shape"],
        crop=config["crop_shape"],
        random_crop=config["crop_is_random"],
        keypoints=config["spatial_softmax_num_keypoints"],
        feature_dim=2 * config["spatial_softmax_num_keypoints"],
    ).eval()
    encoder.load_state_dict(weights)
    assert torch.equal(encoder.pool.positions.T, tensors[prefix + "pool.pos_grid"])
    features = encoder(torch.from_numpy(golden["encoder0_in"]))
    torch.testing.assert_close(
        features, torch.from_numpy(golden["encoder0_out"]), atol=1e-5, rtol=0
    )


@pytest.fixture(scope="module")
def chi():
    folder = fixture("chi_unet_hybrid_image_square")
    with TorchFile(folder / "chi_unet_hybrid_image_square.ckpt") as file:
        content = file.content()
        crop = content["cfg"]["policy"]["crop_shape"]
        tensors = content["state_dicts"]["ema_model"]
        wanted = {k: v.read() for k, v in tensors.items() if k.startswith("obs_encoder.")}
    return crop, wanted, np.load(folder / "golden_diffusers0111.npz")


@pytest.mark.parametrize("place", [0, 1])
def test_a_robomimic_encoder_gives_what_robomimic_gave(chi, place):
    crop, tensors, golden = chi
    camera = ["agentview_image", "robot0_eye_in_hand_image"][place]
    prefix = f"obs_encoder.obs_nets.{camera}."
    weights = named_backbone(tensors, prefix + "backbone.nets.")
    for ours, theirs in {"pool.nets": "pool.nets", "out": "nets.3"}.items():
        for kind in ("weight", "bias"):
            weights[f"{ours}.{kind}"] = tensors[f"{prefix}{theirs}.{kind}"]
    encoder = ImageEncoder((3, 84, 84), widths=widths(weights), crop=crop).eval()
    encoder.load_state_dict(weights)
    pool = encoder.pool
    for row, name in enumerate(["pos_x", "pos_y"]):
        assert torch.equal(pool.positions[row : row + 1], tensors[f"{prefix}pool.{name}"])
    assert tensors[prefix + "pool.temperature"].item() == pool.temperature

    raw = torch.from_numpy(golden[f"raw_obs.{camera}"]).flatten(0, 1)
    images = raw.permute(0, 3, 1, 2) / 255 * 2 - 1
    cropped = encoder.frame(images)
    backbone = encoder.backbone(cropped)
    for name, ours in {
        "cropped": cropped[:1],
        "backbone": backbone,
        "encoder": encoder.out(pool(backbone)),
    }.items():
        theirs = torch.from_numpy(golden[f"{name}.{camera}"])
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    theirs = torch.from_numpy(golden["features"][:, 64 * place :][:, :64])
    torch.testing.assert_close(encoder(images), theirs, atol=1e-5, rtol=0)


TORCHVISION = {
    "conv1.weight": (64, 3, 7, 7),
    "bn1.weight": (64,),
    "bn1.bias": (64,),
    "layer1.0.conv1.weight": (64, 64, 3, 3),
    "layer1.0.bn1.bias": (64,),
    "layer1.1.conv2.weight": (64, 64, 3, 3),
    "layer2.0.conv1.weight": (128, 64, 3, 3),
    "layer2.0.downsample.0.weight": (128, 64, 1, 1),
    "layer2.0.downsample.1.weight": (128,),
    "layer2.0.downsample.1.bias": (128,),
    "layer3.0.downsample.0.weight": (256, 128, 1, 1),
    "layer4.0.conv2.weight": (512, 512, 3, 3),
    "layer4.1.bn2.weight": (512,),
}
STATISTICS = {
    "bn1.running_mean": (64,),
    "layer4.0.downsample.1.running_var": (512,),
    "layer4.1.bn2.num_batches_tracked": (),
}


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_the_backbone_has_torchvisions_names(norm):
    with torch.device("meta"):
        backbone = ResNet(norm=norm)
    ours = {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
    theirs = TORCHVISION | (STATISTICS if norm == "batch" else {})
    assert {name: ours.get(name) for name in theirs} == theirs
    assert len(ours) == (60 if norm == "group" else 120)
    assert not any("layer1.0.downsample" in name for name in ours)
    # ResNet-18 without its classifier.
    assert sum(p.numel() for p in backbone.parameters()) == 11_176_512


def test_all_of_robomimics_weights_have_a_place():
    path = SHARED / "design/keys/robomimic_obs_encoder_agentview.txt"
    if not path.exists():
        pytest.skip(f"{path} is not here: robomimic's names")
    theirs = {}
    for line in path.read_text().splitlines():
        name, shape = line.strip().split(" ", 1)
        name = name.split(".agentview_image.")[1]
        if m := re.match(r"backbone\.nets\.(\d)\.(.*)", name):
            name = f"backbone.{CHILDREN[m[1]]}.{m[2]}"
        elif name.startswith("nets.3."):
            name = name.replace("nets.3", "out")
        elif not name.startswith("pool.nets."):
            continue  # constants, and the second copy that robomimic saves
        theirs[name] = tuple(int(n) for n in shape.strip("() ").split(",") if n)
    with torch.device("meta"):
        encoder = ImageEncoder((3, 84, 84), crop=(76, 76))
    assert {name: tuple(t.shape) for name, t in encoder.state_dict().items()} == theirs


def test_only_weights_are_saved_and_constants_survive_building_without_memory():
    encoder = small(imagenet_norm=True)
    assert set(dict(encoder.named_parameters())) == set(encoder.state_dict())
    with torch.device("meta"):
        other = ImageEncoder((3, 40, 44), imagenet_norm=True, **SMALL).eval()
    other.load_state_dict(encoder.state_dict(), assign=True)
    images = torch.rand(2, 3, 40, 44)
    assert torch.equal(encoder(images), other(images))


def coordinates(height, width, batch=1):
    """Images of which each pixel says where it is."""
    place = 1000.0 * torch.arange(height)[:, None] + torch.arange(width)
    return place.expand(batch, 3, height, width)


@pytest.mark.parametrize(
    ("crop", "options", "corner"),
    [
        ((32, 36), {}, (4, 4)),
        ((39, 43), {}, (0, 0)),  # torchvision rounds half a pixel to even
        ((37, 41), {}, (2, 2)),
        ((35, 37), {}, (2, 4)),
        ((35, 37), {"crop_corner": (2, 3)}, (2, 3)),
        ((40, 44), {}, (0, 0)),
        ((34, 24), {"resize": (38, 30)}, (2, 3)),
    ],
)
def test_crops_the_centre_in_eval(crop, options, corner):
    encoder = small(crop=crop, **options)
    images = coordinates(40, 44)
    if "resize" in options:
        images = F.interpolate(images, options["resize"], mode="bilinear")
        options = {}
    (top, left), (height, width) = corner, crop
    expected = images[:, :, top : top + height, left : left + width]
    assert torch.equal(encoder.frame(coordinates(40, 44)), expected)


def test_crops_each_image_somewhere_else_in_training():
    encoder = small((3, 12, 13), crop=(10, 10), pool="average").train()
    images = coordinates(12, 13, batch=300)
    crops = encoder.frame(images)
    corners = crops[:, 0, 0, 0]
    tops, lefts = (corners // 1000).int(), (corners % 1000).int()
    for crop, top, left in zip(crops[:20], tops, lefts, strict=False):
        assert torch.equal(crop, images[0, :, top : top + 10, left : left + 10])
    # All 3 x 4 places come, the outermost too.
    assert set(zip(tops.tolist(), lefts.tolist(), strict=True)) == {
        (top, left) for top in range(3) for left in range(4)
    }


def test_the_same_seed_crops_the_same():
    encoder = small(crop=(33, 36)).train()
    images = torch.rand(4, 3, 40, 44)
    torch.manual_seed(5)
    first, second = encoder(images), encoder(images)
    torch.manual_seed(5)
    assert torch.equal(encoder(images), first)
    assert not torch.equal(first, second)


def test_crops_the_centre_in_training_where_asked_to():
    encoder = small(crop=(30, 33), random_crop=False)
    images = torch.rand(3, 3, 40, 44)
    assert torch.equal(encoder.frame(images), encoder.train().frame(images))


def test_resizes_as_torchvision_resizes_tensors():
    image = torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]])
    image = image.expand(1, 3, 4, 4)
    plain = small((3, 4, 4), resize=(2, 2), pool="average").frame(image)
    # Each result is amid four pixels.
    torch.testing.assert_close(plain[0, 0], torch.tensor([[2.5, 4.5], [10.5, 12.5]]))
    smooth = small((3, 4, 4), resize=(2, 2), pool="average", antialias=True).frame(image)
    # A triangle two results wide: weights 3, 3, 1 over 7 on each axis.
    near, far = (3 * 0 + 3 * 1 + 1 * 2) / 7, (1 * 1 + 3 * 2 + 3 * 3) / 7
    expected = torch.tensor([[4 * row + column for column in (near, far)] for row in (near, far)])
    torch.testing.assert_close(smooth[0, 0], expected)


def test_imagenets_statistics_apply_to_the_values_as_they_come():
    image = torch.zeros(1, 3, 8, 8)
    image[0, 1] = -1
    normalized = small((3, 8, 8), imagenet_norm=True, pool="average").frame(image)
    expected = torch.tensor([-0.485 / 0.229, (-1 - 0.456) / 0.224, -0.406 / 0.225])
    torch.testing.assert_close(normalized[0, :, 3, 4], expected)


@pytest.mark.parametrize("width", [16, 24, 48, 512])
def test_a_group_has_sixteen_channels(width):
    with torch.device("meta"):
        backbone = ResNet(widths=(16, 16, 16, width))
    norms = [m for m in backbone.modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 20 and not any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    assert [m.num_groups for m in norms] == [m.num_channels // 16 for m in norms]


def test_a_keypoint_is_where_a_map_is_high_and_x_comes_first():
    pool = SpatialSoftmax(2, (3, 5), 2, temperature=0.01)
    nn.init.zeros_(pool.nets.bias)
    pool.nets.weight.data = torch.eye(2)[:, :, None, None]
    features = torch.zeros(1, 2, 3, 5)
    features[0, 0, 0, 4] = 1.0  # top right
    features[0, 1, 1, 1] = 1.0
    expected = torch.tensor([[1.0, -1.0, -0.5, 0.0]])
    torch.testing.assert_close(pool(features), expected, atol=1e-6, rtol=0)
    pool.temperature = 1e6
    torch.testing.assert_close(pool(features), torch.zeros(1, 4), atol=1e-6, rtol=0)


def test_average_pooling_gives_the_mean_of_the_last_features():
    encoder = small(pool="average", feature_dim=None)
    images = torch.rand(3, 3, 40, 44)
    assert encoder.features == 48
    expected = encoder.backbone(images).mean((2, 3))
    torch.testing.assert_close(encoder(images), expected)
    assert all(name.startswith("backbone.") for name in encoder.state_dict())
    with_map = small(pool="average", feature_dim=5)
    assert with_map(images).shape == (3, 5) and with_map.out.in_features == 48


def test_batch_norms_keep_their_statistics_in_eval():
    encoder = small(norm="batch", crop=(33, 40), random_crop=False).train()
    images = torch.rand(8, 3, 40, 44)
    encoder(images)
    before = {name: tensor.clone() for name, tensor in encoder.eval().state_dict().items()}
    assert before["backbone.bn1.num_batches_tracked"] == 1
    assert before["backbone.layer4.0.bn2.running_mean"].abs().max() > 0
    features = encoder(images)
    torch.testing.assert_close(encoder(images[2:5]), features[2:5], atol=1e-6, rtol=0)
    assert all(torch.equal(before[name], t) for name, t in encoder.state_dict().items())
    norm, x = encoder.backbone.bn1, torch.randn(2, 16, 3, 3)
    scale = norm.weight / (norm.running_var + 1e-5).sqrt()
    expected = (x - norm.running_mean[:, None, None]) * scale[:, None, None]
    torch.testing.assert_close(norm(x), expected + norm.bias[:, None, None])
    assert not torch.equal(encoder.train()(images), features)


@pytest.mark.parametrize(
    ("options", "features"),
    [
        ({}, 6),
        ({"crop": [20, 33]}, 6),
        ({"resize": [50, 24], "crop": [33, 1], "antialias": True}, 6),
        ({"widths": [16, 32, 24, 16], "blocks": [3, 4, 6, 3], "feature_dim": 64}, 64),
        ({"norm": "batch", "widths": [8, 8, 8, 8], "imagenet_norm": True}, 6),
        ({"pool": "average", "feature_dim": None}, 48),
    ],
)
def test_options_survive_json_and_shapes_are_as_said(options, features):
    encoder = small(**json.loads(json.dumps(options)))
    assert encoder.features == features
    assert encoder(torch.rand(2, 3, 40, 44)).shape == (2, features)
    assert encoder.train()(torch.rand(5, 3, 40, 44)).shape == (5, features)


@pytest.mark.parametrize("pool", ["spatial_softmax", "average"])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_gradients_reach_every_weight(pool, norm):
    encoder = small(crop=(33, 33), norm=norm, pool=pool).train().requires_grad_(True)
    if encoder.out is not None:
        encoder.out.bias.data += 1  # the ReLU passes
    images = torch.rand(3, 3, 40, 44, requires_grad=True)
    encoder(images).square().sum().backward()
    still = {name for name, p in encoder.named_parameters() if not p.grad.abs().max() > 0}
    # The softmax ignores what is added to all of a map.
    assert still <= {"pool.nets.bias"} and images.grad.abs().amax((1, 2, 3)).min() > 0


@pytest.mark.parametrize("options", [{}, {"pool": "average"}, {"norm": "batch"}])
@torch.inference_mode()
def test_a_rows_result_does_not_depend_on_the_rows_beside_it(options):
    """At a published size, where the kernels are chosen by size."""
    torch.manual_seed(0)
    encoder = ImageEncoder((3, 84, 84), crop=(76, 76), **options).eval()
    images = torch.randn(18, 3, 84, 84)
    whole = encoder(images)
    for count in (1, 2, 3, 5, 15):
        some = encoder(images[:count])
        assert torch.equal(some, whole[:count]), (count, (some - whole[:count]).abs().max())


def test_one_image_without_gradients_gives_what_it_gives_with_them():
    encoder = small(crop=(33, 34))
    image = torch.rand(1, 3, 40, 44)
    with torch.no_grad():
        alone = encoder(image)
    torch.testing.assert_close(alone, encoder(image), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (40, 44)}, "shape: expected 3 whole numbers"),
        ({"shape": (3, 40, 10**6)}, "shape: expected 3 whole numbers"),
        ({"shape": "abc"}, "shape: expected 3 whole numbers"),
        ({"widths": (16, 16, 16)}, "widths: expected 4 whole numbers"),
        ({"widths": (16, 16, 16, 10**9)}, "widths: expected 4 whole numbers"),
        ({"widths": (16, 16, 16, 8)}, "widths: expected each to split.* got 8"),
        ({"widths": (16, 16, 16, 33)}, "widths: expected each to split.* got 33"),
        ({"blocks": (1, 1, 1, 0)}, "blocks: expected 4 whole numbers"),
        ({"blocks": (1, 1, 1, 10**9)}, "blocks: expected 4 whole numbers"),
        ({"blocks": (1, 1, 1, 1.0)}, "blocks: expected 4 whole numbers"),
        ({"widths": (4096,) * 4}, "widths and blocks: expected at most"),
        ({"blocks": (256,) * 4, "widths": (256,) * 4}, "widths and blocks: expected at most"),
        ({"norm": "layer"}, "norm: expected one of .* got 'layer'"),
        ({"norm": ["group"]}, "norm: expected one of"),
        ({"pool": "max"}, "pool: expected one of .* got 'max'"),
        ({"crop": (41, 30)}, r"crop: expected 2 whole numbers from 1 to at most \(40, 44\)"),
        ({"crop": (30, 30), "resize": (28, 40)}, r"crop: .* at most \(28, 40\)"),
        ({"crop": 30}, "crop: expected 2 whole numbers"),
        ({"crop": (30, 30), "crop_corner": (0, 15)}, r"crop_corner: .* at most \(10, 14\)"),
        ({"crop_corner": (0, 0)}, "crop_corner: expected None without a crop"),
        ({"resize": (10**6, 10**6)}, "resize: expected 2 whole numbers"),
        ({"random_crop": "no"}, "random_crop: expected one of"),
        ({"imagenet_norm": 1}, "imagenet_norm: expected one of"),
        ({"shape": (4, 40, 40), "imagenet_norm": True}, "imagenet_norm: expected images of 3"),
        ({"keypoints": 0}, "keypoints: expected 1 whole number"),
        ({"keypoints": 10**9}, "keypoints: expected 1 whole number"),
        ({"temperature": 0.0}, "temperature: expected a positive number, got 0.0"),
        ({"temperature": float("nan")}, "temperature: expected a positive number"),
        ({"crop": (32, 32)}, "spatial_softmax: expected a side of more than 32 pixels"),
        ({"feature_dim": None}, "feature_dim: expected 1 whole number"),
        ({"feature_dim": 10**9}, "feature_dim: expected 1 whole number"),
    ],
)
def test_refuses_what_it_cannot_build(options, message):
    with pytest.raises(ValueError, match=message):
        ImageEncoder(**{"shape": (3, 40, 44), **SMALL, **options})


def test_refuses_images_of_another_shape():
    with pytest.raises(ValueError, match=r"expected images \(B, \(3, 40, 44\)\), got"):
        small()(torch.rand(2, 3, 44, 40))
