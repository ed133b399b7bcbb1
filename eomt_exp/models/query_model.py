"""Share what every model with queries has: an anomaly head, parts to train, supervised outputs."""

from __future__ import annotations

from typing import Any

from eomt_exp.contracts import MaskOutput, Model, Part, UserError

# What each setting trains, by kind of part; each trains what those before it train.
TRAINABLE = {
    "head": ("anomaly_head",),
    "heads": ("anomaly_head", "head"),
    "last_blocks": ("anomaly_head", "head", "joint", "decoder"),
    "all": ("anomaly_head", "head", "joint", "decoder", "backbone"),
}


class QueryModel(Model):
    """Freezes parts and completes outputs; a sub-class brings the network and lists its parts."""

    class_head: Any  # a ClassHead
    anomaly_head: Any  # an AnomalyHead, or None
    _has_distances = False  # whether the class head is a DistanceHead
    _trains: tuple[str, ...] = TRAINABLE["all"]

    def set_trainable(self, which: str) -> None:
        """Freeze all but `which`: head, heads (+ queries), last_blocks (+ heads), or all.

        Frozen parts get no gradient and stay in eval mode, even after `train()`; what lies before
        the first trained part is computed without autograd. What has no parameters follows
        `train()`, such as DINOv3's random scale of positions, which the trained blocks share.
        """
        if which == "head" and self.anomaly_head is None:
            raise UserError("trainable=head needs a head; add anomaly_head=query_only.")
        self._trains = TRAINABLE[which]
        for part in self.parts():
            for parameter in part.parameters:
                parameter.requires_grad_(part.kind in self._trains)
        self.train(self.training)

    def train(self, mode: bool = True) -> QueryModel:
        """Set train mode for what is trained; frozen parts stay in eval mode."""
        super().train(mode)
        _, *inner = self.modules()
        for module in inner:
            own = list(module.parameters())
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()
        return self

    @property
    def _supervises(self) -> bool:
        """Return whether intermediate predictions are wanted: a frozen body gets no gradient."""
        return self.training and "head" in self._trains

    def _finished(self, output: MaskOutput, aux: list[MaskOutput]) -> MaskOutput:
        """Return the last output with all that is read off its queries, and the supervised ones."""
        queries, logits = output.queries, output.class_logits
        return MaskOutput(  # _replace is no part of a graph of torch 2.11
            output.mask_logits,
            logits,
            queries,
            None if self.anomaly_head is None else self.anomaly_head(queries, logits),
            output.num_classes,
            tuple(aux),
            self.class_head.distances(queries) if self._has_distances else None,
        )

    def _anomaly_head_parts(self) -> list[Part]:
        """List the anomaly head, where there is one."""
        if self.anomaly_head is None:
            return []
        return [Part("anomaly head", "anomaly_head", 0, (*self.anomaly_head.parameters(),))]
