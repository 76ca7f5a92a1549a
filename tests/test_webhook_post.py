"""One attempt to deliver, against real servers on loopback: whom it connects to, and what it makes of the answer."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from app.webhooks.address import Allowed, Resolve
from app.webhooks.post import Courier, Undelivered
from tests.receiver import FakeReceiver, Received, Reply

pytestmark = pytest.mark.asyncio

LOOPBACK = Allowed.parse(("127.0.0.0/8", "::1"))
ONE = Allowed.parse(("127.0.0.1",))


@pytest.fixture
def receiver() -> Iterator[FakeReceiver]:
    with FakeReceiver() as receiver:
        yield receiver


def resolving(*answers: list[str]) -> tuple[Resolve, list[str]]:
    """A resolver that gives these answers one after the other, and what it was asked."""
    asked: list[str] = []

    async def resolve(name: str) -> list[str]:
        asked.append(name)
        return answers[min(len(asked), len(answers)) - 1]

    return resolve, asked


async def nobody(name: str) -> list[str]:
    raise OSError(f"{name} is unknown")


async def post(url: str, allowed: Allowed = LOOPBACK, resolve: Resolve = nobody, **options: object) -> int:
    courier = Courier(allowed, resolve, **options)  # type: ignore[arg-type]
    try:
        return (await courier.post(url, {"webhook-id": "one"}, b"{}")).status
    finally:
        await courier.aclose()


async def reason(url: str, allowed: Allowed = LOOPBACK, resolve: Resolve = nobody, **options: object) -> str:
    with pytest.raises(Undelivered) as caught:
        await post(url, allowed, resolve, **options)
    return caught.value.reason


# --- whom it connects to ---------------------------------------------------------------------------------------------


async def test_it_connects_to_the_address_that_was_checked_under_the_name_that_was_asked_for(
    receiver: FakeReceiver,
) -> None:
    resolve, asked = resolving(["127.0.0.1"])
    assert await post(f"http://hooks.test:{receiver.port}/a%20b?c=d", ONE, resolve) == 204
    got = receiver.next()
    assert (got.path, got.headers["host"], got.body) == ("/a%20b?c=d", f"hooks.test:{receiver.port}", b"{}")
    assert asked == ["hooks.test"], "once: a second answer could be another one"


async def test_a_name_that_turns_private_is_not_followed(receiver: FakeReceiver) -> None:
    """DNS rebinding: the first look finds a permitted address, the next one the server's own."""
    resolve, asked = resolving(["127.0.0.2"], ["127.0.0.1"])
    with FakeReceiver("127.0.0.2", receiver.port) as permitted:
        courier = Courier(Allowed.parse(("127.0.0.2",)), resolve)
        url = f"http://hooks.test:{receiver.port}/"
        assert (await courier.post(url, {}, b"{}")).status == 204
        with pytest.raises(Undelivered, match="not public"):
            await courier.post(url, {}, b"{}")
        await courier.aclose()
        assert len(permitted.received) == 1
    assert (receiver.received, len(asked)) == ([], 2)


@pytest.mark.parametrize("where", ["http://127.0.0.1:{port}/", "http://private.test:{port}/", "http://[::1]:{port}/"])
async def test_without_permission_nothing_is_connected_to(receiver: FakeReceiver, where: str) -> None:
    resolve, _ = resolving(["127.0.0.1"])
    assert "not public" in await reason(where.format(port=receiver.port), Allowed(), resolve)
    assert receiver.received == []


async def test_proxies_of_the_environment_are_not_used(receiver: FakeReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert await post(receiver.url) == 204


async def test_addresses_are_tried_one_after_the_other(receiver: FakeReceiver) -> None:
    resolve, _ = resolving(["127.0.0.3", "127.0.0.1"])
    assert await post(f"http://hooks.test:{receiver.port}/", LOOPBACK, resolve) == 204


async def test_an_address_of_six_is_written_as_it_must_be() -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")

    with FakeReceiver("::1") as receiver:
        assert await post(f"http://[::1]:{receiver.port}/") == 204
        assert receiver.next().headers["host"] == f"[::1]:{receiver.port}"


# --- redirects -------------------------------------------------------------------------------------------------------


def to(location: str, status: int = 307) -> Callable[[Received], Reply]:
    return lambda received: Reply(status, {"Location": location}) if received.path == "/hook" else Reply()


@pytest.mark.parametrize("status", [307, 308])
async def test_a_redirect_that_keeps_the_post_is_followed(receiver: FakeReceiver, status: int) -> None:
    receiver.answer = to("/there?x=1", status)
    assert await post(receiver.url) == 204
    assert [(one.path, one.body) for one in receiver.received] == [("/hook", b"{}"), ("/there?x=1", b"{}")]


@pytest.mark.parametrize("status", [301, 302, 303])
async def test_one_that_would_make_a_get_of_it_is_an_answer(receiver: FakeReceiver, status: int) -> None:
    receiver.answer = to("/there", status)
    assert await post(receiver.url) == status


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{port}/there",
        "//127.0.0.1:{port}/there",
        "http://localhost:{port}/there",
        "http://inner.test:{port}/there",
        "http://2130706433:{port}/there",
        "ftp://example.org/",
        "http://user@hooks.test:{port}/there",
        "http://hooks.test:22/there",
        "http://[",
    ],
)
async def test_a_redirect_to_where_it_must_not_go_ends_there(receiver: FakeReceiver, location: str) -> None:
    with FakeReceiver("127.0.0.2", receiver.port) as outer:
        outer.answer = to(location.format(port=receiver.port))

        async def resolve(name: str) -> list[str]:
            return ["127.0.0.2" if name == "hooks.test" else "127.0.0.1"]

        why = await reason(f"http://hooks.test:{receiver.port}/hook", Allowed.parse(("127.0.0.2",)), resolve)
        assert len(outer.received) == 1
    assert "redirected" in why or "not public" in why
    assert receiver.received == []


