"""The wire contract is written as buf's rules want it, with a comment at every message and call."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def lint(directory: Path) -> str:
    buf = shutil.which("buf", path=Path(sys.executable).parent) or shutil.which("buf")
    if buf is None:
        pytest.skip("needs buf (`pip install buf-bin`)")
    done = subprocess.run([buf, "lint"], cwd=directory, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def test_buf_finds_nothing_in_the_protos():
    assert lint(REPOSITORY) == ""


def test_buf_would_find_a_message_without_a_comment(tmp_path):
    shutil.copy(REPOSITORY / "buf.yaml", tmp_path)
    (tmp_path / "protos").mkdir()
    for proto in (REPOSITORY / "protos").glob("*.proto"):
        text = proto.read_text().replace("// Asks which run is served.\n", "")
        (tmp_path / "protos" / proto.name).write_text(text)
    assert "GetRunRequest" in lint(tmp_path)
