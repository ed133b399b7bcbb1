"""Reads and writes videos with PyAV: pip install -e ".[video]"."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from eomt_exp.contracts import DataError, UserError

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"})
_CODEC = "libx264"
# Constant quality; no frame refers to a later one, so that parts can be joined.
_OPTIONS = {"crf": "20", "preset": "veryfast", "bf": "0"}


class Frame(NamedTuple):
    """Is one decoded frame, turned upright."""

    number: int
    time: int  # in ticks of the video's time base
    image: np.ndarray  # (H, W, 3) uint8 RGB


class Video:
    """Reads the first picture stream of a file. Raises DataError for what is no video."""

    def __init__(self, path: Path) -> None:
        self.path, self._av = path, _pyav()
        try:
            with self._av.open(str(path)) as container:
                stream = container.streams.video[0]
                self.time_base, self.rate = stream.time_base, stream.average_rate
                seconds = (container.duration or 0) / 1e6
                # Of files that do not say how many there are, as their length lets expect.
                self.length = stream.frames or round(seconds * float(self.rate or 0))
        except (self._av.FFmpegError, IndexError, OSError) as error:
            raise DataError(f"{path} cannot be read as a video: {error}.") from error

    def frames(self, broken: Callable[[DataError], object]) -> Iterator[Frame]:
        """Decode all frames in order; those that cannot be go to `broken`, which may raise."""
        number = 0
        with self._av.open(str(self.path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for packet in container.demux(stream):
                try:
                    decoded = packet.decode()
                except self._av.FFmpegError as error:
                    broken(DataError(f"{self.path}: frame {number} cannot be decoded: {error}."))
                    continue
                for frame in decoded:
                    image = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                    time = frame.pts if frame.pts is not None else number
                    yield Frame(number, time, np.ascontiguousarray(image))
                    number += 1


class VideoWriter:
    """Writes frames of one size as H.264 into a part of a video; sides become even."""

    def __init__(self, path: Path, source: Video, size: tuple[int, int]) -> None:
        self._av = _pyav()
        self._container = self._av.open(str(path), "w", format="nut")  # keeps any time base
        self._stream: Any = self._container.add_stream(_CODEC, rate=source.rate or 25)
        self._stream.height, self._stream.width = (side // 2 * 2 for side in size)
        self._stream.pix_fmt, self._stream.options = "yuv420p", _OPTIONS
        self._stream.time_base = self._stream.codec_context.time_base = source.time_base

    def write(self, image: np.ndarray, time: int) -> None:
        """Add a frame (H, W, 3) uint8 RGB, shown from `time` on."""
        inside = np.ascontiguousarray(image[: self._stream.height, : self._stream.width])
        frame = self._av.VideoFrame.from_ndarray(inside, format="rgb24")
        frame.pts, frame.time_base = time, self._stream.codec_context.time_base
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what the encoder still holds."""
        self._container.mux(self._stream.encode())
        self._container.close()


def join(parts: list[Path], path: Path) -> None:
    """Join parts that VideoWriter wrote to one mp4, without encoding them again."""
    av = _pyav()
    with av.open(str(path), "w", format="mp4") as out:
        to: Any = None
        for part in parts:
            with av.open(str(part)) as container:
                stream = container.streams.video[0]
                to = to or out.add_stream_from_template(stream)
                for packet in container.demux(stream):
                    if packet.dts is not None:  # the last one is empty
                        packet.stream = to
                        out.mux(packet)


def _pyav() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise UserError(
            'videos are read and written with PyAV; type pip install -e ".[video]".'
        ) from error
    return av
