"""The role's own modules: apt's configuration, password files, listening sockets."""

from __future__ import annotations

import socket
from pathlib import Path

import apt_archive
import port_listeners
import pytest
from ansible.module_utils import passfile
from hypothesis import given
from hypothesis import strategies as st

DEB822 = """\
# The system's own.
Types: deb deb-src
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
 -----END PGP PUBLIC KEY BLOCK-----
"""
ONE_LINE = """\
deb http://third.example/packages bookworm main  # somebody else's, with Debian's names
#deb http://old.example/debian bullseye main
deb [arch=amd64 signed-by=/etc/apt/keyrings/mirror.gpg] https://mirror.example/debian bookworm main non-free
deb-src https://mirror.example/debian bookworm main
deb https://mirror.example/security bookworm-security main
"""


def archives(etc: Path) -> tuple[apt_archive.Source | None, apt_archive.Source | None]:
    """Debian's main and security archive as apt's configuration under `etc` names them."""
    return apt_archive.choose(apt_archive.read_sources(etc))


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """An empty configuration of apt."""
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_sources_of_the_deb822_form(etc: Path) -> None:
    (etc / "sources.list.d" / "debian.sources").write_text(DEB822)
    main, security = archives(etc)
    assert main is not None
    assert security is not None
    assert main.uri == "http://mirror.example/debian"
    assert main.signed_by == "/usr/share/keyrings/debian-archive-keyring.gpg"
    assert security.uri == "http://mirror.example/debian-security"
    assert security.signed_by.splitlines()[1:3] == ["", "mQINBF"]


def test_sources_of_the_one_line_form(etc: Path) -> None:
    (etc / "sources.list").write_text(ONE_LINE)
    main, security = archives(etc)
    assert main is not None
    assert security is not None
    assert main.uri == "https://mirror.example/debian"
    assert main.signed_by == "/etc/apt/keyrings/mirror.gpg"
    assert security.uri == "https://mirror.example/security"


def test_disabled_and_unreachable_sources_do_not_count(etc: Path) -> None:
    (etc / "sources.list.d" / "debian.sources").write_text(DEB822.replace("Types: deb", "Enabled: no\nTypes: deb"))
    (etc / "sources.list").write_text("deb cdrom:[Debian 12]/ bookworm main\ndeb file:/srv/debian bookworm main\n")
    assert archives(etc) == (None, None)


def test_a_list_of_mirrors_is_followed(etc: Path) -> None:
    mirrors = etc / "mirrors.list"
    mirrors.write_text("# ours first\nhttps://mirror.example/debian\tpriority:1\nhttps://other.example/debian\n")
    (etc / "sources.list").write_text(f"deb mirror+file:{mirrors} bookworm main\n")
    main, _ = archives(etc)
    assert main is not None
    assert main.uri == "https://mirror.example/debian"


def test_ubuntu_names_no_debian_archive(etc: Path) -> None:
    (etc / "sources.list").write_text("deb http://mirror.example/ubuntu jammy main universe\n")
    assert archives(etc) == (None, None)


def test_settings_of_apt() -> None:
    dump = 'Acquire::http::Proxy "http://proxy.example:3128";\nAPT::Architectures:: "amd64";\n'
    assert apt_archive.settings(dump)["acquire::http::proxy"] == "http://proxy.example:3128"


KEY = [b"127.0.0.1", b"5433", b"autotasktracker", b"autotasktracker"]


@pytest.mark.parametrize(
    "before",
    [
        b"",
        b"# mine\n",
        b"other:5432:db:me:secret\n",
        b"*:*:*:*:wildcard\n",
        b"other:5432:db:me:no newline at the end",
        b"windows:5432:db:me:secret\r\n*:5433:*:autotasktracker:x\r\n",
        b"127.0.0.1:5433:autotasktracker:somebody:theirs\n",
        b"latin1:5432:db:me:\xe4\xff\n",
    ],
)
def test_entry_comes_first_and_others_stay(before: bytes) -> None:
    after = passfile.with_entry(before, KEY, b"new")
    assert after == b":".join(KEY) + b":new\n" + before
    assert passfile.find_password(after, KEY) == b"new"
    assert passfile.with_entry(after, KEY, b"new") == after
    assert passfile.without_entry(after, KEY) == passfile.without_entry(before, KEY)
    assert passfile.find_password(passfile.without_entry(after, KEY), KEY) is None


def test_entry_behind_a_wildcard_moves_to_the_front() -> None:
    ours = b":".join(KEY) + b":kept\n"
    assert passfile.with_entry(b"*:*:*:*:w\n" + ours, KEY, b"kept") == ours + b"*:*:*:*:w\n"


def test_entry_that_wins_already_stays_where_it_is() -> None:
    before = b"# notes\nother:1:a:b:c\n" + b":".join(KEY) + b":kept\n*:*:*:*:w\n"
    assert passfile.with_entry(before, KEY, b"kept") == before


def test_wildcards_hold_no_password_of_ours() -> None:
    assert passfile.find_password(b"*:*:*:*:w\n# 127.0.0.1:5433:a:b:c\n", KEY) is None


@given(st.lists(st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"])), min_size=5, max_size=5))
def test_fields_survive_their_escaping(fields: list[str]) -> None:
    line = ":".join(passfile.escape(field) for field in fields).encode()
    assert passfile.split_entry(line) == [field.encode() for field in fields]


@given(st.binary())
def test_any_other_content_stays(before: bytes) -> None:
    after = passfile.with_entry(before, KEY, b"new")
    assert after.endswith(before)
    assert passfile.find_password(after, KEY) == b"new"


@pytest.mark.parametrize(("family", "bind"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0")])
def test_a_listening_socket_is_found(family: socket.AddressFamily, bind: str) -> None:
    with socket.socket(family) as server:
        server.bind((bind, 0))
        port = server.getsockname()[1]
        assert port_listeners.sockets(Path("/proc"), port) == {}, "bound is not listening"
        server.listen()
        found = port_listeners.sockets(Path("/proc"), port)
        assert list(found.values()) == [bind]
        ((pid, name),) = port_listeners.owners(Path("/proc"), found).values()
        assert (pid, name) == (
            int(Path("/proc/self").readlink().name),
            Path("/proc/self/comm").read_text().strip(),
        )


def test_addresses_of_both_families() -> None:
    # As a little-endian machine writes them.
    assert port_listeners.address("0100007F:1539") == ("127.0.0.1", 5433)
    assert port_listeners.address("00000000000000000000000000000000:1539") == ("::", 5433)
    assert port_listeners.address("0000000000000000FFFF00000100007F:1539") == ("::ffff:127.0.0.1", 5433)
