"""Names and links that are made to be taken for something else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible.module_utils import whole_file
from ansible.module_utils.migration_manifest import UNIT
from ansible.module_utils.ownership import ForeignError, require_own_environment
from ansible.module_utils.pensieve_process import switched_to


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
    require_own_environment(venv, os.geteuid())


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
    ],
)
def test_whatever_an_interpreter_runs_is_closed_to_others(venv: Path, place: str, mode: int) -> None:
    (venv.parent / place).chmod(mode)
    with pytest.raises(ForeignError, match="others may write it") as refused:
        require_own_environment(venv, os.geteuid())
    assert refused.value.filename == str(venv.parent / place)


@pytest.mark.parametrize(
    ("command", "user"),
    [
        ("/usr/sbin/runuser -u ada -- /home/ada/.memos/venv/bin/memos serve", "ada"),
        ("/usr/sbin/runuser --user=ada -g users -- memos serve", "ada"),
        ("/usr/sbin/runuser -s /bin/sh -l ada -c memos serve", "ada"),
        ("/bin/su - ada -c memos serve", "ada"),
        ("/bin/su -s /bin/bash ada -c memos serve", "ada"),
        ("/usr/bin/setpriv --reuid=ada --regid ada --init-groups memos serve", "ada"),
        ("/usr/bin/sudo -H -u ada memos serve", "ada"),
        ("/usr/bin/setpriv --ruid=ada memos serve", None),
        ("/usr/bin/sudo tar ada /home/ada/.memos/database.db", None),
        ("/usr/bin/setpriv --regid ada --inh-caps=-all memos serve -u ada", None),
        ("/usr/bin/rsync --user ada /home/ada/.memos/ /backup", None),
        ("/opt/backup -u ada memos serve", None),
        ("/bin/su -c memos serve ada", None),
        ("", None),
    ],
)
def test_as_whom_a_unit_of_root_runs_its_command(command: str, user: str | None) -> None:
    """Only such a command is the user's; others merely name them."""
    program = command.partition(" ")[0]
    shown = f"{{ path={program} ; argv[]={command} ; ignore_errors=no ; start_time=[n/a] ; pid=0 }}"
    assert switched_to(shown) == user


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
        require_own_environment(tmp_path / "venv", os.geteuid())
