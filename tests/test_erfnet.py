"""model=erfnet: the published network, its weights in every public copy, what it is refused for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from eomt_exp import runs
from eomt_exp.contracts import CheckpointError, PixelOutput, UserError
from eomt_exp.engine.model_summary import describe, multiply_accumulates
from eomt_exp.models.erfnet import ERFNet
from eomt_exp.tasks.train import train
from eomt_exp.weights.formats import ERFNET
from eomt_exp.weights.loading import load_checkpoint
from eomt_exp.weights.weight_files import save_weights
from tests.command_line import metrics_of, only_run, run
from tests.data_files import SHARED
from tests.test_checkpoints import differing, same
from tests.test_spatial_experiments import load

PUBLISHED = SHARED / "weights" / "erfnet_cityscapes_dequant_fp16.safetensors"
ENCODER_HEAD = {
    "encoder.output_conv.weight": torch.zeros(20, 128, 1, 1),
    "encoder.output_conv.bias": torch.zeros(20),
}
ROAD, SKY = 0, 10  # train ids of Cityscapes
CAMVID_ROAD, CAMVID_SKY = 3, 0


def randomised(num_classes: int = 19, **changes: Any) -> ERFNet:
    """Weights and statistics of BatchNorm that let signals through, none of them zero or one."""
    model = ERFNet(num_classes=num_classes, **changes)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and "bn" in name:
            spread = (0.5, 1.5) if name.endswith(("weight", "var")) else (-0.3, 0.3)
            torch.nn.init.uniform_(value, *spread)
    return model.eval()


# The paper's table of layers, written once more as plain functions of the state dict.
def weights_of(state: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return state[f"{name}.weight"], state[f"{name}.bias"]


def norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    scale = state[f"{name}.weight"] / (var + 0.001).sqrt()
    return (x - mean[:, None, None]) * scale[:, None, None] + state[f"{name}.bias"][:, None, None]


def down(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    convolved = F.conv2d(x, *weights_of(state, f"{name}.conv"), stride=2, padding=1)
    pooled = F.max_pool2d(x, kernel_size=2, stride=2)
    return norm(torch.cat((convolved, pooled), 1), state, f"{name}.bn").clamp(min=0)


def residual(x: Tensor, state: dict[str, Tensor], name: str, d: int) -> Tensor:
    def conv(y: Tensor, which: str, padding: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
        return F.conv2d(
            y, *weights_of(state, f"{name}.{which}"), padding=padding, dilation=dilation
        )

    y = conv(x, "conv3x1_1", (1, 0), (1, 1)).clamp(min=0)
    y = norm(conv(y, "conv1x3_1", (0, 1), (1, 1)), state, f"{name}.bn1").clamp(min=0)
    y = conv(y, "conv3x1_2", (d, 0), (d, 1)).clamp(min=0)
    y = norm(conv(y, "conv1x3_2", (0, d), (1, d)), state, f"{name}.bn2")
    return (x + y).clamp(min=0)


def up(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    weights = weights_of(state, f"{name}.conv")
    x = F.conv_transpose2d(x, *weights, stride=2, padding=1, output_padding=1)
    return norm(x, state, f"{name}.bn").clamp(min=0)


def literal_forward(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """(B, 3, H, W) -> (B, outputs, H, W), void included."""
    x = down(x, state, "encoder.initial_block")
    x = down(x, state, "encoder.layers.0")
    for index in (1, 2, 3, 4, 5):
        x = residual(x, state, f"encoder.layers.{index}", 1)
    x = down(x, state, "encoder.layers.6")
    for index, dilation in zip(range(7, 15), (2, 4, 8, 16, 2, 4, 8, 16), strict=True):
        x = residual(x, state, f"encoder.layers.{index}", dilation)
    for first in (0, 3):
        x = up(x, state, f"decoder.layers.{first}")
        x = residual(x, state, f"decoder.layers.{first + 1}", 1)
        x = residual(x, state, f"decoder.layers.{first + 2}", 1)
    return F.conv_transpose2d(x, *weights_of(state, "decoder.output_conv"), stride=2)


def test_the_network_is_the_published_one_and_void_is_left_out() -> None:
    torch.manual_seed(0)
    model = randomised().double()
    images = torch.rand(2, 3, 96, 160, dtype=torch.float64)  # wider than the largest dilation
    with torch.no_grad():
        output, expected = model(images), literal_forward(images, model.state_dict())
    assert isinstance(output, PixelOutput)
    assert expected.shape == (2, 20, 96, 160)
    assert expected.std() > 0.1, "a signal, so that the comparison says something"
    torch.testing.assert_close(output.logits, expected[:, :19], rtol=0, atol=1e-10)


def test_parameters_are_as_many_as_published() -> None:
    model = ERFNet(num_classes=19)
    encoder, decoder = (sum(p.numel() for p in half.parameters()) for half in model.children())
    assert (encoder, decoder) == (1_874_044, 190_212)
    # What the official code counts too: the head of the encoder's own training, 128 to 20 channels.
    assert encoder + decoder + 128 * 20 + 20 == 2_066_836
    listed = [id(p) for part in model.parts() for p in part.parameters]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())


def test_work_is_counted_by_hand() -> None:
    """Multiply-accumulates per pixel of the image: those per cell over the pixels of a cell."""
    at_half = 27 * 13 + 2 * (12 * 16 * 16) + 4 * 16 * 20  # first block, two of 16 channels, output
    at_quarter = 9 * 16 * 48 + (5 + 2) * (12 * 64 * 64) + 9 * 64 * 16
    at_eighth = 9 * 64 * 64 + 8 * (12 * 128 * 128) + 9 * 128 * 64
    per_pixel = at_half / 4 + at_quarter / 16 + at_eighth / 64
    with torch.device("meta"):
        counted = multiply_accumulates(ERFNet(num_classes=19).eval(), torch.empty(1, 3, 64, 64))
        described = describe(ERFNet(num_classes=19), (512, 1024))
    assert counted == per_pixel * 64 * 64
    assert set(described.macs.values()) == {per_pixel * 512 * 1024}
    assert round(per_pixel * 512 * 1024 / 1e9, 2) == 26.61
    assert described.parameters == described.trained == 2_064_256
    assert described.sizes["logits"] == "512 x 1024"


def test_dropout_is_as_published() -> None:
    model = ERFNet(num_classes=19)
    layers = (*model.encoder.layers, *model.decoder.layers)
    rates = [layer.dropout.p for layer in layers if hasattr(layer, "dropout")]
    assert rates == [0.03] * 5 + [0.3] * 8 + [0.0] * 4


def test_logits_have_the_sides_of_the_image_with_and_without_an_output_for_void() -> None:
    for void_output in (True, False):
        model = ERFNet(num_classes=5, void_output=void_output).eval()
        assert model.decoder.output_conv.out_channels == 5 + void_output
        for size in ((8, 8), (40, 24), (64, 136)):
            assert model(torch.rand(1, 3, *size)).logits.shape == (1, 5, *size)


def test_sides_and_parts_that_do_not_fit_are_refused() -> None:
    model = ERFNet(num_classes=5).requires_grad_(False)
    model.set_trainable("all")
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="type trainable=all"):
        model.set_trainable("heads")
    with pytest.raises(ValueError, match=r"got 60 x 101; type data\.image_size=\[64,104\]"):
        model(torch.rand(1, 3, 60, 101))


def copies(model: ERFNet) -> dict[str, dict[str, Tensor]]:
    """The same weights as they are found in public."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    in_parallel = {f"module.{name}": value for name, value in (state | ENCODER_HEAD).items()}
    return {
        "as it is": state,
        "with the encoder's head": state | ENCODER_HEAD,
        "from DataParallel": in_parallel,
        "of 2017, without counters": {
            name: value for name, value in in_parallel.items() if "num_batches" not in name
        },
    }


