import gc
import hashlib
import http.server
import re
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save, save_file

pytestmark = [
    # pooch drops the connection of a failed download unclosed.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

from convert import __main__ as command  # noqa: E402
from convert.synthetic import manifest, synthetic_state_dict  # noqa: E402
from repvit_sam_jax import PRESETS, CheckpointError, cli, load  # noqa: E402
from repvit_sam_jax.config import MODELS, get_config  # noqa: E402
from repvit_sam_jax.weights import checkpoint  # noqa: E402
from repvit_sam_jax.weights import hub as module  # noqa: E402
from repvit_sam_jax.weights.formats import mapping, transformers  # noqa: E402
from repvit_sam_jax.weights.hub import DownloadError, download  # noqa: E402
from repvit_sam_jax.weights.loading import find_weights  # noqa: E402

CONTENT = save({"a": np.arange(20000, dtype=np.float32)})  # a safetensors file
PAGE = b"<html>Welcome"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requested.append(self.path)
        if self.path == "/absent":
            self.send_error(404)
            return
        if self.path == "/silent":
            self.server.release.wait(10)
            return
        self.send_response(200)
        if self.path != "/unsized":
            self.send_header(
                "Content-Length",
                str(len(PAGE if self.path == "/page" else CONTENT) + (1000 if self.path == "/short" else 0)),
            )
        self.end_headers()
        self.wfile.write(PAGE if self.path == "/page" else CONTENT)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def running_server():
    gc.collect()
    gc.freeze()  # what other tests left: looking at all of it after each test here takes longer than the tests
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.release = threading.Event()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.release.set()
        server.shutdown()
        thread.join()
    gc.unfreeze()


@pytest.fixture
def server(running_server, monkeypatch):
    # A proxy in the environment would be asked for 127.0.0.1 too.
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    running_server.requested = []
    yield running_server
    gc.collect()  # while the filter above is in force, not during another test


@pytest.fixture
def url(server):
    return f"http://127.0.0.1:{server.server_port}"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("path", ["/weights", "/unsized"])
def test_good_file(url, tmp_path, path):
    assert download(tmp_path / "w.pt", url=url + path) == DIGEST
    assert contents(tmp_path) == {"w.pt": CONTENT}


@pytest.mark.parametrize("expected", [DIGEST, DIGEST.upper()])
def test_expected_digest(url, tmp_path, expected):
    assert download(tmp_path / "w.pt", url=f"{url}/weights", expected_sha256=expected) == DIGEST
    assert contents(tmp_path) == {"w.pt": CONTENT}


def test_missing_folder_is_made(url, tmp_path):
    download(tmp_path / "new" / "w.pt", url=f"{url}/weights")
    assert contents(tmp_path / "new") == {"w.pt": CONTENT}


def test_other_digest(url, tmp_path):
    with pytest.raises(DownloadError, match=f"(?s)/weights: .*hash.*0000.*{DIGEST}"):
        download(tmp_path / "w.pt", url=f"{url}/weights", expected_sha256="0" * 64)
    assert contents(tmp_path) == {}


def test_not_found(url, tmp_path):
    with pytest.raises(DownloadError, match=r"/absent could not be fetched \(HTTP status 404\).*w\.pt"):
        download(tmp_path / "w.pt", url=f"{url}/absent")
    assert contents(tmp_path) == {}


def test_connection_breaks_off(url, tmp_path):
    with pytest.raises(DownloadError, match="/short could not be fetched"):
        download(tmp_path / "w.pt", url=f"{url}/short")
    assert contents(tmp_path) == {}


def test_no_answer_in_time(url, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    start = time.perf_counter()
    with pytest.raises(DownloadError, match="/silent could not be fetched"):
        download(tmp_path / "w.pt", url=f"{url}/silent")
    assert time.perf_counter() - start < 3
    assert contents(tmp_path) == {}


def test_unreachable_port(tmp_path, server):
    with socket.socket() as bound:  # bound, but nobody listens
        bound.bind(("127.0.0.1", 0))
        start = time.perf_counter()
        with pytest.raises(DownloadError, match=r"could not be fetched.*fetch it by other means.*w\.pt"):
            download(tmp_path / "w.pt", url=f"http://127.0.0.1:{bound.getsockname()[1]}/weights")
    assert time.perf_counter() - start < 5
    assert contents(tmp_path) == {}


def test_address_without_protocol(tmp_path):
    with pytest.raises(DownloadError, match="no-protocol could not be fetched"):
        download(tmp_path / "w.pt", url="no-protocol")
    assert contents(tmp_path) == {}


def test_existing_file_is_kept(server, url, tmp_path):
    (tmp_path / "w.pt").write_bytes(b"older")
    assert download(tmp_path / "w.pt", url=f"{url}/weights") == hashlib.sha256(b"older").hexdigest()
    assert contents(tmp_path) == {"w.pt": b"older"}
    assert server.requested == []


def test_existing_file_with_the_expected_digest_is_kept(server, url, tmp_path):
    (tmp_path / "w.pt").write_bytes(CONTENT)
    assert download(tmp_path / "w.pt", url=f"{url}/weights", expected_sha256=DIGEST) == DIGEST
    assert server.requested == []


def test_existing_file_with_another_digest_is_replaced(url, tmp_path):
    (tmp_path / "w.pt").write_bytes(b"older")
    assert download(tmp_path / "w.pt", url=f"{url}/weights", expected_sha256=DIGEST) == DIGEST
    assert contents(tmp_path) == {"w.pt": CONTENT}


@pytest.mark.parametrize(("path", "expected"), [("/short", DIGEST), ("/absent", DIGEST), ("/weights", "0" * 64)])
def test_existing_file_outlives_a_failure(url, tmp_path, path, expected):
    (tmp_path / "w.pt").write_bytes(b"older")
    with pytest.raises(DownloadError, match=path):
        download(tmp_path / "w.pt", url=url + path, expected_sha256=expected)
    assert contents(tmp_path) == {"w.pt": b"older"}


def test_command(url, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["convert", "download", str(tmp_path / "w.pt"), "--url", f"{url}/weights"])
    command.main()
    assert f"SHA-256 {DIGEST} (computed" in capsys.readouterr().out
    command.main()
    printed = capsys.readouterr()
    assert "was there and is not fetched again" in printed.err
    assert DIGEST in printed.out


@pytest.mark.parametrize("arguments", [("/absent",), ("/short",), ("/weights", "--sha256", "0" * 64)])
def test_command_fails(url, tmp_path, monkeypatch, capsys, arguments):
    path, *options = arguments
    monkeypatch.setattr("sys.argv", ["convert", "download", str(tmp_path / "w.pt"), "--url", url + path, *options])
    with pytest.raises(SystemExit) as exit_:
        command.main()
    assert exit_.value.code == 1
    errors = capsys.readouterr().err
    assert errors.count("error: ") == 1
    assert f"error: {url}{path}" in errors  # the progress bar may come first
    assert "Traceback" not in errors
    assert contents(tmp_path) == {}


def test_addresses_of_published_models(monkeypatch, tmp_path, capsys):
    """Every model that has one, by its preset or its official name; the file keeps the published name."""
    assert module.published_url("vit_h").endswith("/sam_vit_h_4b8939.pth")
    assert module.file_name("mobile_sam") == "mobile_sam.pt"
    assert set(module.PUBLISHED) <= set(MODELS)
    with pytest.raises(ValueError, match=r"no weights of tiny are published; there are some of repvit_sam, sam_vit_b"):
        module.published_url("tiny")
    asked = {}
    monkeypatch.setattr(module, "download", lambda path, **given: asked.update(path=path, **given) or DIGEST)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["convert", "download", "--preset", "repvit_m2_3_distill"])
    command.main()
    assert asked["path"].as_posix() == "weights/repvit_m2_3_distill_450e.pth"
    assert asked["url"] == module.PUBLISHED["repvit_m2_3_distill"]
    assert DIGEST in capsys.readouterr().out


# By name
@pytest.fixture
def published(server, url, tmp_path, monkeypatch):
    """`mobile_sam` at the local server, and an empty cache."""
    monkeypatch.setitem(module.PUBLISHED, "mobile_sam", f"{url}/weights")
    monkeypatch.setattr(module, "cache", lambda: tmp_path / "cache")
    monkeypatch.delenv(module.OFFLINE, raising=False)
    monkeypatch.chdir(tmp_path)
    return server


def test_a_name_is_downloaded_once(published, tmp_path):
    """Under its name and its alias, as a path too; a file of that name goes before it."""
    for name in ("mobile_sam", "vit_t", Path("mobile_sam")):
        assert find_weights(name) == tmp_path / "cache" / "weights"
    assert published.requested == ["/weights"]
    assert contents(tmp_path / "cache")["weights"] == CONTENT
    assert (tmp_path / "cache" / "weights.sha256").read_text() == f"{DIGEST}\n"
    (tmp_path / "mobile_sam").touch()
    assert find_weights("mobile_sam") == Path("mobile_sam")
    assert find_weights("mobile_sam.pt") == Path("mobile_sam.pt")


def test_what_is_downloaded_later_must_be_the_same(published, tmp_path):
    find_weights("mobile_sam")
    (tmp_path / "cache" / "weights").unlink()
    (tmp_path / "cache" / "weights.sha256").write_text("0" * 64)
    with pytest.raises(DownloadError, match=f"(?s)hash.*0000.*{DIGEST}.*weights.sha256: if the publisher has replaced"):
        find_weights("mobile_sam")
    assert not (tmp_path / "cache" / "weights").exists()


def test_a_page_in_place_of_the_weights(published, tmp_path, monkeypatch):
    """As a network with a login gives it. Nothing of it stays, and the weights are had as soon as they are there."""
    monkeypatch.setitem(module.PUBLISHED, "mobile_sam", module.PUBLISHED["mobile_sam"].replace("/weights", "/page"))
    with pytest.raises(DownloadError, match=r"/page gave no checkpoint but something that begins with b'<html>"):
        find_weights("mobile_sam")
    assert contents(tmp_path / "cache") == {}
    monkeypatch.setitem(module.PUBLISHED, "mobile_sam", module.PUBLISHED["mobile_sam"].replace("/page", "/weights"))
    assert find_weights("mobile_sam").read_bytes() == CONTENT


def test_offline(published, tmp_path, monkeypatch):
    monkeypatch.setenv(module.OFFLINE, "1")
    where = re.escape(str(tmp_path / "cache" / "weights"))
    with pytest.raises(
        DownloadError, match=rf"mobile_sam is not at {where}, and REPVIT_SAM_OFFLINE is set; get http://"
    ):
        load("mobile_sam")
    assert published.requested == []


def test_an_interrupted_download_leaves_nothing(published, url, tmp_path, monkeypatch):
    monkeypatch.setitem(module.PUBLISHED, "mobile_sam", f"{url}/short")
    with pytest.raises(DownloadError, match=rf"/short could not be fetched .*put it at {tmp_path}/cache/short"):
        load("mobile_sam")
    assert not (tmp_path / "cache").exists() or contents(tmp_path / "cache") == {}


def test_a_name_in_the_command(published, tmp_path, monkeypatch, capsys):
    """What was downloaded here is no model's, and the line says where it is."""
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.png")
    monkeypatch.setattr("sys.argv", ["repvit-sam", "segment", "photo.png", "--point", "5,5", "--weights", "mobile_sam"])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    assert f"{tmp_path}/cache/weights: these are the weights of no model of this library" in capsys.readouterr().err


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of Hugging Face's hub as its client keeps it, without a network: what is put in is as if downloaded."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(repository, files):
        folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("0" * 40)
        (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
        for name, write in files.items():
            write(folder / "snapshots" / ("0" * 40) / name)

    return put


def test_repositories_of_the_hub(hub, tmp_path):
    """Of transformers' layout, with a file of this library, and one file of several."""
    config = PRESETS["tiny_vit_sam"]
    state = synthetic_state_dict(manifest(config))
    theirs = {transformers.from_official(key): value for key, value in state.items()}
    about = lambda path: path.write_text('{"model_type": "sam"}')
    hub("someone/sam", {"config.json": about, "model.safetensors": lambda path: save_file(theirs, path)})
    params = mapping.to_params(state, config, "train")
    own = lambda path: checkpoint.save(path, params, checkpoint.Metadata(config, "deploy"))
    hub("someone/own", {"README.md": lambda path: path.touch(), "tiny.safetensors": own})
    hub("someone/nothing", {"README.md": lambda path: path.touch()})
    for name in ("hf://someone/sam", Path("hf://someone/sam"), "hf://someone/own", "hf://someone/own/tiny.safetensors"):
        assert load(name)[0].config == config
    with pytest.raises(CheckpointError, match=r"hf://someone/nothing holds no weights: README\.md"):
        load("hf://someone/nothing")
    with pytest.raises(DownloadError, match="hf://someone/else could not be fetched"):
        load("hf://someone/else")


def test_a_damaged_file_of_the_hub_is_noticed(hub, tmp_path):
    config = PRESETS["tiny_vit_sam"]
    params = mapping.to_params(synthetic_state_dict(manifest(config)), config, "train")

    def damaged(path):
        checkpoint.save(path, params, checkpoint.Metadata(config, "deploy"))
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)

    hub("someone/own", {"tiny.safetensors": damaged})
    with pytest.raises(CheckpointError, match="is damaged: the SHA-256 of its arrays"):
        load("hf://someone/own")


def test_without_the_client_of_the_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DownloadError, match=r"needs huggingface_hub: pip install 'repvit-sam-jax\[hub\]', or give"):
        load("hf://facebook/sam-vit-base")


def test_models_that_share_an_architecture_share_no_weights():
    assert get_config("tiny_sam") == get_config("mobile_sam")
    assert not module.is_name("tiny_sam")
    with pytest.raises(ValueError, match="medsam has weights of its own, which its authors publish"):
        module.published_url("medsam")
