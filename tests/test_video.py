"""Reading and writing what users bring; each clip is written by the test itself."""

from __future__ import annotations

import struct
import tracemalloc
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from personalize import video
from personalize.errors import InputError

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "real"


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(video, "_warn", lines.append)
    return lines


def picture(index: int, width: int = 64, height: int = 48) -> np.ndarray:
    """Red in the top left quarter, brightness tells the index."""
    image = np.full((height, width, 3), 40 + 4 * (index % 40), np.uint8)
    image[: height // 2, : width // 2] = (220, 20, 20)
    return image


def write(
    path: Path, frames: int = 30, size: tuple[int, int] = (64, 48), pts: list[int] | None = None, pix: str = "yuv420p", **options: str
) -> Path:
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264" if "libx264" in av.codecs_available else "mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = size[0], size[1], pix
        if pts:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i, *size), format="rgb24")
            if pts:
                frame.pts, frame.time_base = pts[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read(path: Path) -> list[video.Frame]:
    return list(video.open_media(path).frames())


def reddest_quarter(image: np.ndarray) -> tuple[int, int]:
    """(row, column) of the quarter with the red patch."""
    h, w = image.shape[0] // 2, image.shape[1] // 2
    excess = image[..., 0].astype(int) - image[..., 1]
    red = {(r, c): float(excess[r * h : r * h + h, c * w : c * w + w].mean()) for r in (0, 1) for c in (0, 1)}
    return max(red, key=lambda k: red[k])


def test_plain_clip(tmp_path: Path, warnings: list[str]) -> None:
    media = video.open_media(write(tmp_path / "a.mp4"))
    assert (media.kind, media.size, media.length, media.still) == ("video", (64, 48), 30, False)
    assert media.fps == pytest.approx(25) and media.duration == pytest.approx(1.2, abs=0.05)
    frames = list(media.frames())
    assert [f.index for f in frames] == list(range(30))
    assert [f.timestamp for f in frames] == pytest.approx([i / 25 for i in range(30)], abs=1e-6)
    assert all(f.image.shape == (48, 64, 3) and f.image.dtype == np.uint8 for f in frames)
    assert abs(int(frames[7].image[40, 50, 1]) - 68) < 6
    assert len(list(media.frames())) == 30  # again from the start
    assert warnings == []


@pytest.mark.parametrize(
    ("matrix", "quarter"),
    # players apply (x', y') = (a x + c y, b x + d y): a quarter turn clockwise has a=0 b=1 c=-1 d=0 and takes the top left to the top right
    [((0, 1, -1, 0), (0, 1)), ((-1, 0, 0, -1), (1, 1)), ((0, -1, 1, 0), (1, 0))],
)
def test_rotation_of_phone_video(tmp_path: Path, matrix: tuple[int, int, int, int], quarter: tuple[int, int]) -> None:
    path = write(tmp_path / "phone.mp4")
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 16  # version 0: flags, times and ids, then layer, group, volume
    a, b, c, d = (v << 16 for v in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    media = video.open_media(path)
    frame = next(iter(media.frames()))
    assert media.size == ((64, 48) if matrix[0] else (48, 64))
    assert frame.image.shape[1::-1] == media.size
    assert reddest_quarter(frame.image) == quarter


def test_variable_frame_rate(tmp_path: Path) -> None:
    pts = list(np.cumsum([0, 40, 40, 120, 20, 33, 200] * 5)[:30])
    frames = read(write(tmp_path / "vfr.mkv", pts=[int(p) for p in pts]))
    assert [f.timestamp for f in frames] == pytest.approx([p / 1000 for p in pts], abs=2e-3)


def test_truncated_file_uses_its_start(tmp_path: Path, warnings: list[str]) -> None:
    path = write(tmp_path / "cut.mp4", frames=250, size=(320, 240), movflags="faststart")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.7)])
    frames = read(path)
    assert 20 < len(frames) < 245
    assert len(warnings) == 1 and warnings[0].startswith(f"cut.mp4 is cut off: used the {len(frames)} frames that decode (")
    assert "\n" not in warnings[0]


def test_index_cut_away(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.mp4", frames=100, size=(320, 240))
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"moov") - 4])
    with pytest.raises(InputError, match="^cut.mp4 is a video that was cut off before its index: copy or export it again$"):
        read(path)


def test_short_clip_warns(tmp_path: Path, warnings: list[str]) -> None:
    assert len(read(write(tmp_path / "tiny.mp4", frames=5))) == 5
    assert warnings == ["tiny.mp4 is short (5 frames, 0.20 s): results will be rough; bring 10 s or more"]


