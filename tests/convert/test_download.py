import gc
import hashlib
import http.server
import socket
import threading
import time

import pytest

pytestmark = [
    pytest.mark.torch,
    # pooch drops the connection of a failed download unclosed.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

from convert import __main__ as command  # noqa: E402
from convert import download as module  # noqa: E402
from convert.download import DownloadError, download  # noqa: E402
from repvit_sam_jax.config import MODELS  # noqa: E402

CONTENT = bytes(range(256)) * 300
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
            self.send_header("Content-Length", str(len(CONTENT) + (1000 if self.path == "/short" else 0)))
        self.end_headers()
        self.wfile.write(CONTENT)

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
