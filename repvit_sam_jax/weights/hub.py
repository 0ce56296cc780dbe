"""Weights by name: the published checkpoints from where their authors put them, and repositories of Hugging Face's hub.

A file is downloaded once, into the user's cache, all or nothing; its SHA-256 is recorded beside it, and what is
downloaded later under the same name must have it.
"""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

import platformdirs

from ..config import ALIASES, SAME_ARCHITECTURE, get_model_config
from ..files import sha256, write_atomically
from .errors import CheckpointError
from .formats import safetensors_file

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
    if preset in SAME_ARCHITECTURE:
        raise ValueError(f"{preset} has weights of its own, which its authors publish; give the file")
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


OFFLINE = "REPVIT_SAM_OFFLINE"
"""Environment variable that forbids downloads, if it is set and not 0."""

_HUB = re.compile(r"hf:/+([\w.-]+/[\w.-]+)(?:/(.+))?")


def is_name(name: str | os.PathLike) -> bool:
    """Whether this is the name of published weights or of a repository, `hf://OWNER/NAME`, and no file's."""
    text = os.fspath(name)
    return bool(_HUB.fullmatch(text)) or (ALIASES.get(text, text) in PUBLISHED and not Path(name).exists())


def fetch(name: str | os.PathLike) -> Path:
    """The file, or the folder, of weights that have a name: from the cache or, the first time, from where they are.

    Args:
      name: a key of `PUBLISHED` or its alias, such as `repvit_sam` or `vit_h`; or `hf://OWNER/NAME` for a repository of
        transformers' SAM or of files of this library, with `/FILE` behind it for one file.

    Raises:
      DownloadError: it can't be had, may not (`OFFLINE`), or is not what it was when it was downloaded first. The
        message says which file to put where.
    """
    if found := _HUB.fullmatch(os.fspath(name)):
        return _from_hub(*found.groups())
    url = published_url(os.fspath(name))
    target = cache() / url.rsplit("/", 1)[1]
    if target.is_file():
        return target
    if os.environ.get(OFFLINE, "0") not in ("", "0"):
        raise DownloadError(
            f"{name} is not at {target}, and {OFFLINE} is set; get {url} by other means and put it there"
        )
    recorded = target.with_name(f"{target.name}.sha256")
    known = recorded.read_text().strip() if recorded.is_file() else None
    try:
        digest = download(target, url=url, expected_sha256=known)
    except DownloadError as error:
        if known is None or "hash" not in str(error):
            raise
        raise DownloadError(
            f"{error}; it is that of the first download, in {recorded}: if the publisher has replaced the file, "
            "remove that one"
        ) from error
    if not zipfile.is_zipfile(target) and not safetensors_file.is_one(target):
        start = target.read_bytes()[:60]
        target.unlink()
        raise DownloadError(
            f"{url} gave no checkpoint but something that begins with {start!r}; is there a login page?"
        )
    write_atomically(recorded, lambda path: path.write_text(f"{digest}\n"))
    return target


def cache() -> Path:
    """The folder that downloads are kept in."""
    return platformdirs.user_cache_path("repvit-sam", appauthor=False) / "weights"


def _from_hub(repository: str, file: str | None) -> Path:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise DownloadError(
            f"hf://{repository} needs huggingface_hub: pip install 'repvit-sam-jax[hub]', or give a folder"
        ) from error
    try:
        if file is not None:
            return Path(huggingface_hub.hf_hub_download(repository, file))
        wanted = ["config.json", "*.safetensors", "*.safetensors.index.json"]
        folder = Path(huggingface_hub.snapshot_download(repository, allow_patterns=wanted))
        if not any(folder.glob("*.safetensors")):
            wanted = ["config.json", "pytorch_model*.bin", "pytorch_model.bin.index.json", "*.pt", "*.pth"]
            folder = Path(huggingface_hub.snapshot_download(repository, allow_patterns=wanted))
    except Exception as error:  # its errors, and those of several libraries beneath it
        reason = " ".join(str(error).split())[:300]
        raise DownloadError(f"hf://{repository} could not be fetched ({type(error).__name__}: {reason})") from error
    files = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pt", ".pth")]
    if not files:
        raise CheckpointError(f"hf://{repository} holds no weights: {', '.join(p.name for p in folder.iterdir())}")
    return files[0] if len(files) == 1 and not (folder / "config.json").is_file() else folder


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
    import pooch  # a quarter of a second, for what is done once
    import requests

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