@pytest.mark.parametrize("pix", ["yuv422p", "yuv444p", "yuv420p10le", "gray"])
def test_odd_pixel_formats(tmp_path: Path, pix: str) -> None:
    if "libx264" not in av.codecs_available:
        pytest.skip("needs libx264")
    frame = read(write(tmp_path / "odd.mkv", pix=pix))[3]
    assert frame.image.shape == (48, 64, 3) and abs(int(frame.image[40, 50, 1]) - 52) < (
        14 if pix == "gray" else 8
    )  # the encoder leaves grey's range untold


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.mp4", b"", "empty.mp4 is empty: copy or export it again"),
        (
            "notes.mp4",
            b"hello there\n" * 200,
            "notes.mp4 is neither a video nor a picture that can be read: give a clip such as .mp4, .mov, .webm or .avi",
        ),
        (
            "notes.txt",
            b"hello there\n" * 200,
            "notes.txt is neither a video nor a picture that can be read: give a clip such as .mp4, .mov, .webm or .avi",
        ),
        ("face.jpg", b"\x00\x01nothing", "face.jpg is not a picture that can be read: save it again as .jpg or .png"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read(tmp_path / name)
    assert str(caught.value) == message


def test_no_such_file_folder_without_pictures_sound_only(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^no such file: .*nope\.mp4$"):
        video.open_media(tmp_path / "nope.mp4")
    with pytest.raises(InputError, match="^no pictures in folder .*: it needs .jpg or .png files"):
        video.open_media(tmp_path)
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    with pytest.raises(InputError, match="^sound.wav has no video stream: give a clip with pictures$"):
        video.open_media(tmp_path / "sound.wav")


def test_folder_is_read_in_natural_order(tmp_path: Path, warnings: list[str]) -> None:
    for n in (10, 2, 1):
        Image.fromarray(picture(n)).save(tmp_path / f"f{n}.png")
    Image.fromarray(picture(4)).save(tmp_path / "f10²3.png")  # a digit that is no number
    (tmp_path / "f3.png").write_bytes(b"broken")
    (tmp_path / "notes.txt").write_text("x")
    media = video.open_media(tmp_path)
    frames = list(media.frames())
    assert media.kind == "folder" and media.still
    assert [(f.index, f.file, f.timestamp) for f in frames] == [
        (0, "f1.png", 0.0), (1, "f2.png", 0.0), (2, "f10.png", 0.0), (3, "f10²3.png", 0.0)
    ]  # fmt: skip
    assert warnings == [f"{tmp_path.name}: left out 1 of 5 pictures that cannot be read (f3.png)"]


def test_the_first_picture_of_an_animated_one(tmp_path: Path) -> None:
    first, second = (Image.fromarray(picture(n)) for n in (3, 9))
    first.save(tmp_path / "a.webp", save_all=True, append_images=[second], lossless=True)
    (frame,) = video.open_media(tmp_path / "a.webp").frames()
    assert np.array_equal(frame.image, picture(3))


def test_exif_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, to be shown turned clockwise
    Image.fromarray(picture(0)).save(tmp_path / "a.jpg", exif=exif)
    media = video.open_media(tmp_path / "a.jpg")
    frame = next(iter(media.frames()))
    assert media.kind == "image" and media.size == (48, 64) and frame.image.shape == (64, 48, 3)
    assert reddest_quarter(frame.image) == (0, 1) and frame.file == "a.jpg"


def test_grey_16_bit_and_alpha(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    got = video.read_picture(tmp_path / "deep.png")
    assert got.dtype == np.uint8 and np.abs(got[0, :, 0].astype(int) - np.arange(256)).max() <= 1
    Image.fromarray(np.full((4, 4), 77, np.uint8)).save(tmp_path / "grey.png")
    assert (video.read_picture(tmp_path / "grey.png") == 77).all()
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2] = (200, 100, 50, 255)
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    got = video.read_picture(tmp_path / "alpha.png")
    assert (got[0] == (200, 100, 50)).all() and (got[3] == 128).all()


def test_memory_does_not_grow_with_the_clip(tmp_path: Path) -> None:
    def peak(frames: int) -> int:
        media = video.open_media(write(tmp_path / f"{frames}.mp4", frames=frames, size=(320, 240)))
        tracemalloc.start()
        for _ in media.frames():
            pass
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    few, many = peak(30), peak(240)
    assert many < few + 320 * 240 * 3 * 4  # far from 210 frames more


@pytest.mark.parametrize("size", [(64, 48), (65, 47)])
def test_writer(tmp_path: Path, size: tuple[int, int], warnings: list[str]) -> None:
    path = tmp_path / "out.mp4"
    with video.VideoWriter(path, 30000 / 1001, size, {"title": "a test"}) as writer:
        for i in range(40):
            writer.write(picture(i, *size))
        assert not path.exists()  # nothing under that name until it is complete
        with pytest.raises(ValueError, match="frame of shape"):
            writer.write(picture(0, 10, 10))
    with av.open(str(path)) as container:
        assert container.metadata["title"] == "a test"
    media = video.open_media(path)
    frames = list(media.frames())
    assert len(frames) == 40 and media.size == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert media.fps == pytest.approx(30000 / 1001, rel=1e-4)
    assert abs(int(frames[9].image[40, 50, 1]) - 76) < 6
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"] and warnings == []


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_writer_keeps_the_times_it_is_told(tmp_path: Path, suffix: str) -> None:
    """Of a clip of variable rate; of a clip of a constant one nothing changes, nor in a container that knows no times."""
    times = [0.0, 0.1, 0.15, 2.0, 2.04]
    for name, given in (("own" + suffix, times), ("even" + suffix, [i / 25 for i in range(5)]), ("even.avi", times)):
        with video.VideoWriter(tmp_path / name, 25, (64, 48)) as writer:
            for i, time in enumerate(given):
                writer.write(picture(i, 64, 48), time)
    own, even, counted = (video.open_media(tmp_path / name) for name in ("own" + suffix, "even" + suffix, "even.avi"))
    assert [f.timestamp for f in own.frames()] == pytest.approx(times, abs=1e-3)
    assert [f.timestamp for f in even.frames()] == pytest.approx([i / 25 for i in range(5)], abs=1e-3)
    assert even.fps == pytest.approx(25) and counted.fps == pytest.approx(25) and len(list(counted.frames())) == 5


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_writer_says_in_which_colours_it_writes(tmp_path: Path, suffix: str) -> None:
    """Y'CbCr by ITU-R BT.709, tables 3 and 4: a player that believes the tags shows the colours that were given."""
    path, colours = tmp_path / f"out{suffix}", np.array([[200, 60, 40], [30, 180, 90]])
    with video.VideoWriter(path, 25, (64, 64)) as writer:
        for _ in range(3):
            writer.write(np.repeat(colours, 32, 0)[:, None].repeat(64, 1).astype(np.uint8))
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
    planes = frame.to_ndarray().astype(float)
    red, green, blue = (colours / 255).T
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    blueish, reddish = (planes[64 + 16 * i : 80 + 16 * i].reshape(32, 32)[[8, 24], 16] for i in range(2))
    assert planes[[16, 48], 32] == pytest.approx(16 + 219 * luma, abs=2)
    assert blueish == pytest.approx(128 + 224 * (blue - luma) / 1.8556, abs=2)
    assert reddish == pytest.approx(128 + 224 * (red - luma) / 1.5748, abs=2)
    shown = next(iter(video.open_media(path).frames())).image
    assert np.abs(shown[[16, 48], 32].astype(int) - colours).max() <= 4


def test_writer_leaves_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "out.mp4").write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), video.VideoWriter(tmp_path / "out.mp4", 25, (64, 48)) as writer:
        writer.write(picture(0))
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"] and (tmp_path / "out.mp4").read_bytes() == b"before"
    with pytest.raises(InputError, match=r"^cannot write .*out.mp4: there is no such folder$"):
        video.VideoWriter(tmp_path / "none" / "out.mp4", 25, (64, 48))
    with pytest.raises(InputError, match=r"^cannot write .*out.nope: '.nope' is no video format, use .mp4$"):
        video.VideoWriter(tmp_path / "out.nope", 25, (64, 48))


