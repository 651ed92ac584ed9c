"""What the user brings: a clip, a photograph or a folder of photographs, as a stream of upright RGB frames.

Frames are decoded one at a time and never kept, so memory does not grow with the clip's length. What can be used is used, with one warning
line; what cannot raises :class:`personalize.errors.InputError` with one line.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageOps, UnidentifiedImageError

from personalize.errors import InputError

Image.init()  # registers every format, so that the names below can be asked for
PICTURE_FORMATS: list[str] = [f for f in ("JPEG", "MPO", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF", "JPEG2000", "AVIF") if f in Image.OPEN]
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif", ".jp2", ".avif")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".mts", ".m2ts", ".ts", ".ogv")
"""By which names of files are compared; any file that decodes is a video."""
SHORT_CLIP_S = 1.0
ENCODER = "libx264" if "libx264" in av.codecs_available else "mpeg4"
"""What the installed ffmpeg writes clips with."""
_BT709 = 1  # of primaries and of transfer alike, in ITU-T H.273
_ANEW = 5
"""Frames by which time must fall back to be taken for another recording's, rather than for disorder."""
# demuxers of ffmpeg that open any text as if it were a picture of a terminal, or read lists of other files
_NOT_VIDEO = {"tty", "bin", "xbin", "adf", "idf", "concat", "ffmetadata", "hls", "dash", "image2", "lrc", "srt", "webvtt", "ass"}


def _warn(text: str) -> None:
    from personalize import ui

    ui.warn(text)


@dataclass(eq=False)
class Frame:
    """One picture. index: from 0. timestamp: seconds from the clip's start. image: (H, W, 3) uint8 RGB, upright. file: name of a still."""

    index: int
    timestamp: float
    image: np.ndarray
    file: str = ""


@dataclass
class Media:
    """An opened clip ('video'), photograph ('image') or folder of photographs ('folder').

    fps: mean frames a second (0 for stills). length: number of frames as the file states it, None where it does not. size: (width, height)
    in pixels, upright; of the first picture for a folder. duration: seconds or None.
    """

    path: Path
    kind: str
    fps: float
    length: int | None
    size: tuple[int, int]
    duration: float | None = None
    files: list[Path] = field(default_factory=list)
    _warned: set[str] = field(default_factory=set)
    _sha256: str = ""

    @property
    def name(self) -> str:
        """The file's or folder's name, without its place."""
        return self.path.name

    @property
    def still(self) -> bool:
        """Whether frames are unrelated pictures rather than neighbours in time."""
        return self.kind != "video"

    def sha256(self) -> str:
        """Of the file; of a folder, of its pictures one after the other, in order."""
        if not self._sha256:  # a long clip is read through once for it
            digest = hashlib.sha256()
            for path in self.files or [self.path]:
                with path.open("rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
            self._sha256 = digest.hexdigest()
        return self._sha256

    def frames(self) -> Iterator[Frame]:
        """Decodes from the start; may be called again. Raises InputError where nothing can be decoded."""
        return self._decode() if self.kind == "video" else self._pictures()

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            _warn(text)

    def _pictures(self) -> Iterator[Frame]:
        index, bad = 0, []
        for path in self.files:
            try:
                image = read_picture(path)
            except InputError:
                if self.kind == "image":
                    raise
                bad.append(path.name)
                continue
            yield Frame(index, 0.0, image, path.name)
            index += 1
        if bad:
            some = ", ".join(bad[:3]) + (" ..." if len(bad) > 3 else "")
            if not index:
                raise InputError(f"no picture in {self.name} can be read ({some}): the files are broken")
            self._warn_once(f"{self.name}: left out {len(bad)} of {len(self.files)} pictures that cannot be read ({some})")

    def _decode(self) -> Iterator[Frame]:
        index, broken = 0, 0
        with _container(self.path) as (container, stream):
            origin = (container.start_time or 0) / av.time_base
            step = 1.0 / self.fps if self.fps > 0 else 0.04
            last = -step  # raw streams have no time stamps, not even a first one
            decoded = _decoded(container, stream)
            while True:
                try:
                    frame = next(decoded)
                except StopIteration as end:
                    broken = int(end.value or 0)
                    break
                image = _upright(frame, stream)
                time = frame.time - origin if frame.time is not None else last + step
                if index and last - time > _ANEW * step:  # recordings were joined, and the clock begins anew
                    origin -= last + step - time
                    time = last + step
                elif index and time <= last:  # repeated time stamps: keep the order
                    time = last + min(step, 0.001)
                last = time
                yield Frame(index, float(time), image)
                index += 1
        if not index:
            raise InputError(f"no frame of {self.name} can be decoded: the file is broken or cut off, copy or export it again")
        # by time, not by count: edit lists and variable rates make the stated number of frames unreliable
        if self.duration is not None and last + step < self.duration - max(0.25, 0.03 * self.duration):
            self._warn_once(f"{self.name} is cut off: used the {index} frames that decode ({last + step:.1f} s of {self.duration:.1f} s)")
        elif broken:
            self._warn_once(f"{self.name} is damaged: left out {broken} part{'s' if broken > 1 else ''} that cannot be decoded")
        if last + step < SHORT_CLIP_S:
            self._warn_once(f"{self.name} is short ({index} frames, {last + step:.2f} s): results will be rough; bring 10 s or more")


def _decoded(container: Any, stream: Any) -> Generator[VideoFrame, None, int]:
    """Frames of a stream, going on after packets that cannot be decoded; returns how many those were."""
    broken = 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return broken
        except av.error.FFmpegError:
            return broken + 1
        try:
            yield from packet.decode()
        except av.error.EOFError:
            return broken
        except av.error.FFmpegError:
            broken += 1


@contextlib.contextmanager
def _container(path: Path) -> Iterator[tuple[Any, Any]]:
    not_video = InputError(f"{path.name} is neither a video nor a picture that can be read: give a clip such as .mp4, .mov, .webm or .avi")
    try:
        # an absolute path: a name with a colon must not be read as a protocol
        container = av.open(str(path.resolve()), metadata_errors="replace")
    except av.error.InvalidDataError as error:
        head = path.open("rb").read(64)
        if b"ftyp" in head or head[:4] == b"RIFF" or head[:4] == b"\x1aE\xdf\xa3":
            raise InputError(f"{path.name} is a video that was cut off before its index: copy or export it again") from error
        raise not_video from error
    except PermissionError as error:
        raise InputError(f"{path.name} cannot be read: permission denied") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise not_video from error
    try:
        if set(container.format.name.split(",")) & _NOT_VIDEO:
            raise not_video
        # the cover of a music file is a video stream of one picture
        streams = [s for s in container.streams.video if not _is_cover(s)]
        if not streams:
            raise InputError(f"{path.name} has no video stream: give a clip with pictures")
        stream = streams[0]
        stream.thread_type = "AUTO"
        yield container, stream
    finally:
        container.close()


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & type(stream.disposition).attached_pic)


