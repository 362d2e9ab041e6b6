"""Virtual environments: for Pensieve of a given version, and for the consumer."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUPPORT = Path(__file__).resolve().parent.parent
STAMP = "sample-installation.json"

PROBE = (
    "import sys, ensurepip, sqlite3; assert sys.version_info >= (3, 10); "
    "sqlite3.connect(':memory:').enable_load_extension(True)"
)
"""What an interpreter must do for Pensieve: be 3.10 or newer, make environments, load SQLite extensions."""

CANDIDATES = (
    "/usr/bin/python3",
    *(f"python3.{minor}" for minor in (13, 12, 11, 10, 14)),
    "python3",
    "/opt/homebrew/bin/python3",
)

PROMPT = """Describe this screenshot as one JSON object with the keys "title", "summary" and "tags".
"""
"""For the wheels 0.32 and newer, which miss a file that `serve` reads at its start; VLM is off here."""


class Refusal(Exception):
    """Something is missing; the text says what was found, expected, left untouched, and what to do."""


@contextmanager
def step(text: str) -> Iterator[None]:
    """Say what a long step does, and how long it took."""
    print(f"→ {text} …", flush=True)
    begin = time.monotonic()
    yield
    print(f"  done in {time.monotonic() - begin:.0f} s", flush=True)


def run(*command: str | Path) -> None:
    """Run to the end in silence; Refusal with the last lines when it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise Refusal(
            f"Found: `{' '.join(str(part) for part in command[:6])} …` ended with {done.returncode}:\n"
            f"{tail}\nExpected: 0.\nUntouched: everything but the folder named above.\n"
            "Next: mend the cause, and run the same command again; it goes on where it stopped."
        )


def find_python(wanted: Path | None) -> str:
    """An interpreter that can run Pensieve; Refusal when there is none."""
    candidates = [str(wanted)] if wanted else list(CANDIDATES)
    found = []
    for candidate in candidates:
        path = shutil.which(candidate)
        if path is None:
            continue
        probe = subprocess.run([path, "-c", PROBE], capture_output=True, text=True)
        if probe.returncode == 0:
            return path
        found.append(f"{path} ({(probe.stderr.strip().splitlines() or ['no reason given'])[-1]})")
    raise Refusal(
        f"Found: {', '.join(found) or 'no Python'}.\n"
        "Expected: Python 3.10 or newer that makes virtual environments and loads SQLite extensions, as "
        "Debian's and Ubuntu's own does; Pensieve cannot run without.\n"
        "Untouched: everything.\n"
        "Next: apt-get install python3 python3-venv, then the same command again."
    )


def _fresh_venv(path: Path, stamp: dict[str, str], python: Path | None) -> bool:
    """Make an empty environment unless `path` holds one with this very stamp; whether it was made."""
    if (path / STAMP).exists() and json.loads((path / STAMP).read_text()) == stamp:
        return False
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    run(find_python(python), "-m", "venv", path)
    return True


def _digest(*files: Path) -> str:
    """Checksum of the requirement files, so that an environment is remade when they change."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def make_venv(path: Path, version: str, postgresql: bool, python: Path | None = None) -> None:
    """An environment with Pensieve `version` without models: ready for PostgreSQL, or as users have it."""
    requirements = SUPPORT / ("pensieve-postgresql.txt" if postgresql else "pensieve-sqlite.txt")
    stamp = {"memos": version, "requirements": _digest(requirements)}
    if not _fresh_venv(path, stamp, python):
        return
    with step(f"Installing Pensieve {version} into {path} (about a minute, 700 MB)"):
        pip = str(path / "bin" / "pip")
        run(pip, "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r", requirements)
        install_version(path, version)
    (path / STAMP).write_text(json.dumps(stamp))


def install_version(path: Path, version: str) -> None:
    """Have this version of Pensieve in an environment, whatever version is there; what it needs is there."""
    pip = str(path / "bin" / "pip")
    run(pip, "install", "--quiet", "--disable-pip-version-check", "--no-deps", f"memos=={version}")
    plugins = next(path.glob("lib/python3*/site-packages/memos/plugins"))
    prompt = plugins / "structured_vlm" / "prompt_v1.txt"
    if prompt.parent.is_dir() and not prompt.exists():
        prompt.write_text(PROMPT)


def add_version(path: Path, version: str, folder: Path) -> None:
    """Put another version of Pensieve into a folder; what it needs is in the environment `path`."""
    pip = (path / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
    run(*pip, "--target", folder, f"memos=={version}")


def version_of(path: Path) -> str:
    """Version of Pensieve in an environment that `make_venv` made."""
    return str(json.loads((path / STAMP).read_text())["memos"])


def make_consumer(path: Path, python: Path | None = None) -> None:
    """The AutoTaskTracker-like consumer with an environment of its own in `path`/venv."""
    source = SUPPORT / "consumer"
    stamp = {"requirements": _digest(source / "requirements.txt")}
    path.mkdir(parents=True, exist_ok=True)
    # What has been migrated stays so: these files are AutoTaskTracker's own to the migration, which changes them.
    if not (path / "autotasktracker").exists():
        shutil.copytree(source, path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    if not _fresh_venv(path / "venv", stamp, python):
        return
    with step(f"Installing the AutoTaskTracker-like consumer into {path} (about 10 s)"):
        pip = str(path / "venv" / "bin" / "pip")
        run(
            pip,
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--require-hashes",
            "-r",
            path / "requirements.txt",
        )
    (path / "venv" / STAMP).write_text(json.dumps(stamp))
