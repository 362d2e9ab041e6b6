"""Names and links that are made to be taken for something else."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import migration_manifest, whole_file
from ansible.module_utils.migration_manifest import UNIT
from ansible.module_utils.ownership import ForeignError, name_of, require_own_environment
from ansible.module_utils.pensieve_process import Unit, commands, is_of_pensieve

NOBODY = 65534


@pytest.mark.parametrize("name", ["-Hmallory@example.org.service", "--host.service", "a b.service", "pensieve"])
def test_what_is_no_name_of_a_unit(name: str) -> None:
    assert UNIT.fullmatch(name) is None


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """An environment that others may read: two packages, a folder that a .pth file names, and the Python below it."""
    made = tmp_path / "venv"
    for folder in ("bin", "lib/python3.11/site-packages/memos/deep", "../base/lib/python3.11/json", "../editable/one"):
        (made / folder).mkdir(parents=True)
    for file in ("bin/python", "../base/lib/python3.11/json/decoder.py", "../editable/one/two.py"):
        (made / file).touch()
    (made / "bin" / "memos").touch()
    (made / "lib64").symlink_to("lib")
    packages = made / "lib/python3.11/site-packages"
    (packages / "memos/deep/code.py").touch()
    (packages / "editable.pth").write_text(f"# a folder\nimport sys\n{tmp_path}/editable\nnot/there\n")
    (made / "pyvenv.cfg").write_text(f"home = {tmp_path}/base/bin\nversion = 3.11.2\n")
    for place in (tmp_path, *tmp_path.rglob("*")):
        place.chmod(0o755)
    return made


PACKAGES = "venv/lib/python3.11/site-packages"


@pytest.mark.parametrize("above", [0o755, 0o1777])
def test_an_environment_of_its_owner(venv: Path, above: int) -> None:
    """Above it, others may add names of their own, as in /tmp."""
    venv.parent.chmod(above)
    require_own_environment(venv, os.geteuid(), venv.parent / "home")


@pytest.mark.parametrize(
    ("place", "mode"),
    [
        (f"{PACKAGES}/memos/deep/code.py", 0o757),
        (f"{PACKAGES}/memos/deep", 0o757),
        (f"{PACKAGES}/memos/deep", 0o1777),
        (PACKAGES, 0o1777),
        (f"{PACKAGES}/editable.pth", 0o646),
        ("venv/pyvenv.cfg", 0o646),
        ("base/lib/python3.11/json/decoder.py", 0o646),
        ("base/lib/python3.11", 0o1777),
        ("editable/one", 0o1777),
        ("editable/one/two.py", 0o646),
        ("venv", 0o1777),
        ("venv/bin", 0o1777),
        ("venv/bin/memos", 0o757),
        ("venv/lib", 0o1777),
        ("base/lib", 0o1777),
    ],
)
def test_whatever_an_interpreter_runs_is_closed_to_others(venv: Path, place: str, mode: int) -> None:
    (venv.parent / place).chmod(mode)
    with pytest.raises(ForeignError, match="others may write it") as refused:
        require_own_environment(venv, os.geteuid(), venv.parent / "home")
    assert refused.value.filename == str(venv.parent / place)


def opened(tmp_path: Path) -> Path:
    """A folder where others may add names, like /tmp."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


@pytest.mark.parametrize("how", ["path", "link", "program"])
def test_what_is_not_there_is_nobody_elses_to_make(venv: Path, how: str) -> None:
    nowhere = opened(venv.parent) / "not" / "there"
    if how == "path":
        (venv / PACKAGES.partition("/")[2] / "gone.pth").write_text(f"{nowhere}\n")
    elif how == "link":
        (venv / PACKAGES.partition("/")[2] / "gone").symlink_to(nowhere)
    else:
        (venv / "bin" / "python").unlink()
        (venv / "bin" / "python").symlink_to(nowhere)
    with pytest.raises(ForeignError, match="others may write it"):
        require_own_environment(venv, os.geteuid(), venv.parent / "home")


