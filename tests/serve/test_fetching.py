"""Against a server of the test's own: what is reached, and above all what is not."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from trivet.errors import TrivetError
from trivet.serve import fetching
from trivet.serve.fetching import Reach, fetch


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.seen.append((self.command, self.path, dict(self.headers)))
        path = self.path.split("?")[0]
        if path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.server.to)
            self.end_headers()
            return
        body = {"/bomb": gzip.compress(b"0" * 3_000_000), "/big": b"x" * 200_000, "/gz": gzip.compress(b"packed"),
                "/cut": gzip.compress(b"packed" * 50)[:-12]}.get(path, b"hello")
        self.send_response(200)
        if path in ("/bomb", "/gz", "/cut"):
            self.send_header("Content-Encoding", "gzip")
        if path not in ("/slow", "/big"):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            for byte in body if path == "/slow" else ():
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.4)
            if path != "/slow" and self.command != "HEAD":
                self.wfile.write(body)
        except OSError:
            pass

    do_HEAD = do_POST = do_GET


@pytest.fixture
def server():
    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.seen, served.to = [], "/"
    threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
    served.port = served.server_address[1]
    served.url = f"http://127.0.0.1:{served.port}"
    yield served
    served.shutdown()
    served.server_close()


def reach(**more):
    return Reach(**{"hosts": ("127.0.0.1",), "private": ("127.0.0.1",), "seconds": 5, **more})


def test_an_allowed_host_is_fetched_past_any_proxy(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    got = fetch(server.url + "/a b".replace(" ", "%20") + "?q=1", reach())
    assert (got.status, got.body, got.headers["content-length"]) == (200, b"hello", "5")
    assert server.seen[0][1] == "/a%20b?q=1" and server.seen[0][2]["Host"] == f"127.0.0.1:{server.port}"
    assert fetch(server.url + "/gz", reach()).body == b"packed"
    assert fetch(server.url, reach(), method="HEAD").body == b""


@pytest.mark.parametrize("host", [
    "127.0.0.1", "2130706433", "0177.0.0.1", "0x7f.0.0.1", "0x7f000001", "127.1", "[::1]", "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[::127.0.0.1]", "[2002:7f00:1::]", "localhost", "localhost.", "LOCALHOST",
    "127.0.0.1.", "0.0.0.0", "[::]", "169.254.169.254", "10.0.0.1", "192.168.1.1", "172.16.0.1", "100.64.0.1",
    "224.0.0.1", "240.0.0.1", "[fe80::1]", "[fc00::1]", "[ff02::1]", "[fec0::1]", "user@127.0.0.1",
    "example.org@127.0.0.1", "127.0.0.1\\@example.org", "127.0.0.1%00.example.org", "①②⑦.0.0.1"])
def test_private_addresses_are_refused_in_every_disguise(server, host):
    name = host.split("@")[-1].strip("[]")
    for which in (Reach(any_public=True, seconds=3), Reach(hosts=(name, host), seconds=3)):
        with pytest.raises(TrivetError):
            fetch(f"http://{host}:{server.port}/", which)
    assert server.seen == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/", "gopher://x/", "http://", "http:///x", "//x/",
                                 "http://x:99999/", "http://a b/", "http://x/\r\nA: b", "http://[::1", "x"])
def test_what_is_no_web_address_is_refused(url):
    with pytest.raises(TrivetError):
        fetch(url, Reach(any_public=True, seconds=2))


def test_only_listed_hosts_and_ports(server):
    for hosts in ((), ("example.org",), ("127.0.0.1:1",), ("*.0.0.1.example",)):
        with pytest.raises(TrivetError, match="allow-list"):
            fetch(server.url, reach(hosts=hosts))
    assert fetch(server.url, reach(hosts=(f"127.0.0.1:{server.port}",))).status == 200


def test_a_star_means_subdomains_alone(server, monkeypatch):
    monkeypatch.setattr(fetching, "_resolve", lambda host, port: ["127.0.0.1"])
    within = Reach(hosts=("*.example.org",), private=("*.example.org",), seconds=3)
    assert fetch(f"http://a.example.org:{server.port}/", within).status == 200
    for host in ("example.org", "badexample.org", "example.org.evil.net"):
        with pytest.raises(TrivetError, match="allow-list"):
            fetch(f"http://{host}:{server.port}/", within)


def test_a_resolver_that_changes_its_mind_is_asked_once(server, monkeypatch):
    asked = []

    def resolve(host, *args, **more):
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "10.9.9.9"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, server.port))]

    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo",
                        lambda host, *a, **m: (resolve if host == "re.bind" else real)(host, *a, **m))
    inside = Reach(hosts=("re.bind",), private=("re.bind",), seconds=3)
    assert fetch(f"http://re.bind:{server.port}/", inside).status == 200 and asked == ["re.bind"]
    with pytest.raises(TrivetError, match="not public"):
        fetch(f"http://re.bind:{server.port}/", Reach(any_public=True, seconds=3))


def test_one_private_address_among_public_ones_is_enough_to_refuse(server, monkeypatch):
    monkeypatch.setattr(fetching, "_resolve", lambda host, port: ["93.184.216.34", "127.0.0.1"])
    with pytest.raises(TrivetError, match="not public"):
        fetch(f"http://mixed.example:{server.port}/", Reach(hosts=("mixed.example",), seconds=3))


def test_redirects_stay_within_the_list_and_carry_no_secret(server, monkeypatch):
    monkeypatch.setattr(fetching, "_resolve", lambda host, port: ["127.0.0.1"])
    both = Reach(hosts=("a.test", "b.test"), private=("a.test", "b.test"), seconds=3)
    server.to = f"http://b.test:{server.port}/end"
    got = fetch(f"http://a.test:{server.port}/to/", both, headers={"Authorization": "secret", "Accept": "x/y"})
    assert got.url == server.to and "Authorization" in server.seen[0][2]
    assert "Authorization" not in server.seen[1][2] and server.seen[1][2]["Accept"] == "x/y"
    with pytest.raises(TrivetError, match="redirect"):
        fetch(f"http://a.test:{server.port}/to/", both, method="POST", body=b"x")
    for to in (f"http://c.test:{server.port}/", "file:///etc/passwd", "http://2130706433/"):
        server.to = to
        with pytest.raises(TrivetError):
            fetch(f"http://a.test:{server.port}/to/", both)
    server.to, server.seen[:] = "/to/again", []
    with pytest.raises(TrivetError, match="more than 5 times"):
        fetch(f"http://a.test:{server.port}/to/", both)
    assert len(server.seen) == 6


@pytest.mark.parametrize("path", ["/bomb", "/big"])
def test_a_body_is_bounded_as_it_comes_and_as_it_is_unpacked(server, path):
    with pytest.raises(TrivetError, match="more than 100000 bytes"):
        fetch(server.url + path, reach(most_bytes=100_000))


def test_a_packed_body_that_breaks_off_is_refused(server):
    with pytest.raises(TrivetError, match="breaks off"):
        fetch(server.url + "/cut", reach())


def test_the_time_is_that_of_the_whole(server):
    began = time.monotonic()
    with pytest.raises(TrivetError, match="seconds"):
        fetch(server.url + "/slow", reach(seconds=0.7))
    assert time.monotonic() - began < 1.8


def test_a_slow_resolver_counts_too(monkeypatch):
    monkeypatch.setattr(fetching, "_resolve", lambda host, port: time.sleep(2) or ["127.0.0.1"])
    with pytest.raises(TrivetError, match="seconds"):
        fetch("http://slow.test/", Reach(hosts=("slow.test",), seconds=0.2))
