"""Control codes in names of files and classes, which a terminal would obey, are written out."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import TINY, tool
from hypothesis import given
from hypothesis import strategies as st

import norton_det as nd
from norton_det.builders import make_detector
from norton_det.errors import one_line, printable
from norton_det.formatting import table

CODES = "\x1b[31m\n\x07\x9b2J\u202e"


@given(st.text(), st.sampled_from(["", "\n"]))
def test_what_is_printed_has_no_control_codes(text: str, keep: str) -> None:
    shown = printable(text, keep)
    assert all(letter.isprintable() or letter in keep or letter.isspace() for letter in shown)
    assert not set(shown) & {*map(chr, (*range(32), *range(127, 160)))} - set(keep)
    if all(letter.isprintable() for letter in text):
        assert shown == text
    assert printable(shown, keep) == shown
    assert one_line(ValueError(text)).isprintable()


@given(st.lists(st.text(max_size=8), min_size=1, max_size=4), st.sampled_from(["text", "markdown"]))
def test_a_row_of_a_table_is_a_line(names: list[str], style: str) -> None:
    lines = table(("class", "AP"), [(name, 1) for name in names], style).split("\n")  # type: ignore[arg-type]
    assert len(lines) == 2 + len(names)
    assert all(letter.isprintable() or letter.isspace() for line in lines for letter in line)


def test_spaces_of_other_scripts_stay() -> None:
    assert printable("a\u3000b\xa0c") == "a\u3000b\xa0c"


def coded(shapes: Path, folder: Path, codes: str) -> Path:
    """Return a new COCO folder whose classes have control codes in their names."""
    shutil.copytree(shapes, folder)
    for file in folder.glob("annotations/*.json"):
        content = json.loads(file.read_text())
        for category in content["categories"]:
            category["name"] += codes
        file.write_text(json.dumps(content))
    return folder


def shown_by(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr()
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(printed.out)
    return printed.out


@pytest.mark.slow
def test_commands_print_no_control_codes(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = coded(shapes, tmp_path / "all", CODES)
    assert tool("check_data").main(["--data-path", str(folder), "--annotations-only"]) == 3
    assert "circle\\x1b[31m\\n\\x07\\x9b2J\\u202e" in shown_by(capsys)
    folder = coded(shapes, tmp_path / "turned", CODES[-1])  # others are refused
    content = json.loads((folder / "annotations" / "instances_val2017.json").read_text())
    keys = ("image_id", "category_id", "bbox")
    rows = [{"score": 0.5, **{key: a[key] for key in keys}} for a in content["annotations"]]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    for style in ("text", "markdown", "csv", "json"):
        words = ["--data-path", folder, "--results", tmp_path / "results.json", "--per-class", "--format", style]
        assert tool("eval_det").main([*map(str, words)]) == 0
        assert "circle" in shown_by(capsys)
    file, image = tmp_path / "net.safetensors", tmp_path / f"in{CODES}" / f"a{CODES}.png"
    nd.save(*make_detector("fasterrcnn_cpresnet50_fpn", num_classes=4, **TINY), file)
    image.parent.mkdir()
    shutil.copy(next((folder / "val2017").iterdir()), image)
    words = ["--checkpoint", file, "--input", image, "--titles", CODES, "--output", tmp_path / f"o{CODES}"]
    assert tool("visualize").main([*map(str, words)]) == 0
    assert "\\x1b[31m" in shown_by(capsys)
