"""The published checkpoints from where their authors put them."""

from __future__ import annotations

from pathlib import Path

import pooch
import requests

from repvit_sam_jax.config import get_model_config
from repvit_sam_jax.files import sha256

_REPVIT = "https://github.com/THU-MIG/RepViT/releases/download/v1.0"
_SAM = "https://dl.fbaipublicfiles.com/segment_anything"

PUBLISHED: dict[str, str] = {
    "repvit_sam": f"{_REPVIT}/repvit_sam.pt",
    "sam_vit_b": f"{_SAM}/sam_vit_b_01ec64.pth",
    "sam_vit_l": f"{_SAM}/sam_vit_l_0b3195.pth",
    "sam_vit_h": f"{_SAM}/sam_vit_h_4b8939.pth",
    "mobile_sam": "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
    "repvit_m0_6_distill": f"{_REPVIT}/repvit_m0_6_distill_300e.pth",
    **{
        f"repvit_{variant}_distill": f"{_REPVIT}/repvit_{variant}_distill_450e.pth"
        for variant in ("m0_9", "m1_0", "m1_1", "m1_5", "m2_3")
    },
}
"""Preset -> address, from the official READMEs. Of classifiers, the one that was trained longest."""


def published_url(preset: str) -> str:
    """The address of a preset's weights; raises ValueError if none are published."""
    config = get_model_config(preset)
    if config.name not in PUBLISHED:
        raise ValueError(f"no weights of {preset} are published; there are some of {', '.join(PUBLISHED)}")
    return PUBLISHED[config.name]


def file_name(preset: str) -> str:
    """What the published file of a preset is called."""
    return published_url(preset).rsplit("/", 1)[1]


TIMEOUT = 10.0
"""Seconds to wait for a connection, and for the next bytes."""


class DownloadError(RuntimeError):
    """The file could not be had. Nothing was written."""


def download(target: Path, *, url: str = PUBLISHED["repvit_sam"], expected_sha256: str | None = None) -> str:
    """Fetch a file with a progress bar, all or nothing.

    Args:
      target: where it is to lie; an existing file is kept if its hash is the expected one or none is expected.
      url: the published RepViT-SAM by default.
      expected_sha256: hex digest to insist on. Most publishers state none, so there is no default.

    Returns:
      The SHA-256 that was computed from the file.

    Raises:
      DownloadError: the host does not answer, answers with an error, breaks off, or the hash is another one.
    """
    fetch = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT)
    known = None if expected_sha256 is None else f"sha256:{expected_sha256.lower()}"
    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(url, known, fname=target.name, path=target.parent, downloader=fetch)
    except requests.exceptions.RequestException as error:
        status = error.response.status_code if error.response is not None else None
        reason = f"HTTP status {status}" if status else type(error).__name__
        raise DownloadError(
            f"{url} could not be fetched ({reason}); fetch it by other means and put it at {target}"
        ) from error
    except ValueError as error:
        raise DownloadError(f"{url}: {error}") from error
    return sha256(target)
