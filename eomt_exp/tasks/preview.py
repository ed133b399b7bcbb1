"""`task=preview` shows training samples with what they teach; no model is built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from eomt_exp.build import build
from eomt_exp.contracts import Exposure, ImageSet, Sample, UserError
from eomt_exp.data.training_set import TrainingSet
from eomt_exp.evaluator.metrics import Metric
from eomt_exp.files import write_text
from eomt_exp.report.sample_gallery import gallery_figure
from eomt_exp.report.tables import Entry, Table
from eomt_exp.report.terminal import make_console, rich_table
from eomt_exp.report.text_tables import rows_as_csv
from eomt_exp.tasks.start import tell_without_effect

GALLERY, MANIFEST = "preview.png", "manifest.csv"
MOST_IMAGES = 64  # a picture may have 65536 rows of pixels
# A sample is named by its index in the training set; boxes and pixels are of the training image.
COLUMNS = ("sample", "image", "object", "top", "left", "height", "width", "pixels")


def run(cfg: DictConfig) -> None:
    """Write a gallery of task.images samples of task.epoch, and a manifest of what is pasted.

    They are the very samples of a training with this configuration, spread evenly over its images.
    """
    count, epoch = cfg.task.images, cfg.task.epoch
    whole = type(count) is int and type(epoch) is int
    if not whole or not 1 <= count <= MOST_IMAGES or epoch < 0:
        raise UserError(
            f"Got task.images={count} and task.epoch={epoch}; allowed are whole numbers, of images "
            f"from 1 to {MOST_IMAGES} and of epochs from 0."
        )
    tell_without_effect(cfg)
    images: ImageSet = build(cfg.data.train, "data.train")
    exposure: Exposure | None = build(cfg.outlier_exposure, "outlier_exposure")
    augmentation = build(cfg.augmentation, "augmentation")
    training = TrainingSet(images, augmentation, exposure, cfg.data.num_classes, cfg.seed)
    training.set_epoch(epoch)
    total = len(training)
    count = min(count, total)
    indices = [place * total // count for place in range(count)]
    samples = {index: training[index] for index in indices}
    folder = Path(HydraConfig.get().runtime.output_dir)
    title = f"{cfg.name}: {count} of {total} training images, epoch {epoch}, seed {cfg.seed}"
    gallery = gallery_figure(samples, images.class_names, folder / GALLERY, title)
    rows = pasted_objects(samples, exposure)
    write_text(folder / MANIFEST, rows_as_csv(COLUMNS, rows))
    _print(rows, gallery, folder / MANIFEST)


def pasted_objects(
    samples: Mapping[int, Sample], exposure: Exposure | None
) -> list[tuple[int | str, ...]]:
    """List what was pasted into samples, by their indices: a row of COLUMNS an object."""
    if exposure is None:
        return []
    return [
        (index, sample.name, exposure.pool.name(one.number), *one[1:])
        for index, sample in samples.items()
        for one in sample.pasted
    ]


def _print(rows: list[tuple[int | str, ...]], gallery: Path, manifest: Path) -> None:
    console = make_console()
    if rows:
        looks = ["number" if isinstance(value, int) else "name" for value in rows[0]]
        entries = [
            [Entry(str(value), look=look) for value, look in zip(row, looks, strict=True)]
            for row in rows
        ]
        console.print(rich_table(Table([Metric(name) for name in COLUMNS], entries), "pasted"))
    else:
        console.print("nothing is pasted into these images.")
    for name, path in (("gallery", gallery), ("manifest", manifest)):
        console.print(f"{name:<10} {path}", markup=False, soft_wrap=True)
