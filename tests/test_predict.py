"""task=predict and load_detector: what is found in one's own pictures and videos, and written."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hydra import compose
from PIL import ExifTags, Image

from eomt_exp import runs
from eomt_exp.contracts import DataError, UserError
from eomt_exp.data.files.pictures import find_pictures
from eomt_exp.data.video import Video
from eomt_exp.engine.detector import AnyDetector, Detection
from eomt_exp.evaluator.regions import Region, regions_of
from eomt_exp.report.overlay import HeatScale, overlay
from eomt_exp.report.predictions import Writer, write_gallery, write_tables
from eomt_exp.tasks import predict
from eomt_exp.trained_detector import TrainedDetector
from tests.command_line import run
from tests.data_files import save


class RedDetector(AnyDetector):
    """Scores a pixel by its red channel."""

    scorers, score, image_size, batch_size = {"red": None}, "red", (8, 8), 2

    def stream(self, images, only=None, known=True) -> Iterator[Detection]:
        for image in images:
            yield Detection({"red": image[..., 0].astype(np.float32)}, None)


def picture(top: int, left: int, red: int = 200, shape: tuple[int, int] = (40, 60)) -> np.ndarray:
    """A dark picture with a red square of 6 x 10 pixels."""
    image = np.full((*shape, 3), 20, np.uint8)
    image[top : top + 6, left : left + 10, 0] = red
    return image


def test_regions_are_the_components_at_or_above_the_threshold() -> None:
    score = np.zeros((20, 30), np.float32)
    score[2:5, 3:10] = 0.5
    score[2, 3] = 0.9
    score[10:12, 20:29] = 0.8
    score[15, 15] = 1.0
    first, second = regions_of(score, 0.5, smallest=2)
    assert first == Region(10, 20, 2, 9, 18, pytest.approx(0.8), pytest.approx(0.8))
    assert second == Region(
        2, 3, 3, 7, 21, pytest.approx((0.9 + 20 * 0.5) / 21), pytest.approx(0.9)
    )
    assert len(regions_of(score, 0.5)) == 3
    assert regions_of(score, 1.1) == []


def test_a_detector_takes_arrays_pictures_and_files_in_any_thread(tmp_path: Path) -> None:
    detector = TrainedDetector(RedDetector(), threshold=100.0, class_names=("road",))
    image = picture(5, 9)
    save(tmp_path / "a.png", image)
    scores = [detector(one) for one in (image, Image.fromarray(image), tmp_path / "a.png")]
    assert all((score == image[..., 0]).all() for score in scores)
    lying = Image.fromarray(np.rot90(image))
    lying.getexif()[ExifTags.Base.Orientation] = 6  # to be turned clockwise
    assert (detector(lying) == image[..., 0]).all()
    with ThreadPoolExecutor(4) as pool:
        pictures = [picture(i, 2 * i) for i in range(20)]
        for one, score in zip(pictures, pool.map(detector, pictures), strict=True):
            assert (score == one[..., 0]).all()
    assert [s.shape for s in detector.batch([image, picture(1, 1, shape=(16, 24))])] == [
        (40, 60), (16, 24),
    ]  # fmt: skip
    (found,) = detector.regions(image)
    assert found[:5] == (5, 9, 6, 10, 60)
    assert detector.regions(image, threshold=201) == []
    with pytest.raises(UserError, match="no threshold"):
        TrainedDetector(RedDetector(), None).regions(image)
    with pytest.raises(UserError, match="is no file"):
        detector(tmp_path / "b.png")


def test_pictures_are_found_and_named_apart(tmp_path: Path) -> None:
    for name in ("x/1.jpg", "x/10.jpg", "x/2.jpg", "y/1.jpg", "y/1.png"):
        save(tmp_path / name, picture(1, 1))
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(tmp_path / "x/1.jpg", "left/1.jpg")

    def names(*where: str) -> list[str]:
        return [one.name for one in find_pictures([str(tmp_path / one) for one in where])]

    assert names("x") == ["1", "2", "10"]
    assert names("") == ["x/1", "x/2", "x/10", "y/1", "y/1~2"]
    assert names("x/1*.jpg") == ["1", "10"]
    assert names("z.zip", "x/1.jpg", "x") == ["left/1", "1", "2", "10"]
    for wrong, message in (("q", "does not exist"), ("z.txt", "no picture by its name")):
        (tmp_path / "z.txt").write_text("")
        with pytest.raises(DataError, match=message):
            names(wrong)


def test_a_hot_pixel_is_bright_and_a_region_has_a_white_line() -> None:
    image, score = picture(10, 10), np.zeros((40, 60), np.float32)
    score[10:16, 10:20] = 5.0
    scale = HeatScale.of([score], threshold=4.0)
    assert (scale.low, scale.high) == (0.0, 5.0)
    drawn = overlay(image, score, scale, score >= 4).astype(int)
    assert drawn[12, 15].sum() > 3 * drawn[30, 30].sum()
    assert (drawn[10, 10:20] == 255).all()
    assert (drawn[12, 15] < 255).any()
    assert HeatScale.of([np.full((4, 4), np.nan)], None).levels(score).shape == score.shape


def test_files_of_a_picture_say_its_scores_mask_and_regions(tmp_path: Path) -> None:
    image, score = picture(5, 9), picture(5, 9)[..., 0].astype(np.float32) / 100
    scale = HeatScale(0.2, 2.0)
    Writer(tmp_path, 1.0, 10, "png", True, True).write("a/b", image, score, scale)
    Writer(tmp_path / "npz", None, 10, "npz", False, True).write("c", image, score, scale)
    with Image.open(tmp_path / "scores/a/b.png") as stored:
        levels = np.asarray(stored).astype(np.float64)
        low, high = (float(stored.text[f"score_at_{end}"]) for end in (0, 65535))
    np.testing.assert_allclose(low + levels / 65535 * (high - low), score, atol=2e-5)
    assert (np.load(tmp_path / "npz/scores/c.npz")["score"] == score).all()
    assert ((np.asarray(Image.open(tmp_path / "masks/a/b.png")) == 255) == (score >= 1)).all()
    assert not (tmp_path / "npz/masks").exists()  # there is no threshold
    assert Image.open(tmp_path / "overlays/a/b.jpg").size == (60, 40)
    found = Writer(tmp_path, 1.0, 10, "png", True, True).all_found(["a/b", "broken"])
    write_tables(found, tmp_path)
    (row,) = csv.DictReader((tmp_path / "regions.csv").open())
    assert (row["image"], row["top"], row["left"], row["area"]) == ("a/b", "5", "9", "60")
    assert json.loads((tmp_path / "regions.json").read_text())[0]["regions"][0]["width"] == 10


@pytest.fixture
def work(tmp_path: Path) -> predict._Work:
    return predict._Work(RedDetector(), Writer(tmp_path, 100.0, 10, "none", True, False), True)


def test_what_is_done_is_not_done_again_and_broken_pictures_are_named(
    work: predict._Work, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for i in range(3):
        save(tmp_path / f"in/{i}.png", picture(3 * i, i))
    (tmp_path / "in/9.png").write_text("no picture")
    pictures = find_pictures([str(tmp_path / "in")])
    predict._predict_pictures(work, pictures[1:], "t")
    before = (tmp_path / "found/1.json").stat().st_mtime_ns
    scale = (tmp_path / "scale.json").read_text()
    predict._predict_pictures(work, pictures, "t")
    assert (tmp_path / "found/1.json").stat().st_mtime_ns == before
    assert (tmp_path / "scale.json").read_text() == scale
    assert [one["image"] for one in json.loads((tmp_path / "regions.json").read_text())] == [*"012"]
    assert "9.png cannot be read" in capfd.readouterr().out
    work.skips = False
    with pytest.raises(DataError, match=r"9\.png.*task\.on_broken=skip"):
        predict._predict_pictures(work, pictures, "t")


def make_video(path: Path, count: int) -> Video:
    """A red square that moves one pixel to the right each frame."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 60, 40, "yuv444p"
        stream.options = {"crf": "0"}
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(picture(8, i), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return Video(path)


def test_a_video_keeps_its_frames_and_times_and_goes_on_where_it_was_broken_off(
    work: predict._Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "FRAMES_OF_A_PART", 5)
    video = make_video(tmp_path / "in.mp4", 12)
    scored: list[int] = []
    stream = RedDetector.stream

    def broken_off(self, images, only=None, known=True):
        for found in stream(self, images):
            scored.append(1)
            if len(scored) == 8:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(RedDetector, "stream", broken_off)
    monkeypatch.setattr(predict, "FIRST", 1)
    with pytest.raises(KeyboardInterrupt):
        predict._predict_video(work, video)
    assert not (tmp_path / "overlay.mp4").exists()
    scored[:] = [1] * 100
    predict._predict_video(work, video)
    assert len(scored) == 100 + 12 - 5  # one part of five was whole
    made = Video(tmp_path / "overlay.mp4")
    times = [[one.time * v.time_base for one in v.frames(print)] for v in (video, made)]
    assert times[0] == times[1]
    found = json.loads((tmp_path / "regions.json").read_text())
    assert [one["image"] for one in found] == [f"{i:06d}" for i in range(12)]
    lefts = [one["regions"][0]["left"] for one in found]
    assert lefts == [pytest.approx(i, abs=1) for i in range(12)]
    assert not (tmp_path / "parts").exists()
    hot = [frame.image[11, :, 0].astype(int).argmax() for frame in made.frames(print)]
    assert all(abs(place - i) < 12 for i, place in enumerate(hot))


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    pytest.importorskip("av")
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(DataError, match=r"a\.mp4 cannot be read as a video"):
        Video(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([], "needs input="),
        (["input=nowhere"], "does not exist"),
        (["input=.", "task.maps=jpg"], "png, npz or none"),
    ],
)
def test_what_is_typed_wrong_is_one_line(capfd, tmp_path: Path, typed, message) -> None:
    outcome = run(capfd, "task=predict", f"paths.outputs={tmp_path}", *typed)
    assert outcome.code == 2
    assert message in outcome.err


