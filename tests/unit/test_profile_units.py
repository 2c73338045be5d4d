"""Sizes, CPUs, times, names and addresses: what is understood, and that writing and reading agree."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.profile import ports, units, words


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256MiB", 256 << 20),
        ("256 MiB", 256 << 20),
        ("1.5G", 3 << 29),
        ("512m", 512 << 20),
        ("512M", 512 << 20),
        ("1kB", 1000),
        ("2GB", 2 * 10**9),
        ("4096", 4096),
        (4096, 4096),
        ("0", 0),
        ("7b", 7),
        ("1Ti", 1 << 40),
    ],
)
def test_sizes_as_people_write_them(text: object, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    "bad", ["", "-1", "1.5.2G", "12 elephants", "1e9", True, None, -5, 2**63, "9" * 30, [], "١M"]
)
def test_what_is_no_size(bad: object) -> None:
    with pytest.raises(ValueError, match="must be a size such as 256MiB"):
        units.parse_size(bad)


@given(st.integers(0, 2**62))
def test_a_size_survives_writing(size: int) -> None:
    assert units.parse_size(units.format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "cpus"), [(2, 2.0), (0.5, 0.5), ("500m", 0.5), ("1.5", 1.5), ("1500m", 1.5)]
)
def test_cpus(text: object, cpus: float) -> None:
    assert units.parse_cpus(text) == cpus


@pytest.mark.parametrize("bad", ["lots", -1, "-1", True, "1k", float("nan"), float("inf"), 10**9, "99999"])
def test_what_is_no_number_of_cpus(bad: object) -> None:
    with pytest.raises(ValueError, match="must be a number of CPUs"):
        units.parse_cpus(bad)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (30, 30.0),
        ("30s", 30.0),
        ("2m", 120.0),
        ("1h30m", 5400.0),
        ("200ms", 0.2),
        ("1m 30s", 90.0),
        (0.5, 0.5),
        ("0", 0),
    ],
)
def test_times(text: object, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize("bad", ["", "soon", "30 sec", -1, "1y", "31d", True, None, float("nan"), "s"])
def test_what_is_no_time(bad: object) -> None:
    with pytest.raises(ValueError, match="must be a time such as 30s"):
        units.parse_duration(bad)


@given(st.integers(0, 30 * 86_400_000))
def test_a_time_survives_writing(milliseconds: int) -> None:
    assert units.parse_duration(units.format_duration(milliseconds / 1000)) == milliseconds / 1000


@given(st.from_regex(words.NAME, fullmatch=True))
def test_a_good_name_is_left_alone(name: str) -> None:
    assert words.name(name) == name
    assert len(name) <= 63


@given(st.text(max_size=300))
def test_a_name_is_good_or_refused_in_words_that_fit_a_terminal(text: str) -> None:
    try:
        good = words.name(text)
    except ValueError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 250
    else:
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,63}", good, re.ASCII)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "must not be empty"),
        ("x" * 300, "has 300 characters; 63 are the limit"),
        ("a/b", "has '/' in it"),
        ("a'b\"c", "in it; letters, digits, - and _ are allowed"),
        ("a\nb", r"has '\\n' in it"),
        ("<a>", "has '<' '>' in it"),
        ("a b", "has space in it"),
        ("-a", "must not begin or end with -"),
        ("a-", "must not begin or end with -"),
        ("naïve", "has 'ï' in it"),
        ("..", r"has '\.' in it"),
    ],
)
def test_why_a_name_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        words.name(name)


def test_names_with_underscores_are_names() -> None:
    assert words.name("web_server_1") == "web_server_1"
    assert words.name("_x") == "_x"


@given(st.ip_addresses())
def test_an_address_survives(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert ipaddress.ip_address(words.address(str(address))) == address
    assert words.address(address.exploded) == words.address(str(address))


@given(st.integers(0, 2**48 - 1))
def test_a_mac_is_refused_or_made_uniform(number: int) -> None:
    text = ":".join(f"{number:012X}"[i : i + 2] for i in range(0, 12, 2))
    if number == 0 or number >> 40 & 1:
        with pytest.raises(ValueError, match=r"even|zeros"):
            words.mac(text)
    else:
        assert words.mac(text) == words.mac(text.replace(":", "-")) == text.lower()


def test_a_host_address_where_a_subnet_belongs_names_the_subnet() -> None:
    with pytest.raises(ValueError, match=r"did you mean 10\.0\.0\.0/24\?"):
        words.subnet("10.0.0.1/24")
    assert words.subnet("fd00:0:0::/64") == "fd00::/64"


@pytest.mark.parametrize(
    ("text", "mode"), [("0644", "0644"), ("644", "0644"), (755, "0755"), ("0o1777", "1777")]
)
def test_modes_are_octal_however_written(text: object, mode: str) -> None:
    assert words.mode(text) == mode


@pytest.mark.parametrize("bad", ["rw-r--r--", "0888", "", "77777", True, "-644"])
def test_what_is_no_mode(bad: object) -> None:
    with pytest.raises(ValueError, match="is no file mode"):
        words.mode(bad)


def test_signals_and_capabilities_get_the_kernels_names() -> None:
    assert words.stop_signal("term") == words.stop_signal("SIGTERM") == words.stop_signal("15") == "SIGTERM"
    assert words.stop_signal("RTMIN+3") == "SIGRTMIN+3"
    assert words.capability("net_admin") == "CAP_NET_ADMIN"
    assert words.capability("all") == "ALL"
    with pytest.raises(ValueError, match="did you mean NET_ADMIN"):
        words.capability("net_adnim")
    with pytest.raises(ValueError, match="is no signal"):
        words.stop_signal("HUPP")


def test_ports_in_dockers_form() -> None:
    assert ports.parse_ports("80") == [{"node_port": 80, "host_port": 0, "host_ip": "", "proto": "tcp"}]
    assert ports.parse_ports("[::1]:8080:80/udp") == [
        {"node_port": 80, "host_port": 8080, "host_ip": "::1", "proto": "udp"}
    ]
    assert [p["host_port"] for p in ports.parse_ports("8000-8002:80-82")] == [8000, 8001, 8002]
    for bad in ("", "a", "0", "80:", "70000", "1-3:1-2", "1-65535", "3-1", "80/"):
        with pytest.raises(ValueError, match=r"port"):
            ports.parse_ports(bad)
