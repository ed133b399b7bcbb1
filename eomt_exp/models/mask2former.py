"""Mask2Former (Cheng et al., CVPR 2022, arXiv 2112.01527) decodes masks from queries over a Swin.

Every layer is transformers' `Mask2FormerForUniversalSegmentation`, with a Swin (Liu et al., ICCV
2021) inside. What is ours: ImageNet's normalisation, the anomaly head on the queries, one optional
outlier class, and groups of trainable parts. The parts are called here one after the other, since
transformers' own forward pass hides the queries and classifies them after every layer, also where
only the last prediction is wanted. Published weights are renamed by weights/hugging_face.py.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from eomt_exp.contracts import AnomalyHead, ClassHead, DistanceHead, MaskOutput, Part, UserError
from eomt_exp.models.image_sides import check_sides
from eomt_exp.models.query_model import QueryModel
from eomt_exp.ranges import Share

STRIDE = 32  # of the last stage; transformers' own processor pads images to it
_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_GROUPS = 32  # of the pixel decoder's GroupNorm


class Mask2Former(QueryModel):
    """Predicts one mask and one class per query from an image, masks at a quarter of its sides.

    Class outputs: K known classes, the outlier class where `outlier_class` asks for one, and
    no-object last. `embed_dim` is the width of Swin's first stage, which doubles from stage to
    stage; `depths` and `num_heads` are per stage. `hidden_dim` is the width D of the queries and of
    the pixel decoder. `decoder_layers` is how many layers the queries pass; transformers and the
    official code write one more, for the prediction before the first.
    """

    encoder: Any  # transformers' SwinBackbone
    masked_attention = True  # always
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        num_queries: int = 100,
        embed_dim: int = 96,
        depths: list[int],
        num_heads: list[int],
        window_size: int = 7,
        drop_path: Share = 0.3,
        hidden_dim: int = 256,
        pixel_decoder_layers: int = 6,
        decoder_layers: int = 9,
        outlier_class: bool = False,
        class_head: ClassHead | None = None,
        anomaly_head: AnomalyHead | None = None,
    ) -> None:
        super().__init__()
        _check_widths(embed_dim, depths, num_heads, hidden_dim)
        library = _transformers()
        swin = library.SwinConfig(
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            window_size=window_size,
            drop_path_rate=drop_path,
            out_features=_STAGES,
        )
        network = library.Mask2FormerForUniversalSegmentation(
            library.Mask2FormerConfig(
                backbone_config=swin,
                num_labels=num_classes + int(outlier_class),
                num_queries=num_queries,
                hidden_dim=hidden_dim,
                feature_size=hidden_dim,
                mask_feature_size=hidden_dim,
                encoder_layers=pixel_decoder_layers,
                encoder_feedforward_dim=4 * hidden_dim,
                decoder_layers=decoder_layers + 1,
                dim_feedforward=8 * hidden_dim,
            )
        )
        # Its level_embed is made by torch.Tensor(…), which no `with torch.device("meta")` reaches.
        network.to(torch.get_default_device())
        self.num_classes, self.num_queries = num_classes, num_queries
        self.num_blocks = decoder_layers
        self.encoder = network.model.pixel_level_module.encoder
        # It normalises what only a classifier would read: weights without a gradient.
        self.encoder.swin.layernorm = nn.Identity()
        self.pixel_decoder = network.model.pixel_level_module.decoder
        self.transformer_decoder = network.model.transformer_module
        self.class_head: Any = class_head or network.class_predictor
        self._has_distances = isinstance(class_head, DistanceHead)
        self.anomaly_head = anomaly_head
        for name, value in (("mean", IMAGENET_DEFAULT_MEAN), ("std", IMAGENET_DEFAULT_STD)):
            pixels = torch.tensor(value).view(1, 3, 1, 1)
            self.register_buffer(f"pixel_{name}", pixels, persistent=False)

    def forward(self, images: Tensor) -> MaskOutput:
        """(B, 3, H, W) RGB in [0, 1] -> MaskOutput, masks (B, Q, H/4, W/4).

        `aux` holds the prediction of the queries as they are learnt, then those after each layer
        but the last. Raises UserError where 32 does not divide H and W.
        """
        check_sides(images, STRIDE, "mask2former")
        maps = self.encoder((images - self.pixel_mean) / self.pixel_std).feature_maps
        decoded = self.pixel_decoder(maps)
        found = self.transformer_decoder(decoded.multi_scale_features, decoded.mask_features)
        states = zip(found.masks_queries_logits, found.intermediate_hidden_states, strict=True)
        wanted = list(states)[0 if self._supervises else -1 :]
        *aux, last = (self._output(masks, queries) for masks, queries in wanted)
        return self._finished(last, aux)

    def _output(self, masks: Tensor, queries: Tensor) -> MaskOutput:
        """(B, Q, h, w) masks and (Q, B, D) normalised queries -> a prediction."""
        queries = queries.transpose(0, 1)
        return MaskOutput(masks, self.class_head(queries), queries, None, self.num_classes)

    def parts(self) -> list[Part]:
        """List embeddings and blocks of the encoder, both decoders, queries and heads."""
        blocks = self._blocks()
        embeddings = (*self.encoder.swin.embeddings.parameters(),)
        parts = [Part("embeddings", "backbone", len(blocks) - 1, embeddings)]
        for index, block in enumerate(blocks):
            behind = len(blocks) - 1 - index
            parts.append(Part(f"block {index}", "backbone", behind, (*block.parameters(),)))
        parts.append(Part("pixel decoder", "decoder", 0, (*self.pixel_decoder.parameters(),)))
        decoder = self.transformer_decoder
        heads = {
            "queries": nn.ModuleList([decoder.queries_features, decoder.queries_embedder]),
            "class head": self.class_head,
            "mask head": decoder.decoder.mask_predictor,
        }
        own = {id(p) for module in heads.values() for p in module.parameters()}
        layers = tuple(p for p in decoder.parameters() if id(p) not in own)
        parts.append(Part("transformer decoder", "decoder", 0, layers))
        parts += [Part(n, "head", 0, (*module.parameters(),)) for n, module in heads.items()]
        return parts + self._anomaly_head_parts()

    def _blocks(self) -> list[nn.ModuleList]:
        """Return Swin's blocks over all stages; what closes a stage is with its last block."""
        blocks = []
        for name, stage in zip(_STAGES, self.encoder.swin.encoder.layers, strict=True):
            *others, last = stage.blocks
            closing = [] if stage.downsample is None else [stage.downsample]
            blocks += [nn.ModuleList([block]) for block in others]
            blocks.append(nn.ModuleList([last, *closing, self.encoder.hidden_states_norms[name]]))
        return blocks


def _transformers() -> Any:
    """Return transformers, which is an optional extra and takes seconds to import."""
    try:
        return import_module("transformers")
    except ModuleNotFoundError as error:
        raise UserError(
            f"model=mask2former_… is one of transformers', and {error.name} is not installed: "
            'type pip install -e ".[mask2former]", or take another, such as model=eomt.'
        ) from error


def _check_widths(embed_dim: int, depths: list[int], num_heads: list[int], hidden_dim: int) -> None:
    """Raise UserError for widths that cannot be divided as the layers divide them."""
    if not len(depths) == len(num_heads) == len(_STAGES):
        raise UserError(
            f"model.depths and model.num_heads need a number for each of the {len(_STAGES)} "
            f"stages, got {depths} and {num_heads}."
        )
    widths = [embed_dim * 2**stage for stage in range(len(_STAGES))]
    if any(width % heads for width, heads in zip(widths, num_heads, strict=True)):
        raise UserError(f"model.num_heads must divide the widths {widths}, got {num_heads}.")
    if hidden_dim % _GROUPS:
        raise UserError(f"model.hidden_dim must be a multiple of {_GROUPS}, got {hidden_dim}.")
