"""SQLite files: only our own are opened, and several processes may begin at once."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from fp_audit.database import connect

TABLES = ["CREATE TABLE things (name TEXT)", "CREATE TABLE more (name TEXT)"]


def test_a_file_is_made_and_found_again(tmp_path):
    path = tmp_path / "a" / "file"
    with closing(connect(path, b"test", 3, TABLES, page=8192)) as file, file:
        file.execute("INSERT INTO things VALUES ('x')")
    with closing(connect(path, b"test", 3, TABLES)) as file:
        assert file.execute("SELECT name FROM things").fetchall() == [("x",)]
        assert file.execute("PRAGMA page_size").fetchone() == (8192,)
    with closing(sqlite3.connect(path)) as plain:
        assert plain.execute("PRAGMA application_id").fetchone() == (0x74657374,)


@pytest.mark.parametrize(("what", "version"), [(b"text", 3), (b"test", 4)])
def test_another_kind_and_another_version_are_refused(tmp_path, what, version):
    connect(tmp_path / "file", what, version, TABLES).close()
    before = (tmp_path / "file").read_bytes()
    with pytest.raises(sqlite3.DatabaseError, match="something else, or of another version"):
        connect(tmp_path / "file", b"test", 3, TABLES)
    assert (tmp_path / "file").read_bytes() == before


def test_files_of_others_are_left_alone(tmp_path):
    with closing(sqlite3.connect(tmp_path / "theirs")) as file, file:
        file.execute("CREATE TABLE things (name TEXT)")
    (tmp_path / "text").write_text("no database" * 1000)
    for name in ("theirs", "text"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(sqlite3.DatabaseError):
            connect(tmp_path / name, b"test", 3, TABLES)
        assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("ahead", [False, True])
def test_all_that_begin_at_once_get_the_same_tables(tmp_path, ahead):
    def begin(number):
        with closing(connect(tmp_path / "file", b"test", 3, TABLES, ahead=ahead)) as file, file:
            file.execute("INSERT INTO things VALUES (?)", (str(number),))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(begin, range(24)))
    with closing(connect(tmp_path / "file", b"test", 3, TABLES)) as file:
        assert file.execute("SELECT count(*) FROM things").fetchone() == (24,)
        assert file.execute("PRAGMA journal_mode").fetchone() == ("wal" if ahead else "delete",)
