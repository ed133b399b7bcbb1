"""Evaluation with official_quirks against EoMT's own, restated line by line from its repository.

It is `eval_step` of mask_classification_semantic.py with what that calls: windows of whole grey
levels, a mask over all tokens in every joint block, coins for open blocks too, a mean of windows.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from eomt_exp.engine.detector import Detector
from eomt_exp.models.eomt import EoMT
from tests.planted import tiny_vit
from tests.test_parity_inference import Evidence

SIDE, CLASSES, QUERIES, DEPTH = 64, 5, 7, 4
PROBS = (0.0, 0.5, 1.0, 1.0)  # of the joint blocks, which are all there are here


def official_windows(image: np.ndarray) -> tuple[Tensor, list[tuple[int, int]]]:
    """(n, 3, SIDE, SIDE) uint8 crops, and where along the longer side each begins and ends."""
    height, width = image.shape[:2]
    factor = max(SIDE / height, SIDE / width)
    new = (round(height * factor), round(width * factor))
    resized = Image.fromarray(image).resize((new[1], new[0]), Image.BILINEAR)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    count = math.ceil(max(new) / SIDE)
    overlap = count * SIDE - max(new)
    per_crop = overlap / (count - 1) if overlap > 0 else 0
    starts = [int(j * (SIDE - per_crop)) for j in range(count)]
    spans = [(start, start + SIDE) for start in starts]
    if new[0] > new[1]:
        return torch.stack([pixels[:, a:b, :] for a, b in spans]), spans
    return torch.stack([pixels[:, :, a:b] for a, b in spans]), spans


def official_outputs(model: EoMT, crops: Tensor) -> tuple[Tensor, Tensor]:
    """Mask and class logits of the last prediction for (n, 3, SIDE, SIDE) crops in [0, 1]."""
    vit, count = model.encoder.backbone, model.num_queries
    x = (crops - model.encoder.pixel_mean) / model.encoder.pixel_std
    x = vit._pos_embed(vit.patch_embed(x))
    front = count + vit.num_prefix_tokens

    def predict(x: Tensor) -> tuple[Tensor, Tensor]:
        x = vit.norm(x)
        queries, patches = x[:, :count], x[:, front:]
        patches = patches.transpose(1, 2).reshape(len(x), -1, *vit.patch_embed.grid_size)
        masks = torch.einsum("bqc,bchw->bqhw", model.mask_head(queries), model.upscale(patches))
        return masks, model.class_head(queries)

    for index, block in enumerate(vit.blocks):
        if index == DEPTH - model.num_blocks:
            x = torch.cat([model.q.weight[None].expand(len(x), -1, -1), x], dim=1)
        masks, _ = predict(x)
        may_see = torch.ones(len(x), x.shape[1], x.shape[1], dtype=torch.bool)
        inside = F.interpolate(masks, vit.patch_embed.grid_size, mode="bilinear")
        may_see[:, :count, front:] = inside.flatten(2) > 0
        prob = model.attn_mask_probs[index - DEPTH + model.num_blocks]
        if prob < 1:
            opened = torch.rand(len(x), count) > prob
            may_see[:, :count, front:][opened] = True
        attn = block.attn
        qkv = attn.qkv(block.norm1(x)).unflatten(2, (3, attn.num_heads, attn.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        seen = F.scaled_dot_product_attention(q, k, v, may_see[:, None])
        x = x + block.ls1(attn.proj(seen.transpose(1, 2).flatten(2)))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return predict(x)


@torch.no_grad()
def official_evidence(model: EoMT, image: np.ndarray) -> Tensor:
    """(K, H, W) class scores of one image, from `torch`'s random numbers as they come."""
    crops, spans = official_windows(image)
    masks, classes = official_outputs(model, crops / 255.0)
    masks = F.interpolate(masks, (SIDE, SIDE), mode="bilinear")
    scores = torch.einsum("bqhw,bqc->bchw", masks.sigmoid(), classes.softmax(dim=-1)[..., :-1])
    is_tall = image.shape[0] > image.shape[1]
    shape = (spans[-1][1], SIDE) if is_tall else (SIDE, spans[-1][1])
    total, times = torch.zeros(CLASSES, *shape), torch.zeros(CLASSES, *shape)
    for score, (start, end) in zip(scores, spans, strict=True):
        where = np.s_[:, start:end, :] if is_tall else np.s_[:, :, start:end]
        total[where] += score
        times[where] += 1
    return F.interpolate((total / times)[None], image.shape[:2], mode="bilinear")[0]


def some_model(official_quirks: bool) -> EoMT:
    """A model whose masks are neither all open nor all shut, and matter."""
    torch.manual_seed(0)
    encoder = tiny_vit((SIDE, SIDE), depth=DEPTH)
    model = EoMT(encoder=encoder, num_classes=CLASSES, num_queries=QUERIES, num_blocks=DEPTH,
                 official_quirks=official_quirks)  # fmt: skip
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif name.startswith(("mask_head", "encoder.backbone.blocks")) and parameter.dim() == 2:
            nn.init.normal_(parameter, std=1.5 * parameter.shape[1] ** -0.5)
    model.set_mask_probs(PROBS)
    return model.eval()


def some_image(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def evidence(model: EoMT, image: np.ndarray) -> Tensor:
    """(K, H, W) class scores, as our detector has them; all windows in one forward pass."""
    scorers = {str(index): Evidence(index) for index in range(CLASSES)}
    detector = Detector(model=model, scorers=scorers, score="0", image_size=(SIDE, SIDE))
    return torch.from_numpy(np.stack([*detector.scores(image)[0].values()]))


@pytest.mark.parametrize("size", [(64, 150), (150, 64), (96, 225), (100, 47)], ids=str)
def test_the_quirks_give_the_official_scores(size: tuple[int, int]) -> None:
    worst = {}
    for quirks in (True, False):
        model, image = some_model(quirks), some_image(size)
        torch.manual_seed(3)
        theirs = official_evidence(model, image)
        after = torch.rand(1)
        torch.manual_seed(3)
        worst[quirks] = float((evidence(model, image) - theirs).abs().max())
        assert quirks == torch.equal(torch.rand(1), after)  # so is the next image's draw
    assert worst[True] < 1e-5
    assert worst[False] > 0.05


@pytest.mark.parametrize("quirks", [True, False])
def test_resized_windows_are_pillows_to_the_bit_under_the_quirks_alone(quirks: bool) -> None:
    model, image, seen = some_model(quirks), some_image((100, 47)), []
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    evidence(model, image)
    theirs = official_windows(image)[0] / 255.0
    apart = float((seen[0] - theirs).abs().max())
    assert apart == 0 if quirks else 0 < apart < 1.1 / 255
