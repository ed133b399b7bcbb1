"""Opens a trained model as a detector that takes pictures and names what it found: the Python API.

detector = eomt_exp.load_detector("outputs/eim_oe/<run>")
score = detector("street.jpg")         # (H, W) float32, higher is more anomalous
for region in detector.regions("street.jpg"):
    print(region.top, region.left, region.area, region.mean)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from eomt_exp import runs
from eomt_exp.contracts import UserError
from eomt_exp.data.files.decode import decode_image
from eomt_exp.engine.detector import AnyDetector, Detection
from eomt_exp.evaluator.regions import Region, regions_of
from eomt_exp.weights.weight_files import HUB, weight_files

Picture = np.ndarray | Image.Image | str | Path  # (H, W, 3) uint8 RGB, a PIL image, or a file


class TrainedDetector(AnyDetector):
    """Is a detector with the threshold and the class names that its validation came to.

    Several threads may use it at once. `threshold` is of its `score`: evaluator.operating_fpr of
    the pixels of its run's validation images reach it; None where the run measured no known
    classes. `class_names` are those of the known classes.
    """

    def __init__(
        self, detector: AnyDetector, threshold: float | None, class_names: Sequence[str] = ()
    ) -> None:
        self.detector, self.threshold, self.class_names = detector, threshold, tuple(class_names)
        self.scorers, self.score = detector.scorers, detector.score
        self.image_size, self.batch_size = detector.image_size, detector.batch_size
        self.finds_classes = detector.finds_classes

    @classmethod
    def of(cls, detector: AnyDetector, source: str | Path) -> TrainedDetector:
        """Give a detector what is known of the run that its model comes from."""
        found = runs.validated(source)
        return cls(detector, found.thresholds.get(detector.score), found.class_names)

    def stream(
        self, images: Iterable[np.ndarray], only: Sequence[str] | None = None, known: bool = True
    ) -> Iterator[Detection]:
        """Yield what the detector finds in each image (H, W, 3) uint8 RGB, in order."""
        return self.detector.stream(images, only, known)

    def __call__(self, image: Picture) -> np.ndarray:
        """Score a picture: (H, W) float32 in its own size, higher is more anomalous."""
        return super().__call__(as_array(image))

    def batch(self, images: Iterable[Picture]) -> list[np.ndarray]:
        """Score pictures of any sizes, whose windows share forward passes."""
        pictures = (as_array(image) for image in images)
        return [f.scores[self.score] for f in self.stream(pictures, (self.score,), known=False)]

    def regions(
        self, image: Picture, threshold: float | None = None, smallest: int = 1
    ) -> list[Region]:
        """List the regions of a picture that score at least `threshold`, highest mean score first.

        Without one, the detector's own; UserError where that is None. Regions under `smallest`
        pixels are left out.
        """
        threshold = self.threshold if threshold is None else threshold
        if threshold is None:
            raise UserError(
                "this model comes with no threshold: its run measured no known classes "
                "(evaluator.known_classes=false), or it is no run. Say regions(image, threshold=…)."
            )
        return regions_of(self(image), threshold, smallest)


def load_detector(
    where: str | Path, score: str | None = None, device: str = "cpu", precision: str = "no"
) -> TrainedDetector:
    """Load the detector of a finished run, or of what task=export task.format=hugging_face wrote.

    `where` is such a folder, or hf://owner/name[@revision] of one on the hub. `score` names one of
    the run's scorers; without it, the run's own choice. `device` is one of PyTorch's, `precision`
    no, bf16 or fp16. Raises UserError for another folder, an unfinished run, or an unknown score.
    """
    folder = Path(where).expanduser()
    if str(where).startswith(HUB):
        folder = weight_files(where)[0].parent
        if not runs.is_run(folder):
            raise UserError(
                f"{where} holds weights and no {runs.CONFIG} that says of which model; type python "
                f"-m eomt_exp task=predict checkpoint={where} with its model, backbone and data."
            )
    cfg, model = runs.load_model(folder)
    detector = runs.make_detector(cfg, model.to(device), precision, score)
    return TrainedDetector.of(detector, folder)


def as_array(image: Picture) -> np.ndarray:
    """Return a picture as (H, W, 3) uint8 RGB; DataError for a file that cannot be read."""
    if isinstance(image, (str, Path)):
        path = Path(image).expanduser()
        if not path.is_file():
            raise UserError(f"{path} is no file; a detector takes a picture's path, or its pixels.")
        return decode_image(path.read_bytes(), str(path))
    if isinstance(image, Image.Image):
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    return image
