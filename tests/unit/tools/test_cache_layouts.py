"""The table of the cache layouts has a row for each model and number of rows."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from tools.cache_layouts import main
from tools.gguf_writer import SHAPES, Quantisation, byte_vocabulary, write_llama


def test_each_model_is_measured_with_each_number_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_llama(path, SHAPES["tiny"], byte_vocabulary(), Quantisation.Q8_0, seed=1)
    options = ["--threads", "1", "--rounds", "2", "--rows", "4", "--rows", "6"]
    done = CliRunner().invoke(main, [*options, str(path)])
    assert done.exit_code == 0, done.output
    _, *lines = done.output.splitlines()
    ratio = r"\d+\.\d\d \(\d+\.\d\d-\d+\.\d\d\)"
    for line, rows in zip(lines, (4, 6), strict=True):
        assert re.fullmatch(rf"tiny\.gguf +{rows}  {ratio}  {ratio}  {ratio}", line)