def test_the_python_behind_a_link_is_looked_at(venv: Path) -> None:
    """`home` names a folder of links, as people make them to one of many Pythons."""
    links, real = venv.parent / "links", venv.parent / "real"
    for folder in (links, real / "bin", real / "lib" / "python3.11"):
        folder.mkdir(parents=True)
        folder.chmod(0o755)
    (real / "bin" / "python3.11").touch()
    (links / "python3.11").symlink_to(real / "bin" / "python3.11")
    (venv / "pyvenv.cfg").write_text(f"home = {links}\n")
    require_own_environment(venv, os.geteuid(), venv.parent / "home")
    (real / "lib" / "python3.11").chmod(0o1777)
    with pytest.raises(ForeignError, match="others may write it"):
        require_own_environment(venv, os.geteuid(), venv.parent / "home")


@pytest.mark.parametrize("wide", [False, True])
def test_packages_of_the_user_count_where_they_are_run(venv: Path, wide: bool) -> None:
    packages = venv.parent / "home" / ".local" / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    packages.chmod(0o777)
    (venv / "pyvenv.cfg").write_text(f"include-system-site-packages = {str(wide).lower()}\n")
    if not wide:
        require_own_environment(venv, os.geteuid(), venv.parent / "home")
        return
    with pytest.raises(ForeignError, match="others may write it"):
        require_own_environment(venv, os.geteuid(), venv.parent / "home")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("pipe.pth", None, None),
        ("nul.pth", b"a\0b\n", "line 1 names no folder"),
        ("long.pth", b"x" * 300 + b"\n", "line 1 names no folder"),
        ("large.pth", b"# \n" * 400_000, "more than 1048576 bytes"),
    ],
)
def test_a_list_of_folders_that_is_none(venv: Path, name: str, content: bytes | None, said: str | None) -> None:
    """Nothing waits for a pipe, and nothing of a file that may be another's is told."""
    file = venv / PACKAGES.partition("/")[2] / name
    if content is None:
        os.mkfifo(file)
    else:
        file.write_bytes(content)
        file.chmod(0o644)
    if said is None:
        require_own_environment(venv, os.geteuid(), venv.parent / "home")
        return
    with pytest.raises(ForeignError, match=said) as refused:
        require_own_environment(venv, os.geteuid(), venv.parent / "home")
    assert refused.value.filename == str(file)


def test_what_keeps_from_looking_lets_nothing_pass(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scandir(folder: str | Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder))

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ForeignError, match="cannot be followed: Input/output error"):
        require_own_environment(venv, os.geteuid(), venv.parent / "home")


def test_many_links_into_one_folder_are_looked_at_quickly(venv: Path) -> None:
    """As uv makes them; 30,000 took 16 s when each way was walked anew."""
    cache, packages = venv.parent / "cache", venv / PACKAGES.partition("/")[2]
    cache.mkdir()
    cache.chmod(0o755)
    for number in range(5000):
        (cache / str(number)).touch()
        (cache / str(number)).chmod(0o644)
        (packages / f"{number}.py").symlink_to(cache / str(number))
    begin = time.process_time()
    require_own_environment(venv, os.geteuid(), venv.parent / "home")
    assert time.process_time() - begin < 1.0


@pytest.mark.parametrize(
    ("command", "user"),
    [
        ("/usr/sbin/runuser -u ada -- /home/ada/.memos/venv/bin/memos serve", "ada"),
        ("/usr/sbin/runuser -uada memos serve", "ada"),
        ("/usr/sbin/runuser --user=ada -g users -- memos serve", "ada"),
        ("/usr/sbin/runuser -s /bin/sh -l ada memos serve", "ada"),
        ("/bin/su - ada -c memos serve", "ada"),
        ("/bin/su -s /bin/bash ada -c memos serve", "ada"),
        ("/usr/bin/setpriv --reuid=ada --regid ada --init-groups memos serve", "ada"),
        ("/usr/bin/setpriv --pdeathsig TERM --ruid ada --euid ada memos serve", "ada"),
        ("/usr/bin/sudo -H -u ada memos serve", "ada"),
        ("/usr/bin/sudo -nHu #1000 memos serve", "1000"),
        ("/usr/bin/sudo -D /home/ada -s -u ada memos serve", "ada"),
        ("/usr/bin/setpriv --ruid=ada memos serve", None),
        ("/usr/bin/setpriv --reuid=ada --euid=root memos serve", None),
        ("/usr/bin/sudo -u ada -u root memos serve", None),
        ("/usr/bin/sudo tar ada /home/ada/.memos/database.db", None),
        ("/usr/bin/sudo -s /usr/bin/backup -u ada /home/ada/.memos/", None),
        ("/usr/bin/setpriv --regid ada --inh-caps=-all memos serve -u ada", None),
        ("/usr/bin/rsync --user ada /home/ada/.memos/ /backup", None),
        ("/opt/backup -u ada memos serve", None),
        ("/bin/su -c memos serve ada", None),
        ("/bin/su --command=chown ada /home/ada/.memos/database.db", None),
        ("/bin/su -cchown ada /home/ada/.memos/database.db", None),
        ("/usr/sbin/runuser --session-command=chown ada /home/ada/.memos/database.db", None),
    ],
)
def test_as_whom_a_unit_of_root_runs_its_command(command: str, user: str | None) -> None:
    """Only such a command is the user's; others merely name them."""
    (found,) = commands(shown(command))
    assert found.user == user
    assert command.endswith(" ".join(found.words))
    assert (found.words == command.split()) is (user is None)


