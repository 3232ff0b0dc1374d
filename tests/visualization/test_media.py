"""What is read as a video, and what is not."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from norton_det.errors import DataError
from norton_det.visualization.media import open_images

av: Any = pytest.importorskip("av", reason="PyAV is not installed: norton-det[video]")
COUNT = 5
CODECS = {
    **dict.fromkeys(("mp4", "mov", "mkv", "avi", "3gp", "nut", "m4v"), "mpeg4"),
    **{"mpg": "mpeg1video", "ts": "h264", "mxf": "mpeg2video", "flv": "flv1", "wmv": "wmv2", "y4m": "rawvideo"},
}
"""Codec of a video by the suffix that says its container."""


def save_video(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS[path.suffix[1:]], rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for i in range(COUNT):
            pixels = np.full((64, 64, 3), 40 * i, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", CODECS)
def test_a_video_is_read_whatever_its_container(suffix: str, tmp_path: Path) -> None:
    assert len(list(open_images([save_video(tmp_path / f"a.{suffix}")]))) == COUNT


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "gif", "tiff", "webp"])
def test_an_image_without_suffix_is_a_frame(kind: str, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a", kind)
    assert [frame.shape for frame in open_images([tmp_path / "a"])] == [(3, 30, 40)]


TEXTS = {
    "text": "hello world " * 1000,
    "concat": "ffconcat version 1.0\nfile a.ts\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\na.ts\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" profiles="urn:mpeg:dash:'
    'profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1"><BaseURL>a.ts'
    "</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 49170 RTP/AVP 31\n",
    "empty": "",
}
"""Texts that FFmpeg reads as videos, of which some name others."""


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("suffix", ["mp4", "txt", "m3u8", "mpd", "sdp", "ffconcat"])
def test_no_text_is_a_video(kind: str, suffix: str, tmp_path: Path) -> None:
    save_video(tmp_path / "a.ts")
    (tmp_path / f"x.{suffix}").write_text(TEXTS[kind])
    with pytest.raises(DataError, match=rf"x\.{suffix}: cannot be read as .*; expected an image, or a video as MP4"):
        open_images([tmp_path / f"x.{suffix}"])


@pytest.mark.parametrize("suffix", CODECS)
def test_a_part_of_a_video_is_read_or_refused(suffix: str, tmp_path: Path) -> None:
    path = save_video(tmp_path / f"a.{suffix}")
    whole = path.read_bytes()
    counts = []
    for part in range(12):
        path.write_bytes(whole[: len(whole) * part // 12])
        try:
            counts.append(len(list(open_images([path]))))
        except DataError:
            counts.append(-1)
    assert counts[0] == -1
    assert max(counts) <= COUNT


def test_a_video_is_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.mp4")
    for path in (tmp_path / "x.mp4", Path(os.devnull)):
        with pytest.raises(DataError, match=r"is no regular file; expected"):
            open_images([path])
