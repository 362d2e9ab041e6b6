"""What the scripts say to a person, and that a failing step is not passed over."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run from the root."""
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def bash(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` after the functions that the scripts share."""
    return run("bash", "-c", f"source scripts/lib.sh; {code}")


@pytest.mark.parametrize("script", ["scripts/migrate", "scripts/test", "scripts/bootstrap"])
def test_help_explains_and_changes_nothing(script: str) -> None:
    done = run(script, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: {script}")


@pytest.mark.parametrize(
    ("command", "found"),
    [(("scripts/migrate", "--reset"), "--reset without --demo"), (("scripts/test", "units"), "the argument units")],
)
def test_wrong_arguments_are_refused(command: tuple[str, ...], found: str) -> None:
    done = run(*command)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == f"Found: {found}"
    assert [line.partition(":")[0] for line in lines] == ["Found", "Expected", "Untouched", "Next"]


def test_a_failing_step_ends_the_script_with_its_last_lines() -> None:
    done = bash("step sample 'Doing something' bash -c 'echo the reason; exit 3'; echo went on")
    assert done.returncode == 1
    assert "Doing something" in done.stdout
    assert "went on" not in done.stdout
    assert "the reason" in done.stderr


def test_a_python_that_lacks_a_module_is_not_taken() -> None:
    assert bash("find_python no_such_module").returncode == 1
    assert bash("find_python sys").stdout.strip().startswith("/")


def test_the_environment_is_not_made_with_its_own_python() -> None:
    assert bash("find_python sys").stdout.strip() != str(ROOT / ".venv" / "bin" / "python3")


@pytest.mark.parametrize(
    ("output", "runs"),
    [
        ("27 passed in 0.94s", ["27"]),
        ("==== 3 passed, 1 skipped in 12.00s ====\n== 8 passed in 1.00s (0:01:00) ==", ["3", "8"]),
        ("no tests ran in 0.01s", []),
    ],
)
def test_pytest_runs_are_counted(output: str, runs: list[str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(output + "\n")
    function = next(
        line for line in (ROOT / "scripts" / "test").read_text().splitlines() if line.startswith("pytest_runs()")
    )
    assert bash(f"{function}\npytest_runs {log}").stdout.split() == runs