def shown(command: str) -> str:
    """A command as systemd shows it."""
    return f"{{ path={command.split()[0]} ; argv[]={command} ; ignore_errors=no ; start_time=[n/a] ; pid=0 }}"


@pytest.mark.parametrize(
    ("user", "lines", "counts"),
    [
        ("", ["/usr/sbin/runuser -u {me} -- memos serve"], True),
        ("{me}", ["/home/ada/.memos/launch.sh"], True),
        ("{me}", ["/bin/sh /home/ada/.memos/launch.sh"], True),
        ("{me}", ["/opt/venv/bin/python -m memos.commands serve"], True),
        ("", ["/usr/local/bin/backup", "/usr/sbin/runuser -u {me} -- memos serve"], False),
        ("bob", ["/usr/sbin/runuser -u {me} -- memos serve"], False),
        ("", ["/usr/sbin/runuser -u {me} -- tar czf /backup /home/ada/.memos/database.db"], False),
        ("", ["/usr/bin/true"], False),
    ],
)
def test_which_units_are_a_users_pensieve(
    user: str, lines: list[str], counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = name_of(NOBODY)
    told = [f"User={user.format(me=me)}", *(f"ExecStart={shown(line.format(me=me))}" for line in lines)]
    systemctl = tmp_path / "systemctl"
    systemctl.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(told) + "\nEND\n")
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert is_of_pensieve(Unit("pensieve.service", "system"), NOBODY) is counts


def test_no_more_is_read_than_such_a_file_can_have(tmp_path: Path) -> None:
    with (tmp_path / "journal.jsonl").open("wb") as file:
        file.truncate(whole_file.LIMIT + 1)
    with pytest.raises(OSError, match=f"it has more than {whole_file.LIMIT} bytes"):
        whole_file.read(tmp_path / "journal.jsonl")


def test_a_link_in_a_circle_hides_no_file_that_others_may_write(tmp_path: Path) -> None:
    packages = tmp_path / "venv" / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    (tmp_path / "venv" / "bin").mkdir()
    for file in ("bin/python", "pyvenv.cfg"):
        (tmp_path / "venv" / file).touch()
    for folder in (tmp_path, *tmp_path.rglob("*")):
        folder.chmod(0o755)
    (packages / "loop").symlink_to("loop")
    with pytest.raises(ForeignError, match="cannot be followed"):
        require_own_environment(tmp_path / "venv", os.geteuid(), tmp_path)


def test_a_manifest_nested_without_end(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match="nested without end"):
        migration_manifest.read(tmp_path / "manifest.json")


def test_what_goes_while_it_is_looked_at_does_not_matter(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python writes its caches under other names first."""
    packages = venv / PACKAGES.partition("/")[2]
    (packages / "memos" / "code.pyc.1").touch()
    (packages / "memos" / "link").symlink_to("code.pyc.1")
    scandir = os.scandir

    def vanish(folder: str | Path) -> Any:
        with scandir(folder) as entries:
            found = list(entries)
        for name in ("code.pyc.1", "link"):
            (Path(folder) / name).unlink(missing_ok=True)
        return contextlib.nullcontext(found)

    monkeypatch.setattr(os, "scandir", vanish)
    require_own_environment(venv, os.geteuid(), venv.parent / "home")
    assert not (packages / "memos" / "link").is_symlink()
