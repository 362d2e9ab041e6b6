"""A machine with three users: the owner of a home, a stranger, and root. Ansible comes to it as any of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ansible
import pytest
import yaml

ROOT = Path(__file__).parents[2]

HOME = Path("/home/owner")

PREFACE = """
import sys
from pathlib import Path
import ansible.module_utils
roles = Path("/project/roles")
sys.path += map(str, roles.glob("*/library"))
ansible.module_utils.__path__ += map(str, roles.glob("*/module_utils"))
"""
"""What lets a script in the container import modules as Ansible does."""


@dataclass
class Machine:
    """A container with users of its own, and the programs of this machine."""

    name: str
    folder: Path

    def sh(self, script: str, user: str = "root", check: bool = True) -> str:
        """What a script prints; a user starts in no home."""
        command = ["docker", "exec", "--interactive", "--user", user, self.name, "sh", "-eu"]
        done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout

    def leave(self, script: str, user: str) -> None:
        """Start a script that goes on by itself."""
        subprocess.run(["docker", "exec", "--detach", "--user", user, self.name, "sh", "-euc", script], check=True)

    def owner_of(self, path: Path | str) -> str:
        """Name of the user whom a file, or a link itself, belongs to."""
        return self.sh(f"stat --format=%U '{path}'").strip()

    def play(self, user: str, book: str, *options: str, **variables: str) -> str:
        """What ansible-playbook says when a person comes as this user; also where it fails."""
        command = [
            str(Path(sys.executable).parent / "ansible-playbook"),
            "-i",
            str(self._inventory(user)),
            book,
            *options,
        ]
        for name, value in variables.items():
            command += ["-e", f"{name}={value}"]
        environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        assert "UNREACHABLE" not in said, said
        assert "ERROR!" not in said, said
        return said

    def module(self, user: str, name: str, /, **arguments: Any) -> dict[str, Any]:
        """What a module of the project answers."""
        command = [str(Path(sys.executable).parent / "ansible"), "all", "-i", str(self._inventory(user))]
        command += ["--module-name", name, "--args", json.dumps(arguments)]
        shown = {"ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.minimal", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **shown}, capture_output=True, text=True, check=False
        )
        state, _, said = done.stdout.rpartition(" => ")
        assert said, done.stdout + done.stderr
        told: dict[str, Any] = json.JSONDecoder().raw_decode(said)[0]
        return {**told, "failed": state.endswith("FAILED!")}

    def python(self, user: str, text: str) -> str:
        """The last line of what goes wrong in a script that has the project's modules; nothing where all is well."""
        command = ["docker", "exec", "--interactive", "--user", user, "--env=PYTHONPATH=/packages", self.name]
        command += ["/usr/bin/python3", "-B", "-"]
        done = subprocess.run(command, input=f"{PREFACE}{text}", capture_output=True, text=True, check=False)
        return (done.stdout + done.stderr).strip().rpartition("\n")[2] if done.returncode else done.stdout

    def _inventory(self, user: str) -> Path:
        host = {
            "ansible_connection": "community.docker.docker",
            "ansible_user": user,
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        file = self.folder / f"{user}.yml"
        file.write_text(yaml.safe_dump({"pensieve": {"hosts": {self.name: host}}}))
        return file


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Its programs are this machine's, which has Python and PyYAML at a fixed place."""
    image = os.environ.get("TEST_POSTGRES_IMAGE")
    if not image:
        pytest.fail("TEST_POSTGRES_IMAGE is not set; run scripts/test, which makes that image")
    name = f"trust-{uuid.uuid4().hex[:8]}"
    started = ["docker", "run", "--detach", "--rm", "--name", name, "--entrypoint=sleep"]
    # Root of a whole machine may read what others' processes have among their variables.
    started += ["--cap-add=SYS_PTRACE", "--volume=/usr:/usr:ro", f"--volume={ROOT}:/project:ro"]
    started += [f"--volume={Path(ansible.__file__).parents[1]}:/packages:ro"]
    subprocess.run([*started, image, "infinity"], check=True, capture_output=True)
    try:
        here = Machine(name, tmp_path_factory.mktemp("inventories"))
        here.sh("for user in owner stranger; do useradd --create-home --shell /bin/sh $user; done; chmod 755 /home/*")
        yield here
    finally:
        subprocess.run(["docker", "rm", "--force", name], check=True, capture_output=True)


INTERPRETER = """#!/bin/sh
# Says as whom it runs, and of Pensieve whatever it likes.
id -u >>/tmp/seen
case "$1" in
-c) echo 'PROBE{answer}' ;;
*) exec /usr/bin/python3 "$@" ;;
esac
"""

ANSWER = {
    **{"python": "/x", "python_version": "3.11.2", "version": "0.30.1", "sqlalchemy": "2.0.30", "healthy": True},
    **{"extension_loading": True, "knows_postgresql": True, "postgres_driver": "psycopg2", "prompt_missing": False},
    **{"postgres_driver_present": True, "is_sqlite": True, "database_setting": "database.db", "dimensions": 384},
    **{"base_dir": f"{HOME}/.memos", "database": f"{HOME}/.memos/database.db", "port": 1, "services": ["serve"]},
    **{"screenshots_dir": f"{HOME}/.memos", "endpoint": "http://127.0.0.1:1", "venv": "/home/stranger/venv"},
    "units": [{"name": "of-root.service", "scope": "system", "services": ["serve"]}],
}


def interpreter(machine: Machine, venv: Path | str, user: str = "owner", **answer: Any) -> None:
    """Make a virtual environment of a user's whose interpreter notes in /tmp/seen as whom it runs."""
    text = INTERPRETER.replace("{answer}", json.dumps({**ANSWER, **answer}))
    packages = f"{venv}/lib/python3.11/site-packages/memos"
    machine.sh(
        f"mkdir -p {venv}/bin {packages}; touch {venv}/pyvenv.cfg\n"
        f"cat >{venv}/bin/python <<'END'\n{text}END\nchmod 755 {venv}/bin/python",
        user,
    )


@pytest.fixture
def home(machine: Machine) -> Path:
    """The owner's home, as new, with a Pensieve whose interpreter notes in /tmp/seen as whom it runs."""
    machine.sh(
        "find /home/owner /home/stranger /root /srv /tmp -mindepth 1 -delete; : >/tmp/seen; chmod 666 /tmp/seen; "
        "chown owner: /home/owner; chmod 755 /home/owner /srv"
    )
    machine.sh(
        f"mkdir -p {HOME}/.memos; cd {HOME}/.memos; touch database.db; echo 'database_path: database.db' >config.yaml",
        "owner",
    )
    interpreter(machine, HOME / ".memos/venv")
    return HOME


def ran_as(machine: Machine) -> set[str]:
    """Numbers of the users as whom such an interpreter has run."""
    return set(machine.sh("cat /tmp/seen").split())
