"""Downloads from a local server: mirrors in turn, the MD5 always, and the message when all fail."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import socket
import tarfile
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from resnet_train.data.sources import cifar
from resnet_train.data.sources.cifar import MIRRORS, fetch_archive

FILE = "cifar-10-python.tar.gz"
Answer = namedtuple("Answer", ["status", "body", "headers"], defaults=[{}])
Server = namedtuple("Server", ["url", "answers", "requested"])


def make_archive(text):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        entry = tarfile.TarInfo("cifar-10-batches-py/readme")
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text))
    return stream.getvalue()


GOOD, WRONG = make_archive(b"the real one"), make_archive(b"another one")
MD5 = hashlib.md5(GOOD).hexdigest()


def answer(server, handler):
    server.requested.append(handler.path)
    reply = server.answers.get(handler.path, Answer(404, b"not here"))
    if isinstance(reply, bytes):  # the connection's raw bytes
        handler.wfile.write(reply)
        return
    handler.send_response(reply.status)
    for name, value in ({"Content-Length": len(reply.body)} | reply.headers).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(reply.body)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("RESNET_TRAIN_MIRROR", raising=False)


@pytest.fixture
def server():
    """Start a web server: `answers` maps paths to an Answer or raw bytes, `requested` lists the requested paths."""
    state = Server("", {}, [])
    methods = {"do_GET": lambda handler: answer(state, handler), "log_message": lambda *ignored: None}
    handler = type("Handler", (BaseHTTPRequestHandler,), methods)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.02,))
        thread.start()
        yield state._replace(url=f"http://127.0.0.1:{http.server_port}")
        http.shutdown()
        thread.join()


@pytest.fixture
def closed_url():
    """Return a URL at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return f"http://127.0.0.1:{port}/{FILE}"


@pytest.fixture
def use_mirrors(monkeypatch):
    return lambda *urls: monkeypatch.setattr("resnet_train.data.sources.cifar.MIRRORS", {FILE: urls})


def assert_fetched(data_dir):
    assert (data_dir / FILE).read_bytes() == GOOD
    assert (data_dir / "cifar-10-batches-py" / "readme").read_bytes() == b"the real one"
    assert sorted(path.name for path in data_dir.iterdir()) == ["cifar-10-batches-py", FILE]


def test_mirrors_are_tried_until_one_has_the_right_file(tmp_path, server, use_mirrors, caplog):
    caplog.set_level(logging.INFO, "resnet_train")
    server.answers.update({"/a": Answer(200, WRONG), "/c": Answer(200, GOOD), "/d": Answer(200, GOOD)})
    use_mirrors(*(f"{server.url}/{name}" for name in "abcd"))
    fetch_archive(tmp_path, FILE, MD5)
    assert server.requested == ["/a", "/b", "/c"]
    assert_fetched(tmp_path)
    told = [record.getMessage() for record in caplog.records]
    assert f"failed: its MD5 is not {MD5}" in told
    assert f"downloading {server.url}/c" in told


def test_a_missing_data_dir_is_created(tmp_path, server, use_mirrors):
    server.answers["/a"] = Answer(200, GOOD)
    use_mirrors(f"{server.url}/a")
    fetch_archive(tmp_path / "new" / "data", FILE, MD5)
    assert_fetched(tmp_path / "new" / "data")


def test_a_download_ends_at_the_published_size(tmp_path, server, use_mirrors, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "resnet_train")
    monkeypatch.setitem(cifar.ARCHIVE_BYTES, FILE, len(GOOD))
    monkeypatch.setattr(cifar, "CHUNK_BYTES", 64)
    server.answers.update({"/a": Answer(200, GOOD + b"x"), "/b": b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 9999})
    server.answers["/c"] = Answer(200, GOOD)
    use_mirrors(*(f"{server.url}/{name}" for name in "abc"))
    fetch_archive(tmp_path, FILE, MD5)
    assert_fetched(tmp_path)
    assert caplog.text.count(f"it is larger than the {len(GOOD):,} bytes of the published file") == 2


def test_a_full_disk_ends_a_download_with_the_bytes_it_needs(tmp_path, server, use_mirrors, monkeypatch):
    server.answers["/a"] = Answer(200, GOOD)
    use_mirrors(f"{server.url}/a", f"{server.url}/b")

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.open", lambda path, mode: Full())
    with pytest.raises(OSError, match=r"cannot write .*\.part: No space left on device \(170,498,071 bytes are needed"):
        fetch_archive(tmp_path, FILE, MD5)
    assert server.requested == ["/a"]


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_users_mirror_is_tried_first(tmp_path, server, use_mirrors, monkeypatch, slash):
    server.answers.update({f"/own/{FILE}": Answer(200, GOOD), "/a": Answer(200, GOOD)})
    monkeypatch.setenv("RESNET_TRAIN_MIRROR", f"{server.url}/own{slash}")
    use_mirrors(f"{server.url}/a")
    fetch_archive(tmp_path, FILE, MD5)
    assert server.requested == [f"/own/{FILE}"]
    assert_fetched(tmp_path)


@pytest.mark.parametrize("content", [None, WRONG], ids=["missing", "another"])
def test_the_users_mirror_must_have_the_md5(tmp_path, server, use_mirrors, monkeypatch, content):
    server.answers["/a"] = Answer(200, GOOD)
    if content:
        server.answers[f"/own/{FILE}"] = Answer(200, content)
    monkeypatch.setenv("RESNET_TRAIN_MIRROR", f"{server.url}/own")
    use_mirrors(f"{server.url}/a")
    fetch_archive(tmp_path, FILE, MD5)
    assert server.requested == [f"/own/{FILE}", "/a"]
    assert_fetched(tmp_path)


