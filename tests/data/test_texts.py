"""Text files as Windows saves them read like any others; other encodings say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvad.data.checked import read_toml
from fedvad.data.folders import read_sites
from fedvad.errors import ConfigError
from tests.data.test_folders import touch

SAVED = pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])


@SAVED
def test_toml_of_every_editor(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "options.toml"
    file.write_bytes('image_size = 64\r\ngood = ["Güte"]\r\n'.encode(encoding))
    assert read_toml(file) == {"image_size": 64, "good": ["Güte"]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("# ok\n# Güte\n".encode("latin-1"), r"line 2 is not in UTF-8: save the file as UTF-8"),
        (b'weights = "C:\\data\\w"', r"in single quotes, such as 'C:\\data'"),
        (b"image_size = ", r"is not valid TOML: Invalid value \(at end of document\)$"),
    ],
)
def test_toml_that_cannot_be_read_says_how_to_mend_it(
    tmp_path: Path, content: bytes, said: str
) -> None:
    file = tmp_path / "options.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_toml(file)


@SAVED
def test_tables_of_data_sets(tmp_path: Path, encoding: str) -> None:
    names = [f"cand/Data/Images/Normal/{i}.png" for i in range(4)]
    touch(tmp_path / "visa", *names)
    rows = ["object,split,label,image,mask"]
    rows += [f"cand,{'train' if i else 'test'},normal,{n}," for i, n in enumerate(names)]
    table = tmp_path / "visa/split_csv/1cls.csv"
    table.parent.mkdir()
    table.write_bytes("\r\n".join(rows).encode(encoding))
    (site,) = read_sites(tmp_path / "visa")
    assert (len(site.train), len(site.test)) == (3, 1)

    touch(tmp_path / "real", "cap/OK/0.png", "cap/OK/1.png", "cap/NG/2.png")
    listed = '{"meta": {}, "train": [{"anomaly_class": "OK", "image_path": "OK/0.png"}]}'
    (tmp_path / "real/cap.json").write_bytes(listed.encode(encoding))
    (site,) = read_sites(tmp_path / "real")
    assert [path.name for path in site.train.paths] == ["0.png"]