def test_the_page_shows_the_most_anomalous_first_and_orders_by_choice(
    work: predict._Work, tmp_path: Path, browser
) -> None:
    for name, red in (("low", 120), ("a&b <x>", 250), ("none", 20)):
        image = picture(5, 9, red)
        work.writer.write(name, image, image[..., 0].astype(np.float32), HeatScale(0, 255))
    found = work.writer.all_found(["low", "a&b <x>", "none"])
    page = browser.new_page(viewport={"width": 390, "height": 800})
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.goto(write_gallery(found, tmp_path, "A title", "A lead").as_uri())
    names = "[...document.querySelectorAll('#cards li')].map(one => one.dataset.name)"
    assert page.evaluate(names) == ["a&b <x>", "low", "none"]
    page.select_option("#order", "name")
    assert page.evaluate(names) == ["a&b <x>", "low", "none"]
    page.select_option("#order", "share")
    assert page.evaluate(names)[-1] == "none"
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.click("#cards li:first-child a")
    page.wait_for_load_state()
    assert page.url.endswith(".jpg")
    assert not messages


@pytest.mark.usefixtures("hydra_at_conf")
def test_a_folder_keeps_to_the_settings_that_its_files_were_written_with(tmp_path: Path) -> None:
    def begin(*typed: str) -> None:
        given = ["task=predict", "input=photos", "hydra.run.dir=unused", *typed]
        runs.begin(compose("config", overrides=given), tmp_path, besides=predict.DECIDE)

    for _ in range(2):
        begin()
    for other in ("threshold=0.5", "input=others", "task.maps=npz", "score=msp"):
        with pytest.raises(UserError, match=f"other settings: {other.partition('=')[0]}"):
            begin(other)
