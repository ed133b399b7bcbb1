"""Reads anomaly benchmarks of image files by one class; conf/benchmark/ says how they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from eomt_exp.contracts import ANOMALY, NORMAL, VOID, DataError, UserError
from eomt_exp.data.files.decode import decode_labels
from eomt_exp.data.files.file_set import (
    AnomalySet,
    OnBroken,
    checked_component_sizes,
    published_size,
)
from eomt_exp.data.files.label_values import Values, value_table
from eomt_exp.data.files.layout_search import SearchPaths, find_layout
from eomt_exp.data.files.layouts import Found, Layout, Pair


class AnomalyFolder(AnomalySet):
    """Reads photographs with anomalies; three lists say which label value means what.

    Images without any anomaly stay: leaving them out, as the usual script does, lifts the AP of
    Fishyscapes Static by 24 points.
    """

    def __init__(
        self,
        root: str | Path | None,
        name: str,
        layouts: Mapping[str, Layout],
        folders: Sequence[str] = (),
        collection: str | None = None,
        images_root: str | Path | None = None,
        split: str | None = None,
        labels: str | None = None,
        known_objects: bool = True,
        known_object_names: Sequence[str] = (),
        only_with_anomalies: bool | None = None,
        anomaly_values: Values = (2,),
        normal_values: Values = (0,),
        void_values: Values = (),
        expected_images: int | Mapping[str, int] | None = None,
        component_sizes: Sequence[int] | None = None,
        on_broken: OnBroken = "error",
        where: str = "",
    ) -> None:
        """`name` is the benchmark's key: its folder is set by paths.<name> or EOMT_<NAME>.

        The first of `layouts` that fits is taken, in `root` (a folder or zip) or in what is called
        one of `folders` there; with a `collection`, `root` is paths.<collection> and holds several
        benchmarks, so that only such a folder will do. `images_root` is searched for images too.
        `split` and `labels` fill {split} and {labels} in layouts. known_objects=False leaves out
        images whose names begin with one of `known_object_names`, `only_with_anomalies` those
        without one (it reads all label maps; False: of a set that is such a choice, take all).
        Label values: numbers, or "2-200" for a range. `expected_images` may be given by split.
        `where` is the key that it is configured at; build says it.
        UserError, DataError: what is wrong and what to type.
        """
        option = where if where == "data.train" else f"benchmark.{name}"
        if anomaly_values in ((), []):
            raise UserError("anomaly_values is empty; give at least one label value, such as [1].")
        table = value_table({
            "normal_values": (NORMAL, normal_values),
            "anomaly_values": (ANOMALY, anomaly_values),
            "void_values": (VOID, void_values),
        })  # fmt: skip
        expected = published_size(expected_images, split, f"{option}.split")
        options = {k: v for k, v in (("split", split), ("labels", labels)) if v is not None}
        searched = folders if collection else ["", *folders]
        paths = SearchPaths(root, images_root, searched, collection or name, option)
        found = find_layout(layouts, paths, options)
        if not known_objects:
            known, expected = tuple(known_object_names), None
            found = found._replace(pairs=[p for p in found.pairs if not p.name.startswith(known)])
        if only_with_anomalies is False:
            expected = None
        if only_with_anomalies:
            found = found._replace(pairs=_with_anomalies(found, table))
        advice = f"Add them to {option}.anomaly_values, .normal_values or .void_values."
        super().__init__(found, table, on_broken, option, advice)
        self.expected_images = expected
        self.component_sizes = checked_component_sizes(component_sizes)


def _with_anomalies(found: Found, table: Mapping[int, int]) -> list[Pair]:
    """Keep the pairs whose label map holds an anomaly, and those not readable, for the error."""
    values = [value for value, ours in table.items() if ours == ANOMALY]

    def has_one(pair: Pair) -> bool:
        if pair.labels is None:
            return False
        try:
            stored = decode_labels(found.labels.read(pair.labels), pair.labels)
        except DataError:
            return True
        return bool(np.isin(stored, values).any())

    with ThreadPoolExecutor(max_workers=4) as pool:
        kept = list(pool.map(has_one, found.pairs))
    return [pair for pair, keep in zip(found.pairs, kept, strict=True) if keep]