@pytest.mark.parametrize("kind", list(copies(ERFNet(num_classes=1))))
def test_every_public_copy_loads_whole(kind: str, tmp_path: Path) -> None:
    model = randomised()
    torch.save(copies(model)[kind], tmp_path / "new.pth")
    torch.save(copies(model)[kind], tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        other = randomised()
        assert not same(model, other)
        report = runs.fill(other, path)
        assert (report.layout, report.fresh, report.unused) == (ERFNET, (), ())
        assert len(report.loaded) == len(model.state_dict())
        assert same(model, other)


def test_half_precision_is_loaded_as_float32(tmp_path: Path) -> None:
    state, other = randomised().state_dict(), randomised()
    halves = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file(halves, tmp_path / "half.safetensors")
    load_checkpoint(other, tmp_path / "half.safetensors")
    wanted = {name: value.to(state[name].dtype) for name, value in halves.items()}
    assert differing(other.state_dict(), wanted) == []


def test_what_a_file_lacks_or_has_too_much_is_named(tmp_path: Path) -> None:
    state, path = dict(randomised().state_dict()), tmp_path / "broken.safetensors"
    del state["encoder.layers.3.conv1x3_2.weight"]
    save_file(state | {"decoder.layers.9.bias": torch.zeros(2)}, path)
    named = r"missing: encoder\.layers\.3\.conv1x3_2\.weight.*unexpected: decoder\.layers\.9\.bias"
    with pytest.raises(CheckpointError, match=named):
        runs.fill(randomised(), path)


def test_other_classes_and_random_weights_to_add_to_are_refused(tmp_path: Path) -> None:
    save_weights(randomised(), tmp_path / "m.safetensors")
    for model, options, message in (
        (randomised(11), {}, r"has 20 class outputs, the model 12 \(data\.num_cl"),
        (randomised(void_output=False), {}, "20 class outputs, the model 19.*void_output=true"),
        (randomised(), {"delta_weights": True}, "delta_weights=false"),
    ):
        with pytest.raises(CheckpointError, match=message):
            runs.fill(model, tmp_path / "m.safetensors", **options)


def published() -> ERFNet:
    """The network with its weights for Cityscapes, where this machine has them."""
    if not PUBLISHED.is_file():
        pytest.skip(f"no weights at {PUBLISHED}")
    model = ERFNet(num_classes=19)
    load_checkpoint(model, PUBLISHED)
    return model.eval()


def test_of_the_published_file_only_the_encoders_own_head_is_left_out() -> None:
    model = published()
    state, file = model.state_dict(), load_file(PUBLISHED)
    assert file.keys() == state.keys() | ENCODER_HEAD.keys()
    assert differing(state, {name: file[name].to(state[name].dtype) for name in state}) == []


def test_the_published_weights_know_road_and_sky() -> None:
    """On CamVid's photographs, in their own size; they were not trained on these."""
    model = published()
    folder = SHARED / "camvid"
    hits, pixels = np.zeros(2), np.zeros(2)
    for path in sorted((folder / "val").iterdir())[::34]:
        with Image.open(path) as photograph:
            image = torch.from_numpy(np.array(photograph.convert("RGB")))
        with Image.open(folder / "valannot" / f"{path.stem}.png") as labels:
            truth = np.array(labels)
        with torch.inference_mode():
            logits = model(image.permute(2, 0, 1)[None].float() / 255).logits
        found = logits.argmax(1)[0].numpy()
        for at, (theirs, ours) in enumerate(((CAMVID_ROAD, ROAD), (CAMVID_SKY, SKY))):
            hits[at] += (found[truth == theirs] == ours).sum()
            pixels[at] += (truth == theirs).sum()
    assert (pixels > 10_000).all()
    assert (hits / pixels > 0.8).all(), hits / pixels


def test_training_is_refused_before_any_data_is_read(tmp_path: Path) -> None:
    cfg = load(
        "+experiment=baseline", "model=erfnet", "data=camvid", "paths.camvid=/nowhere",
        "outlier_exposure=cut_paste", "paths.outlier_objects=/nowhere",
        "benchmark=[synth_anomaly]",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"ERFNet gives no masks.*type task=evaluate checkpoint="):
        train(cfg, tmp_path / "run")


@pytest.mark.slow
def test_weights_are_evaluated_by_a_command(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("EOMT_OUTPUTS", str(tmp_path / "out"))
    torch.manual_seed(0)
    torch.save(copies(randomised(9))["from DataParallel"], tmp_path / "erfnet.pth")
    overrides = (
        "task=evaluate", "model=erfnet", f"checkpoint={tmp_path}/erfnet.pth", "debug=fast",
        "data.image_size=[32,64]", "scorer=[msp,max_logit,entropy]", "score=msp", "tracking=none",
        "benchmark=[synth_anomaly]", "trainer.num_workers=0",
        "evaluator.bits=17", "evaluator.figures=0",
    )  # fmt: skip
    outcome = run(capfd, *overrides)
    assert outcome.code == 0, outcome.err
    assert "(official ERFNet): 343 tensors" in outcome.out
    metrics = metrics_of(only_run(tmp_path / "out", "evaluate"))["metrics"]
    assert metrics.keys() >= {f"synth_anomaly/{n}/ap" for n in ("msp", "max_logit", "entropy")}
