"""The sample installation is a real Pensieve with what real databases hold, and never touches what is not its own."""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sample_installation.environment import Refusal, find_python
from sample_installation.installation import Installation, Settings
from sample_installation.services import bag_of_words

COUNT = 30


def free_ports() -> int:
    """A port that is free with both its neighbours, below those that the system gives to clients."""
    for port in range(31001, 32700, 3):
        taken = []
        for near in (port - 1, port, port + 1):
            with socket.socket() as probe:
                taken.append(probe.connect_ex(("127.0.0.1", near)) == 0)
        if not any(taken):
            return port
    raise RuntimeError("no free ports")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A small one, running."""
    settings = Settings(
        root=tmp_path_factory.mktemp("sample"),
        version="of PENSIEVE_VENV",
        venv=Path(os.environ["PENSIEVE_VENV"]),
        port=free_ports(),
        count=COUNT,
    )
    installation = Installation(settings)
    installation.make()
    yield installation
    if settings.root.exists():
        installation.remove()


def rows(sample: Installation, statement: str) -> list[Any]:
    """Rows of its database, read only."""
    path = sample.settings.home / ".memos" / "database.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute(statement).fetchall()


@pytest.mark.pensieve
class TestSample:
    """In the order of the file: the last tests stop and remove it."""

    def test_every_screenshot_is_indexed(self, sample: Installation) -> None:
        # One was deleted, which is where the orphans come from.
        for table in ("entities", "entities_fts_content", "entities_vec_v2_rowids"):
            assert rows(sample, f"SELECT count(*) FROM {table}") == [(COUNT - 1,)]
        images = [*sample.settings.home.glob(".memos/*/*/*.webp"), *sample.settings.home.glob(".memos/*/*/*.png")]
        assert len(images) == COUNT

    @pytest.mark.parametrize(
        "statement",
        [
            "SELECT count(*) FROM entity_tags WHERE tag_id NOT IN (SELECT id FROM tags)",
            "SELECT count(*) FROM metadata_entries WHERE source_type = 'vlm_processor' AND source IS NULL",
            "SELECT count(*) FROM metadata_entries WHERE data_type = 'float'",
            "SELECT count(*) FROM metadata_entries WHERE instr(CAST(value AS BLOB), x'00') > 0",
            "SELECT count(*) FROM metadata_entries WHERE key = 'ocr_result' AND value LIKE '%检索%'",
            "SELECT count(*) FROM sqlite_master WHERE name = 'idx_metadata_entity_key'",
        ],
    )
    def test_it_holds_what_real_databases_hold(self, sample: Installation, statement: str) -> None:
        assert rows(sample, statement)[0][0] > 0

    def test_the_settings_are_hand_written_yaml(self, sample: Installation) -> None:
        text = (sample.settings.home / ".memos" / "config.yaml").read_text(encoding="utf-8")
        assert yaml.safe_load(text)["database_path"] == "database.db"
        assert not text.endswith("\n")
        assert "#" in text

    def test_making_it_again_changes_nothing(self, sample: Installation) -> None:
        processes = sample._processes()
        sample.make()
        assert sample._processes() == processes
        assert len(processes) == 2

    def test_other_settings_are_refused(self, sample: Installation) -> None:
        with pytest.raises(Refusal, match="made with other settings"):
            Installation(replace(sample.settings, count=COUNT + 1)).make()
        assert len(sample._processes()) == 2

    def test_a_port_that_is_taken_is_refused(self, sample: Installation, tmp_path: Path) -> None:
        other = Installation(replace(sample.settings, root=tmp_path, port=sample.settings.port - 1))
        with pytest.raises(Refusal, match=f"listens on port {sample.settings.port}"):
            other.make()
        assert len(sample._processes()) == 2

    def test_stop_and_start(self, sample: Installation) -> None:
        sample.stop()
        assert sample._processes() == []
        Installation.load(sample.settings.root).start()
        assert len(sample._processes()) == 2

    def test_remove_leaves_nothing(self, sample: Installation) -> None:
        sample.remove()
        assert sample._processes() == []
        assert not sample.settings.root.exists()
        with pytest.raises(Refusal, match="no sample installation"):
            Installation.load(sample.settings.root)


def test_an_unfit_python_is_refused_with_the_reason(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\necho 'AttributeError: enable_load_extension' >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(Refusal, match="enable_load_extension") as refused:
        find_python(python)
    assert [line.partition(":")[0] for line in str(refused.value).splitlines()] == [
        "Found",
        "Expected",
        "Untouched",
        "Next",
    ]


def test_embeddings_are_near_for_texts_that_share_words() -> None:
    invoice, reminder, chinese = np.array(bag_of_words(["invoice of July", "July invoice reminder", "数据库迁移"]))
    assert np.allclose(np.linalg.norm([invoice, reminder, chinese], axis=1), 1)
    assert invoice @ reminder > 0.5
    assert abs(invoice @ chinese) < 0.2
    assert bag_of_words([""]) == bag_of_words(["!"])
