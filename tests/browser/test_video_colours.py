"""What Chromium shows of the video files that we write, its own arithmetic included."""

from __future__ import annotations

import base64
import importlib.util
from pathlib import Path

import pytest
import torch
from exact_vae.tests.browser.conftest import FLAGS, find_chromium
from exact_vae.tests.files.test_video import off_patches, patches, write
from exact_vae.vae_model.files.video import Video

pytestmark = pytest.mark.browser

READ = """async (source) => {
    const video = document.createElement('video');
    video.muted = true;
    video.src = source;
    await new Promise((done, failed) => {
        video.onloadeddata = done;
        video.onerror = () => failed(new Error(video.error.message));
    });
    video.currentTime = 0.09;
    await new Promise((done) => { video.onseeked = done; });
    await new Promise((done) => setTimeout(done, 300));  // a video drawn at once may still be black
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    const context = canvas.getContext('2d');
    context.drawImage(video, 0, 0);
    return [canvas.height, canvas.width, Array.from(context.getImageData(0, 0, canvas.width, canvas.height).data)];
}"""


@pytest.mark.parametrize(
    ("ending", "video", "most"),
    [
        (".mp4", Video(), 2.5),
        (".webm", Video(), 2.5),
        (".mp4", Video(chroma="444"), 2.5),
        (".webm", Video(lossless=True), 0),
    ],
    ids=str,
)
def test_patches_in_chromium(tmp_path: Path, ending: str, video: Video, most: float) -> None:
    if importlib.util.find_spec("playwright") is None or find_chromium() is None:
        pytest.skip("needs the Python package playwright and a Chromium on PATH")
    from playwright.sync_api import sync_playwright

    path = write(tmp_path / f"a{ending}", patches(), video)
    source = f"data:video/{ending[1:]};base64,{base64.b64encode(path.read_bytes()).decode()}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS, timeout=60_000)
        try:
            height, width, values = browser.new_page().evaluate(READ, source)
        finally:
            browser.close()
    frame = torch.tensor(values).reshape(1, height, width, 4)[..., :3] / 255
    off = off_patches(frame)
    print(f"{ending} {video}: {off:.2f} of 255")
    if most:
        assert off <= most
    else:
        assert torch.equal((frame * 255).round(), (patches(1) * 255).round())
