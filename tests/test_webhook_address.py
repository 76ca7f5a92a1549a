"""Where webhooks may lead: the rules, one address and one URL at a time."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.webhooks.address import NOT_PUBLIC, Allowed, Refused, Resolver, checked_addresses, is_public, read_target

NOBODY = Allowed()


def refusal(url: str, allowed: Allowed = NOBODY) -> str:
    with pytest.raises(Refused) as caught:
        read_target(url, allowed)
    return str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "1.1.1.1",
        "93.184.216.34",
        "2606:4700:4700::1111",
        "2a00:1450::1",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
    ],
)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.255.254", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.0.1", "169.254.169.254"),
        *("100.64.0.1", "0.0.0.0", "0.1.2.3", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.9"),
        *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "192.88.99.1"),
        *("192.0.0.192", "192.0.0.9", "168.63.129.16", "::ffff:168.63.129.16"),
        *("::1", "::", "fe80::1", "fc00::1", "fd12:3456::1", "ff02::1", "2001:db8::1", "fec0::1", "100::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1"),
        *("64:ff9b:1::808:808", "2002:7f00:1::1", "2002:808:808::1", "2001:0:7f00:1::1", "2001:2::1", "2001:20::1"),
    ],
)
def test_any_other_is_not_however_it_is_wrapped(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@settings(derandomize=True, deadline=None)
@given(st.ip_addresses(v=4))
def test_an_address_inside_another_one_counts_as_itself(address: ipaddress.IPv4Address) -> None:
    mapped = ipaddress.IPv6Address(f"::ffff:{address}")
    translated = ipaddress.IPv6Address((0x64FF9B << 96) | int(address))
    assert is_public(mapped) == is_public(translated) == is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.org/a/b?c=d",
        "http://hooks.example.org",
        "https://hooks.example.org:8443/",
        "https://8.8.8.8/hook",
        "https://[2606:4700:4700::1111]:8443/hook",
        "https://bücher.example/hook",
        "https://under_score.example/hook",
        "https://example.org./hook",
    ],
)
def test_a_url_that_may_be_called_is_read(url: str) -> None:
    assert read_target(url, NOBODY).port in (80, 443, 8443)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://example.org/", "Only http and https"),
        ("file:///etc/passwd", "Only http and https"),
        ("gopher://example.org:70/_x", "Only http and https"),
        ("example.org/hook", "Only http and https"),
        ("/hook", "Only http and https"),
        ("https://user:secret@example.org/", "A user"),
        ("https://example.org\\@127.0.0.1/", "A user"),
        ("https://example.org/#there", "fragment"),
        ("https:///hook", "host"),
        ("https://exa mple.org/", "host"),
        ("https://%31%32%37.0.0.1/", "host"),
        ("https://a..b/", "host"),
        ("https://example.org\t/", "read as a URL"),
        ("https://１２７.0.0.1/", "read as a URL"),
        ("https://[::1", "read as a URL"),
        ("http://example.org:22/", "ports"),
        ("http://example.org:25/", "ports"),
        ("http://example.org:0/", "ports"),
        ("http://example.org:99999/", "ports"),
        ("http://" + "a" * 2048 + ".org/", "more than 2048"),
        ("http://127.0.0.1/", NOT_PUBLIC),
        ("http://127.0.0.1./", NOT_PUBLIC),
        ("http://10.0.0.8:8080/", NOT_PUBLIC),
        ("http://169.254.169.254/latest/meta-data", NOT_PUBLIC),
        ("http://[::1]:8000/", NOT_PUBLIC),
        ("http://[::ffff:10.0.0.1]/", NOT_PUBLIC),
        ("http://[fe80::1%25eth0]/", "usual spelling"),
        ("http://[2606:4700:4700::1111%25lo]/", "usual spelling"),
        ("http://0.0.0.0/", NOT_PUBLIC),
        ("http://127.1/", "usual spelling"),
        ("http://2130706433/", "usual spelling"),
        ("http://0x7f000001/", "usual spelling"),
        ("http://0177.0.0.1/", "read as a URL"),
        ("http://1.2.3.0x4/", "usual spelling"),
        ("http://localhost:8000/", "the server itself"),
        ("http://LOCALHOST./", "the server itself"),
        ("http://api.localhost/", "the server itself"),
    ],
)
def test_any_other_is_refused_with_a_reason(url: str, why: str) -> None:
    assert why in refusal(url)


def test_whoever_runs_the_server_lets_chosen_receivers_in() -> None:
    allowed = Allowed.parse(("127.0.0.1", "10.0.0.0/8", "fd00::/8", "localhost", "hooks.internal"))
    for url in ("http://127.0.0.1:9000/", "http://10.9.8.7/", "http://[fd00::5]/", "http://localhost:9000/"):
        assert read_target(url, allowed).url.scheme == "http"
    assert read_target("http://[::ffff:10.0.0.1]/", allowed)
    for url in ("http://127.0.0.2/", "http://192.168.0.1/", "http://[::1]/", "http://api.localhost/"):
        assert refusal(url, allowed)
    assert "ports" in refusal("http://10.0.0.1:22/", allowed)


@pytest.mark.parametrize("entry", ["10.0.0.1/8", "http://hooks.internal", "a b", "127.1", "*.internal", "hooks:80"])
def test_an_entry_that_lets_in_nobody_is_named(entry: str) -> None:
    with pytest.raises(ValueError, match="neither a host name"):
        Allowed.parse((entry,))


@pytest.mark.asyncio
async def test_every_address_of_a_name_must_be_permitted() -> None:
    found = {
        "public.test": ["8.8.8.8", "2606:4700:4700::1111"],
        "private.test": ["10.0.0.1"],
        "both.test": ["8.8.8.8", "127.0.0.1"],
        "scoped.test": ["fe80::1%eth0"],
        "empty.test": [],
    }

    async def resolve(name: str) -> list[str]:
        if name not in found:
            raise OSError("unknown")
        return found[name]

    async def check(name: str, allowed: Allowed = NOBODY) -> list[str]:
        return [str(one) for one in await checked_addresses(read_target(f"https://{name}/", allowed), allowed, resolve)]

    assert await check("public.test") == found["public.test"]
    for name in ("private.test", "both.test", "scoped.test", "empty.test", "unknown.test"):
        with pytest.raises(Refused, match=NOT_PUBLIC):
            await check(name)
    assert await check("both.test", Allowed.parse(("both.test",))) == found["both.test"]
    assert await check("private.test", Allowed.parse(("10.0.0.0/8",))) == ["10.0.0.1"]
    with pytest.raises(Refused):
        await check("both.test", Allowed.parse(("10.0.0.0/8",)))


@pytest.mark.asyncio
async def test_the_resolver_asks_the_system() -> None:
    assert "127.0.0.1" in await Resolver(2)("localhost")
    with pytest.raises(OSError, match=r".+"):
        await Resolver(2)("no-such-name.invalid")
