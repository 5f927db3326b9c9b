"""What a guest on user-mode networking may send, and what is answered without passt."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerne.network.guest_frames import (
    LARGEST_FRAME,
    GuestFrames,
    Verdict,
    arp_request,
    echo_reply,
    framed,
    frames_in,
    goes_on,
    internet_checksum,
    refusal,
    udp_payload,
    udp_reply,
)

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
SYN, ACK = 0x02, 0x10
_GUEST, _GATEWAY = bytes.fromhex("020000000001"), bytes.fromhex("52550a000202")
_OWN = "203.0.113.9"


def packet(
    source: str, destination: str, protocol: int, payload: bytes, *, first: int = 0x45
) -> bytes:
    """An Ethernet frame of a guest."""
    if ":" in destination:
        header = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64)
        ends = [socket.inet_pton(socket.AF_INET6, each) for each in (source, destination)]
        return _GATEWAY + _GUEST + b"\x86\xdd" + header + b"".join(ends) + payload
    head = struct.pack("!BBHHHBBH", first, 0, 20 + len(payload), 0, 0, 64, protocol, 0)
    ends4 = socket.inet_aton(source) + socket.inet_aton(destination)
    header = head[:10] + struct.pack("!H", internet_checksum(head + ends4)) + ends4
    return _GATEWAY + _GUEST + b"\x08\x00" + header + payload


def tcp(destination: str, port: int, flags: int = SYN, *, own_port: int = 40000) -> bytes:
    segment = struct.pack("!HHIIBBHHH", own_port, port, 7, 0, 0x50, flags, 1000, 0, 0)
    return packet(_source(destination), destination, TCP, segment)


def udp(destination: str, port: int, payload: bytes = b"", *, own_port: int = 40000) -> bytes:
    datagram = struct.pack("!HHHH", own_port, port, 8 + len(payload), 0) + payload
    return packet(_source(destination), destination, UDP, datagram)


def _source(destination: str) -> str:
    return "fd43:6572:6e65::15" if ":" in destination else "10.0.2.15"


def _to_guest(protocol: int, source: str, ports: tuple[int, int], flags: int = SYN) -> bytes:
    if protocol == TCP:
        payload = struct.pack("!HHIIBBHHH", *ports, 1, 0, 0x50, flags, 1000, 0, 0)
    else:
        payload = struct.pack("!HHHH", *ports, 8, 0)
    return packet(source, _source(source), protocol, payload)


@pytest.fixture
def frames() -> GuestFrames:
    return GuestFrames(lambda address: address == socket.inet_aton(_OWN), {8000})


@pytest.mark.parametrize(
    "address",
    [
        "10.0.2.2",
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "169.254.169.254",
        "168.63.129.16",
        "100.100.100.200",
        "224.0.0.251",
        "255.255.255.255",
        _OWN,
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "fe80::2",
        "fe80::1234",
        "ff02::fb",
        "fd00:ec2::254",
        "fd20:ce::254",
    ],
)
def test_the_host_and_metadata_are_closed(frames: GuestFrames, address: str) -> None:
    assert frames.judge(tcp(address, 22)) is Verdict.REFUSE
    assert frames.judge(tcp(address, 22, SYN | ACK)) is Verdict.DROP
    assert frames.judge(udp(address, 5353)) is Verdict.DROP


@pytest.mark.parametrize("address", ["192.0.2.80", "8.8.8.8", "2001:db8::1", "64:ff9b::808:808"])
def test_other_addresses_are_open(frames: GuestFrames, address: str) -> None:
    assert frames.judge(tcp(address, 22)) is Verdict.PASS
    assert frames.judge(udp(address, 53)) is Verdict.PASS


@pytest.mark.parametrize("gateway", ["10.0.2.2", "fe80::2"])
def test_a_port_that_was_opened_is_open_at_the_gateway_alone(
    frames: GuestFrames, gateway: str
) -> None:
    assert frames.judge(tcp(gateway, 8000)) is Verdict.PASS
    assert frames.judge(udp(gateway, 8000)) is Verdict.PASS
    assert frames.judge(tcp(gateway, 8001)) is Verdict.REFUSE
    for other in (_OWN, "127.0.0.1", "::1", "10.0.2.3"):
        assert frames.judge(tcp(other, 8000)) is not Verdict.PASS


def test_an_opened_port_is_not_reached_by_odd_packets(frames: GuestFrames) -> None:
    segment = tcp("10.0.2.2", 8000)[34:]
    options = packet("10.0.2.15", "10.0.2.2", TCP, bytes(4) + segment, first=0x46)
    assert frames.judge(options) is Verdict.DROP
    fragment = bytearray(tcp("10.0.2.2", 8000))
    fragment[20] = 0x20
    assert frames.judge(bytes(fragment)) is Verdict.DROP


def test_only_answers_pass_to_the_clients_of_published_ports(frames: GuestFrames) -> None:
    for client in ("10.0.2.2", _OWN, "fe80::2"):
        answer = tcp(client, 51000, SYN | ACK, own_port=80)
        assert frames.judge(answer) is Verdict.DROP
        frames.note(_to_guest(TCP, client, (51000, 80)))
        assert frames.judge(answer) is Verdict.PASS
        # One SYN has one answer, and opens nothing for the guest.
        assert frames.judge(answer) is Verdict.DROP
        assert frames.judge(tcp(client, 51000, SYN, own_port=80)) is Verdict.REFUSE
        assert frames.judge(tcp(client, 51000, ACK, own_port=80)) is Verdict.PASS
        assert frames.judge(udp(client, 51000, own_port=81)) is Verdict.DROP
        frames.note(_to_guest(UDP, client, (51000, 81)))
        assert frames.judge(udp(client, 51000, own_port=81)) is Verdict.PASS
        assert frames.judge(udp(client, 51001, own_port=81)) is Verdict.DROP


@pytest.mark.parametrize("flags", [SYN | ACK, 0x14])
def test_a_connection_from_the_host_begins_again_until_it_is_answered(
    frames: GuestFrames, flags: int
) -> None:
    begins = _to_guest(TCP, "10.0.2.2", (51000, 80))
    frames.note(begins)
    frames.note(_to_guest(TCP, "192.0.2.80", (51000, 80)))
    assert frames.repeated() == []
    assert frames.waits
    assert frames.repeated() == [begins]
    frames.judge(tcp("10.0.2.2", 51000, flags, own_port=80))
    assert frames.repeated() == []
    frames.note(begins)
    assert sum(bool(frames.repeated()) for _ in range(30)) < 10
    assert not frames.waits


def test_an_address_that_becomes_the_hosts_is_closed_then() -> None:
    own: set[bytes] = set()
    frames = GuestFrames(own.__contains__)
    assert frames.judge(tcp(_OWN, 22)) is Verdict.PASS
    own.add(socket.inet_aton(_OWN))
    frames.forget()
    assert frames.judge(tcp(_OWN, 22)) is Verdict.REFUSE


def test_what_configures_a_guest_passes(frames: GuestFrames) -> None:
    assert frames.judge(arp_request(_GUEST, "10.0.2.15", "10.0.2.2")) is Verdict.PASS
    for destination in ("255.255.255.255", "10.0.2.2"):
        assert frames.judge(udp(destination, 67, own_port=68)) is Verdict.PASS
    assert frames.judge(udp("ff02::1:2", 547, own_port=546)) is Verdict.PASS
    for kind, passes in ((133, True), (135, True), (128, False), (137, False)):
        solicitation = packet(
            "fe80::15", "ff02::2", socket.IPPROTO_ICMPV6, bytes([kind]) + bytes(7)
        )
        assert (frames.judge(solicitation) is Verdict.PASS) == passes


def test_a_packet_that_claims_to_be_arp_is_dropped(frames: GuestFrames) -> None:
    frame = bytearray(tcp("127.0.0.1", 22))
    frame[12:14] = b"\x08\x06"
    assert frames.judge(bytes(frame)) is Verdict.DROP
    frame[12:14] = b"\x81\x00"
    assert frames.judge(bytes(frame)) is Verdict.DROP


@given(st.binary(max_size=200))
def test_any_bytes_are_judged(frame: bytes) -> None:
    frames = GuestFrames(lambda address: False, {8000})
    for start in (b"", bytes(12) + b"\x08\x00\x45", bytes(12) + b"\x86\xdd\x60"):
        frames.note(start + frame)
        if frames.judge(start + frame) is Verdict.NAME:
            udp_payload(start + frame)


_DESTINATIONS = ("192.0.2.80", "10.0.2.2", _OWN, "127.0.0.1", "2001:db8::1", "fe80::2")


@given(
    st.sampled_from(_DESTINATIONS),
    st.integers(0, 255),
    st.integers(0, 80),
    st.tuples(st.integers(0, 60), st.integers(0, 255)),
    st.binary(max_size=9),
)
def test_what_is_judged_without_a_copy_is_judged_alike(
    destination: str, flags: int, size: int, change: tuple[int, int], before: bytes
) -> None:
    frames = GuestFrames(lambda address: address == socket.inet_aton(_OWN), {8000})
    for each in _DESTINATIONS:
        frames.judge(tcp(each, 22))
    for whole in (tcp(destination, 22, flags), _to_guest(TCP, destination, (80, 9), flags)):
        changed = bytearray(whole)
        changed[min(change[0], len(whole) - 1)] = change[1]
        frame = bytes(changed[:size])
        buffer, start = before + frame + b"after", len(before)
        if frames.goes_out(buffer, start, start + len(frame)):
            assert frames.judge(frame) is Verdict.PASS
        if goes_on(buffer, start, start + len(frame)):
            fresh = GuestFrames(lambda address: True)
            fresh.note(frame)
            assert not (fresh.waits or fresh._answerable)


def test_most_frames_are_judged_without_a_copy(frames: GuestFrames) -> None:
    out, answer = tcp("192.0.2.80", 22, ACK), _to_guest(TCP, "192.0.2.80", (22, 9), ACK)
    assert not frames.goes_out(out, 0, len(out))
    frames.judge(out)
    assert frames.goes_out(out, 0, len(out))
    assert not frames.goes_out(out + bytes(LARGEST_FRAME), 0, len(out) + LARGEST_FRAME)
    assert goes_on(answer, 0, len(answer))
    begins = _to_guest(TCP, "192.0.2.80", (22, 9))
    assert not goes_on(begins, 0, len(begins))
    frames.forget()
    assert not frames.goes_out(out, 0, len(out))


def test_a_ping_of_the_gateway_is_answered() -> None:
    message = b"\x08\x00\x00\x00\x12\x34\x00\x01" + b"data" * 5
    message = message[:2] + struct.pack("!H", internet_checksum(message)) + message[4:]
    frame = packet("10.0.2.15", "10.0.2.2", socket.IPPROTO_ICMP, message)
    assert GuestFrames(lambda address: False).judge(frame) is Verdict.ECHO
    reply = echo_reply(frame + b"padding")
    assert reply[:12] == _GUEST + _GATEWAY
    assert reply[26:34] == socket.inet_aton("10.0.2.2") + socket.inet_aton("10.0.2.15")
    assert reply[34] == 0
    assert reply[38:] == message[4:]
    assert internet_checksum(reply[34:]) == internet_checksum(reply[14:34]) == 0


@pytest.mark.parametrize("address", ["10.0.2.2", "fe80::2"])
def test_a_refusal_is_a_reset_that_the_guest_takes(address: str) -> None:
    frame = tcp(address, 22)
    reply = refusal(frame)
    old = ":" not in address
    at, ends = (34, reply[26:34]) if old else (54, reply[22:54])
    segment = reply[at:]
    assert struct.unpack("!HHIIBB", segment[:14]) == (22, 40000, 0, 8, 0x50, 0x14)
    assert internet_checksum(ends + struct.pack("!HH", TCP, len(segment)) + segment) == 0
    if old:
        assert internet_checksum(reply[14:34]) == 0


def test_a_datagram_back() -> None:
    question = udp("10.0.2.3", 53, b"question")
    assert GuestFrames(lambda address: False).judge(question) is Verdict.NAME
    assert udp_payload(question) == b"question"
    reply = udp_reply(question, b"answer")
    assert reply[:12] == _GUEST + _GATEWAY
    assert internet_checksum(reply[14:34]) == 0
    assert struct.unpack("!HHH", reply[34:40]) == (53, 40000, 14)
    assert reply[42:] == b"answer"


def test_a_stream_is_cut_into_frames() -> None:
    stream = framed(b"one") + framed(b"") + framed(b"three") + framed(b"cut")[:-1]
    frames, end = frames_in(stream, 100)
    assert [stream[start:after] for start, after in frames] == [b"one", b"", b"three"]
    assert end == len(framed(b"one") + framed(b"") + framed(b"three"))
    with pytest.raises(ValueError, match="frame is 101"):
        frames_in(framed(bytes(101)), 100)