def _upright(frame: VideoFrame, stream: Any) -> np.ndarray:
    """(H, W, 3) uint8 RGB with the display matrix and non-square pixels applied."""
    image = frame.to_ndarray(format="rgb24")
    ratio = stream.sample_aspect_ratio
    if ratio and 0.2 < ratio < 5 and ratio != 1:
        size = (max(round(image.shape[1] * ratio), 1), image.shape[0])
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    turns = round((frame.rotation or 0) / 90) % 4  # PyAV's angle is counter-clockwise, as is np.rot90's
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def read_picture(path: Path) -> np.ndarray:
    """A photograph as (H, W, 3) uint8 RGB, upright by its EXIF orientation; 16 bits are scaled, alpha is laid over grey.

    Raises InputError where it cannot be read.
    """
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as picture:
            try:
                picture.load()
            except OSError:
                _load_truncated(path, picture)
            upright = ImageOps.exif_transpose(picture)
            return _to_rgb(upright if upright is not None else picture)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path.name} is not a picture that can be read: save it again as .jpg or .png") from error


def _load_truncated(path: Path, picture: Image.Image) -> None:
    from PIL import ImageFile

    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        picture.load()
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
    _warn(f"{path.name} is cut off: used the part that decodes")


def _to_rgb(picture: Image.Image) -> np.ndarray:
    mode = picture.mode
    if mode.startswith("I") or mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        top = float(values.max(initial=0.0))
        # 16-bit data in whatever mode Pillow chose; floats usually run to 1
        full = 1.0 if mode == "F" and top <= 1.0 else 255.0 if top <= 255 and mode != "I;16" else 65535.0 if top <= 65535 else top
        grey = np.clip(values * (255.0 / full) + 0.5, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (128, 128, 128, 255)), picture)
    return np.array(picture.convert("RGB"))


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sorts 2.jpg before 10.jpg."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in re.split(r"(\d+)", path.name) if part]


