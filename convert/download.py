"""The published checkpoint from its release page."""

from __future__ import annotations

from pathlib import Path

import pooch
import requests

from .from_torch import sha256

URL = "https://github.com/THU-MIG/RepViT/releases/download/v1.0/repvit_sam.pt"
TIMEOUT = 10.0
"""Seconds to wait for a connection, and for the next bytes."""


class DownloadError(RuntimeError):
    """The file could not be had. Nothing was written."""


def download(target: Path, *, url: str = URL, expected_sha256: str | None = None) -> str:
    """Fetch a file with a progress bar, all or nothing.

    Args:
      target: where it is to lie; an existing file is kept if its hash is the expected one or none is expected.
      url: the published RepViT-SAM by default.
      expected_sha256: hex digest to insist on. Its publisher states none, so there is no default.

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