def test_the_error_lists_all_failed_mirrors(tmp_path, server, use_mirrors, closed_url, monkeypatch):
    server.answers["/wrong"] = Answer(200, WRONG)
    monkeypatch.setenv("RESNET_TRAIN_MIRROR", f"{server.url}/own")
    use_mirrors(f"{server.url}/wrong", f"{server.url}/missing", closed_url)
    with pytest.raises(ConnectionError) as failure:
        fetch_archive(tmp_path, FILE, MD5)
    message = str(failure.value)
    assert len(message.splitlines()) == 8
    tried = [f"{server.url}/own/{FILE}: Not Found", f"{server.url}/wrong: its MD5 is not {MD5}"]
    tried += [f"{server.url}/missing: Not Found", f"{closed_url}: [Errno"]
    positions = [message.index(part) for part in tried]
    assert positions == sorted(positions)
    assert f"(MD5 {MD5}) into {tmp_path}/" in message
    assert FILE in message
    assert "RESNET_TRAIN_MIRROR" in message
    assert "--dataset digits" in message
    assert list(tmp_path.iterdir()) == []


def test_archive_in_the_data_dir_needs_no_network(tmp_path, use_mirrors, closed_url, caplog):
    (tmp_path / FILE).write_bytes(GOOD)
    use_mirrors(closed_url)
    fetch_archive(tmp_path, FILE, MD5)
    assert_fetched(tmp_path)
    assert caplog.records == []


@pytest.mark.parametrize("damaged", [b"", GOOD[:-1], WRONG], ids=["empty", "cut off", "another"])
def test_damaged_archive_in_the_data_dir_is_downloaded_again(tmp_path, server, use_mirrors, caplog, damaged):
    (tmp_path / FILE).write_bytes(damaged)
    server.answers["/a"] = Answer(200, GOOD)
    use_mirrors(f"{server.url}/a")
    fetch_archive(tmp_path, FILE, MD5)
    assert_fetched(tmp_path)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert f"{tmp_path / FILE} does not have the MD5 {MD5}" in warning


def test_damaged_archive_is_never_unpacked(tmp_path, use_mirrors, closed_url):
    (tmp_path / FILE).write_bytes(WRONG)
    use_mirrors(closed_url)
    with pytest.raises(ConnectionError):
        fetch_archive(tmp_path, FILE, MD5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE]


def test_a_silent_mirror_is_given_up(tmp_path, server, use_mirrors, monkeypatch):
    monkeypatch.setattr("resnet_train.data.sources.cifar.TIMEOUT_SECONDS", 0.2)
    server.answers["/a"] = Answer(200, GOOD)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections wait in its backlog for ever
        use_mirrors(f"http://127.0.0.1:{silent.getsockname()[1]}/{FILE}", f"{server.url}/a")
        fetch_archive(tmp_path, FILE, MD5)
    assert_fetched(tmp_path)
    assert socket.getdefaulttimeout() is None


HEAD = b"HTTP/1.1 200 OK\r\n"
BROKEN = {
    "cut off": Answer(200, GOOD[:50], {"Content-Length": len(GOOD)}),
    "server error": Answer(503, b"busy"),
    "login page": Answer(200, b"<html>please log in</html>"),
    "redirected nowhere": Answer(302, b"", {"Location": "/nowhere"}),
    "redirected in a circle": Answer(302, b"", {"Location": "/broken"}),
    "nothing": b"",
    "no http": b"220 this is a mail server\r\n",
    "cut off in a chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n400\r\n" + GOOD[:50],
    "endless header": HEAD + b"X: " + b"x" * 70_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_mirror_with_a_broken_response_is_skipped(tmp_path, server, use_mirrors, broken):
    server.answers.update({"/broken": BROKEN[broken], "/good": Answer(200, GOOD)})
    use_mirrors(f"{server.url}/broken", f"{server.url}/good")
    fetch_archive(tmp_path, FILE, MD5)
    assert "/broken" in server.requested
    assert server.requested[-1] == "/good"
    assert_fetched(tmp_path)


@pytest.mark.parametrize("mirror", ["localhost", "htp://x", "http://localhost:port", "http://", "http://a b/"])
def test_a_users_mirror_that_is_not_a_url_is_skipped(tmp_path, server, use_mirrors, monkeypatch, mirror):
    server.answers["/good"] = Answer(200, GOOD)
    monkeypatch.setenv("RESNET_TRAIN_MIRROR", mirror)
    use_mirrors(f"{server.url}/good")
    fetch_archive(tmp_path, FILE, MD5)
    assert_fetched(tmp_path)


def test_interrupted_download_leaves_nothing_behind(tmp_path, use_mirrors, monkeypatch):
    def interrupted(url, part, most_bytes):
        part.write_bytes(GOOD[:50])
        raise KeyboardInterrupt

    monkeypatch.setattr(cifar, "_fetch", interrupted)
    use_mirrors("http://127.0.0.1/a")
    with pytest.raises(KeyboardInterrupt):
        fetch_archive(tmp_path, FILE, MD5)
    assert list(tmp_path.iterdir()) == []


def test_public_mirrors_are_https_only():
    assert MIRRORS[FILE]
    assert all(url.startswith("https://") for urls in MIRRORS.values() for url in urls)