def open_media(path: str | Path) -> Media:
    """A video, a picture, or a folder of pictures.

    Raises InputError, one line: no such file; empty file; neither video nor picture; a folder without pictures; no video stream.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"no such file: {path}")
    if path.is_dir():
        files = sorted((p for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and not p.name.startswith(".")), key=_natural)
        if not files:
            raise InputError(f"no pictures in folder {path.name}: it needs .jpg or .png files (a clip is given as the file itself)")
        return Media(path, "folder", 0.0, len(files), _picture_size(files[0]), files=files)
    if path.stat().st_size == 0:
        raise InputError(f"{path.name} is empty: copy or export it again")
    if _is_picture(path):
        return Media(path, "image", 0.0, 1, _picture_size(path), files=[path])
    with _container(path) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate
        fps = float(rate) if rate and 0 < rate < 1000 else 25.0
        duration = None
        if stream.duration and stream.time_base:
            duration = float(stream.duration * stream.time_base)
        elif container.duration:
            duration = container.duration / av.time_base
        length = stream.frames or (round(duration * fps) if duration else None)
        first = next(_decoded(container, stream), None)
        if first is None:
            raise InputError(f"no frame of {path.name} can be decoded: the file is broken or cut off, copy or export it again")
        height, width = _upright(first, stream).shape[:2]
        return Media(path, "video", fps, length or None, (width, height), duration)


def _is_picture(path: Path) -> bool:
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as picture:
            # Of animated pictures ffmpeg reads GIF; of the others the first one counts.
            return getattr(picture, "n_frames", 1) == 1 or picture.format != "GIF"
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError):
        return path.suffix.lower() in PICTURE_SUFFIXES and path.suffix.lower() != ".gif"


def _picture_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as picture:
            turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (picture.height, picture.width) if turned else (picture.width, picture.height)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError):
        return (0, 0)


class VideoWriter:
    """Writes an H.264 clip (MPEG-4 part 2 where the encoder is missing) in BT.709; it appears under its name only when it is complete.

    path: its suffix decides the container (.mp4 by default). fps: frames a second, where :meth:`write` is not told times. size: (width,
    height); odd sizes are padded by one pixel. metadata: tags of the file, such as 'title' and 'comment'. As a context manager, it leaves
    no file where an error was raised.
    Raises InputError where the file cannot be written (no such folder, full disk, unknown suffix).
    """

    def __init__(self, path: str | Path, fps: float, size: tuple[int, int], metadata: dict[str, str] | None = None) -> None:
        self.path = Path(path)
        self.size = size
        suffix = self.path.suffix or ".mp4"
        self._partial = self.path.with_name(f".{self.path.stem}.{os.getpid()}.partial{suffix}")
        rate = Fraction(fps if fps > 0 else 25.0).limit_denominator(1001)
        # Some 90,000th of a second, of which the length of a frame is a whole number.
        self._tick, self._last = Fraction(1, rate.numerator * -(-90_000 // rate.numerator)), -1
        self._container: Any = None
        if not self.path.parent.is_dir():
            raise InputError(f"cannot write {self.path}: there is no such folder")
        try:
            self._container = av.open(str(self._partial), "w")
            self._stream: Any = self._container.add_stream(ENCODER, rate=rate)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            self._discard()
            raise InputError(f"cannot write {self.path}: {_reason(error, suffix)}") from error
        self._container.metadata.update(metadata or {})
        self._stream.width, self._stream.height = (size[0] + size[0] % 2, size[1] + size[1] % 2)
        self._stream.pix_fmt = "yuv420p"
        # Players take a clip that does not say for BT.709 where it is large and for BT.601 where it is small.
        context = self._stream.codec_context
        context.colorspace, context.color_primaries = Colorspace.ITU709, _BT709
        context.color_trc, context.color_range = _BT709, ColorRange.MPEG
        if ENCODER == "libx264":
            self._stream.options = {"crf": "20", "preset": "veryfast"}
        else:
            self._stream.bit_rate = max(int(size[0] * size[1] * float(rate) * 0.15), 400_000)

    def write(self, rgb: np.ndarray, time: float | None = None) -> None:
        """Adds one frame: (height, width, 3) uint8 RGB. time: seconds at which it is shown, rising, given for all frames or for none, which
        are then a frame's length apart, as they are in a container that knows no times (.avi). Raises ValueError for another size,
        InputError for a full disk."""
        if rgb.shape != (self.size[1], self.size[0], 3):
            raise ValueError(f"frame of shape {rgb.shape}, the clip is {self.size[0]}x{self.size[1]}")
        pad = ((0, rgb.shape[0] % 2), (0, rgb.shape[1] % 2), (0, 0))
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(np.pad(rgb, pad, mode="edge")), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
        if time is not None and self.path.suffix.lower() != ".avi":
            if self._last < 0:
                self._stream.codec_context.time_base = self._tick
            self._last = max(self._last + 1, round(time / self._tick))
            frame.pts, frame.time_base = self._last, self._tick
        self._mux(frame)

    def _mux(self, frame: VideoFrame | None) -> None:
        try:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        except (av.error.FFmpegError, OSError) as error:
            self._discard()
            raise InputError(f"cannot write {self.path}: {_reason(error, self.path.suffix)}") from error

    def close(self) -> None:
        """Completes the file and puts it in its place."""
        if self._container is None:
            return
        self._mux(None)
        try:
            self._container.close()
            os.replace(self._partial, self.path)
        except (av.error.FFmpegError, OSError) as error:
            self._discard()
            raise InputError(f"cannot write {self.path}: {_reason(error, self.path.suffix)}") from error
        self._container = None

    def _discard(self) -> None:
        if self._container is not None:
            with contextlib.suppress(Exception):
                self._container.close()
        self._container = None
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._discard()


def _reason(error: Exception, suffix: str) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such folder"
    if isinstance(error, ValueError):
        return f"'{suffix}' is no video format, use .mp4"
    text = getattr(error, "strerror", None) or str(error)
    return str(text).splitlines()[0].lower()
