"""Source databases and target schemas made by Pensieve's own code, in Pensieve's own interpreter."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

FILL = Path(__file__).with_name("fill.py")
WORDS = Path(__file__).with_name("words.py")
SUPPORT = Path(__file__).parents[2] / "support" / "sample_installation"
SCHEMA, OLD_VECTORS = SUPPORT / "schema.py", SUPPORT / "old_vectors.py"


def venv() -> Path | None:
    """The virtual environment with Pensieve that PENSIEVE_VENV names, or None."""
    folder = os.environ.get("PENSIEVE_VENV", "")
    return Path(folder) if folder and (Path(folder) / "bin" / "memos").exists() else None


class Pensieve:
    """Runs Pensieve's commands with a home of its own.

    `folder`: its virtual environment. `home`: a folder that is made; its `.memos/config.yaml` asks for vectors of
    `dimensions` numbers. `package`: a folder with another version of Pensieve, which takes the place of the
    environment's own.
    """

    def __init__(self, folder: Path, home: Path, dimensions: int = 768, package: Path | None = None) -> None:
        self.folder = folder
        self.home = home
        self.dimensions = dimensions
        self.package = package
        config = home / ".memos" / "config.yaml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(
            f"base_dir: {home}/.memos\ndatabase_path: database.db\ndefault_plugins: [builtin_ocr]\n"
            f"embedding:\n  num_dim: {dimensions}\n  use_local: false\n"
        )

    def run(
        self, *command: str, database: str, stdin: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run one of the environment's programs on `database` (a path or a URI without password)."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MEMOS_")}
        environment.update(HOME=str(self.home), MEMOS_DATABASE_PATH=database, LOGFIRE_SEND_TO_LOGFIRE="false")
        environment.pop("PYTHONPATH", None)
        if self.package is not None:
            environment["PYTHONPATH"] = str(self.package)
        result = subprocess.run(
            [str(self.folder / "bin" / command[0]), *command[1:]],
            env=environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and result.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit code {result.returncode}\n{result.stdout}{result.stderr}")
        return result

    def init(self, database: str) -> None:
        """Make Pensieve's tables in `database`, as its `init` does (which fails in 0.33 to 0.37)."""
        self.run("python", str(SCHEMA), database=database)

    def fill(self, database: Path, screenshots: int, seed: int = 1) -> None:
        """Add screenshots to an initialised SQLite database, then leave it without a write-ahead log."""
        self.run("python", str(FILL), str(screenshots), str(seed), database=str(database))

    def make_source(self, database: Path, screenshots: int, seed: int = 1) -> Path:
        """A SQLite database with Pensieve's schema and `screenshots` screenshots."""
        self.init(str(database))
        self.fill(database, screenshots, seed)
        return database

    def words(self, database: Path | str, *arguments: str) -> Any:
        """What words.py writes: full text by Pensieve's own indexer."""
        result = self.run("python", str(WORDS), *arguments, database=str(database))
        return json.loads(result.stdout[result.stdout.index("RESULT") + 6 :])