async def test_redirects_come_to_an_end(receiver: FakeReceiver) -> None:
    receiver.answer = lambda _: Reply(307, {"Location": "/hook"})
    assert "more than 3 times" in await reason(receiver.url)
    assert len(receiver.received) == 4


async def test_a_name_is_checked_anew_at_every_hop(receiver: FakeReceiver) -> None:
    resolve, asked = resolving(["127.0.0.1"], ["10.0.0.1"])
    receiver.answer = to("/there")
    assert "not public" in await reason(f"http://hooks.test:{receiver.port}/hook", ONE, resolve)
    assert (len(receiver.received), asked) == (1, ["hooks.test"] * 2)


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For hooks.test and 127.0.0.1, signed by itself; key and certificate in one file."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hooks.test")])
    names = [x509.DNSName("hooks.test"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def secure(certificate: Path) -> Iterator[FakeReceiver]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with FakeReceiver(tls=context) as receiver:
        yield receiver


@pytest.mark.parametrize("host", ["hooks.test", "127.0.0.1"])
async def test_a_certificate_must_be_for_the_name_and_not_for_the_address(
    secure: FakeReceiver, certificate: Path, host: str
) -> None:
    believed = ssl.create_default_context(cafile=certificate)
    resolve, _ = resolving(["127.0.0.1"])
    assert await post(f"https://{host}:{secure.port}/", LOOPBACK, resolve, tls=believed) == 204
    assert secure.next().headers["host"] == f"{host}:{secure.port}"
    assert "securely" in await reason(f"https://other.test:{secure.port}/", LOOPBACK, resolve, tls=believed)
    assert "securely" in await reason(f"https://{host}:{secure.port}/", LOOPBACK, resolve)
    assert len(secure.received) == 1


async def test_a_redirect_does_not_lead_out_of_tls(
    secure: FakeReceiver, receiver: FakeReceiver, certificate: Path
) -> None:
    secure.answer = to(f"http://127.0.0.1:{receiver.port}/there")
    believed = ssl.create_default_context(cafile=certificate)
    assert "from https to http" in await reason(f"https://127.0.0.1:{secure.port}/hook", tls=believed)
    assert receiver.received == []


# --- answers ---------------------------------------------------------------------------------------------------------


async def test_a_receiver_that_says_nothing_is_given_up_in_time(receiver: FakeReceiver) -> None:
    stuck = threading.Event()
    receiver.answer = lambda _: Reply(after=stuck)
    assert "within 0.2 seconds" in await reason(receiver.url, timeout_s=0.2)
    stuck.set()


async def test_one_that_is_not_there_is_told_from_one_that_hangs_up(receiver: FakeReceiver) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert "could not be connected" in await reason(f"http://127.0.0.1:{port}/")
    with socket.create_server(("127.0.0.1", 0)) as rude:

        def hang_up() -> None:
            rude.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        assert "ended without an answer" in await reason(f"http://127.0.0.1:{rude.getsockname()[1]}/")
        thread.join()


async def test_no_more_than_a_little_of_an_answer_is_read() -> None:
    """A body without an end: the status is known, and the rest of it nobody waits for."""
    sent = 0
    with socket.create_server(("127.0.0.1", 0)) as endless:

        def pour() -> None:
            nonlocal sent
            connection, _ = endless.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
                try:
                    while sent < 2**28:
                        sent += connection.send(b"x" * 65536)
                except OSError:
                    pass

        thread = threading.Thread(target=pour)
        thread.start()
        assert await post(f"http://127.0.0.1:{endless.getsockname()[1]}/") == 200
        thread.join()
    assert sent < 2**26


@pytest.mark.parametrize("is_secure", [False, True])
async def test_what_comes_before_an_answer_has_an_end(certificate: Path, is_secure: bool) -> None:
    sent = 0
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with socket.create_server(("127.0.0.1", 0)) as endless:

        def pour() -> None:
            nonlocal sent
            try:
                connection, _ = endless.accept()
                with tls.wrap_socket(connection, server_side=True) if is_secure else connection as stream:
                    stream.recv(65536)
                    while sent < 2**24:
                        sent += stream.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)
            except OSError:
                pass

        thread = threading.Thread(target=pour)
        thread.start()
        url = f"{'https' if is_secure else 'http'}://127.0.0.1:{endless.getsockname()[1]}/"
        believed = ssl.create_default_context(cafile=certificate)
        assert "ended without an answer" in await reason(url, tls=believed)
        thread.join()
    assert sent < 2**24


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("30", 30.0), ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0), ("soon", None), ("-1", None)]
    + [("Mon, 01 Jan 2020 00:00:00 +99999999999999", None)],
)
async def test_retry_after_is_read_as_seconds_or_a_date(
    receiver: FakeReceiver, header: str, seconds: float | None
) -> None:
    receiver.answer = lambda _: Reply(503, {"Retry-After": header})
    courier = Courier(LOOPBACK, nobody)
    answer = await courier.post(receiver.url, {}, b"{}")
    await courier.aclose()
    assert (answer.status, answer.is_success, answer.retry_after_s) == (503, False, seconds)


async def test_no_cookie_of_one_receiver_goes_to_another_time(receiver: FakeReceiver) -> None:
    receiver.answer = lambda _: Reply(200, {"Set-Cookie": "who=you"})
    courier = Courier(LOOPBACK, nobody)
    for _ in range(2):
        await courier.post(receiver.url, {}, b"{}")
    await courier.aclose()
    assert all("cookie" not in one.headers for one in receiver.received)