@pytest.mark.skipif(not REAL.is_dir(), reason="real clips are not here")
@pytest.mark.parametrize(("clip", "frames"), [("cry_to_laugh.mp4", 472), ("no_face.mp4", 95), ("face_appears_late.mov", 169)])
def test_real_clips(clip: str, frames: int, warnings: list[str]) -> None:
    assert sum(1 for _ in video.open_media(REAL / clip).frames()) == frames
    assert warnings == []


def test_times_of_a_raw_stream_begin_at_0(tmp_path: Path) -> None:
    if "libx264" not in av.codecs_available:
        pytest.skip("needs libx264")
    media = video.open_media(write(tmp_path / "raw.h264"))
    assert [f.timestamp for f in media.frames()] == pytest.approx([i / media.fps for i in range(30)], abs=2e-3)


def test_joined_recordings_go_on_where_the_clock_begins_anew(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one.ts"), write(tmp_path / "other.ts", frames=40)
    both = tmp_path / "both.ts"
    both.write_bytes(one.read_bytes() + other.read_bytes())
    assert [f.timestamp for f in read(both)] == pytest.approx([i / 25 for i in range(70)], abs=2e-3)


def test_repeated_times_stay_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mkv")
    decoded = video._decoded

    def repeating(container: Any, stream: Any) -> Any:
        for i, frame in enumerate(decoded(container, stream)):
            frame.pts -= 60 * (i == 10)  # before its neighbour, but not by much
            yield frame
        return 0

    monkeypatch.setattr(video, "_decoded", repeating)
    times = [i / 25 for i in range(30)]
    times[10] = times[9] + 0.001
    assert [f.timestamp for f in read(path)] == pytest.approx(times, abs=2e-4)
