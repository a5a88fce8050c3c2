"""Video files as sequences of frames, which PyAV decodes when they are read."""

import os
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


class VideoFrames:
    """The frames of a video file, decoded when they are read.

    ``video[start:stop]`` is (steps, height, width) uint8 with ``color="gray"``, and (steps, height,
    width, 3) with ``color="rgb"``. ``len(video)`` is the number of frames.

    A slice seeks to the last key frame before its first frame and decodes from there. A slice that
    starts where the previous slice ended continues decoding without a seek. The constructor reads
    the times of all frames from the packets, without decoding. Needs the package ``av``.

    Args:
        path: path of the file, of which the first video stream is read.
        size: (height, width) in pixels to which frames are scaled. Default: the video's own.
        color: "gray" or "rgb". Default: "gray".

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: PyAV cannot read the file, it has no video, or an argument is out of range; when
            a slice is read, also a damaged frame.

    Example:
        >>> from fastlstm.data import real_video_files
        >>> video = VideoFrames(real_video_files()[2], size=(36, 44))
        >>> len(video), video[10:15].shape
        (120, (5, 36, 44))
    """

    def __init__(
        self,
        path: str | Path,
        size: tuple[int, int] | None = None,
        color: Literal["gray", "rgb"] = "gray",
    ) -> None:
        if color not in ("gray", "rgb"):
            raise ValueError(f"color: expected 'gray' or 'rgb', got {color!r}")
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise ValueError(f"size: expected (height, width) of at least 1, got {size}")
        self.path = Path(path)
        self.size = size
        self.color = color
        self._times, self._keys = self._read_times()
        # (process, next frame), open file, decoder. A forked process shares the file offset with
        # its parent, so it opens the file again.
        self._decoding: tuple[tuple[int, int], Any, Any] | None = None

    def __len__(self) -> int:
        return len(self._times)

    def __getitem__(self, steps: slice) -> NDArray[np.uint8]:
        import av

        start, stop, _ = steps.indices(len(self))
        try:
            if self._decoding is None or self._decoding[0] != (os.getpid(), start):
                self._seek(start)
            assert self._decoding is not None
            _, container, frames = self._decoding
            read = [self._array(frame) for frame in islice(frames, max(1, stop - start))]
            if len(read) < stop - start:
                raise ValueError(f"frame {start + len(read)} is absent")
            stacked = np.stack(read)  # ValueError: frames of different sizes
        except (av.FFmpegError, ValueError) as error:
            self._decoding = None  # a decoder cannot continue after an error
            raise ValueError(
                f"{self.path}: frames {start} to {stop - 1} of {len(self)} are damaged: {error}"
            ) from error
        self._decoding = (os.getpid(), start + len(read)), container, frames
        return stacked[: max(0, stop - start)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decoding": None}  # an open file cannot be pickled

    def _open(self) -> Any:
        import av

        if not self.path.exists():
            raise FileNotFoundError(f"path: expected a video file, {self.path} is absent")
        try:
            container = av.open(str(self.path), metadata_errors="replace")  # it is not used
        except av.FFmpegError as error:
            raise ValueError(f"path: PyAV cannot read {self.path}: {error}") from error
        if not container.streams.video:
            raise ValueError(f"path: expected a video, {self.path} has no video stream")
        return container

    def _read_times(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Read the times of all frames, in the stream's unit.

        Returns:
            The presentation times of the N frames in order, (N,), and the presentation and decoding
            times of the K key frames, (K, 2).
        """
        import av

        with self._open() as container:
            try:
                packets = [p for p in container.demux(video=0) if p.pts is not None]
            except av.FFmpegError as error:
                raise ValueError(f"path: PyAV cannot read {self.path}: {error}") from error
        if not packets:
            raise ValueError(f"path: expected a video, {self.path} has no frames")
        keys = [(p.pts, p.pts if p.dts is None else p.dts) for p in packets if p.is_keyframe]
        times = np.sort(np.array([p.pts for p in packets], np.int64))
        return times, np.array(sorted(keys) or [(times[0], times[0])], np.int64)

    def _seek(self, start: int) -> None:
        container = self._open()
        stream = container.streams.video[0]
        # One thread for decoding and, in _array, for scaling: a forked process, such as a worker of
        # a DataLoader, would inherit the decoder without its threads, and would wait for them
        # forever when it frees the decoder.
        stream.codec_context.thread_count = 1
        time = int(self._times[start]) if start < len(self) else int(self._times[-1]) + 1
        # Some containers are indexed by decoding time, which may be earlier than the presentation
        # time. Seeking to the frame's presentation time could then find a later key frame.
        place = max(0, int(np.searchsorted(self._keys[:, 0], time, side="right")) - 1)
        container.seek(int(self._keys[place, 1]), stream=stream)

        def frames() -> Any:
            for frame in container.decode(stream):
                if frame.pts is not None and frame.pts >= time:
                    yield frame

        self._decoding = (os.getpid(), start), container, frames()

    def _array(self, frame: Any) -> NDArray[np.uint8]:
        height, width = self.size or (frame.height, frame.width)
        form = {"gray": "gray", "rgb": "rgb24"}[self.color]
        return frame.to_ndarray(width=width, height=height, format=form, threads=1)
