"""Tests of tables: every row is one record or is named, never two rows in one or half of one."""

import csv
import io
import json
import random

import pytest

from clip_jax.data.table_rows import BadRow, open_table
from clip_jax.errors import UserError
from mutations import damaged_bytes


def read(path, content, **options):
  """Returns the rows of a table, with (line, reason) in place of each bad one."""
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return [
    (line, row.reason) if isinstance(row, BadRow) else row
    for line, row in open_table(str(path), **options)
  ]


@pytest.fixture
def table(tmp_path):
  return tmp_path / "t.csv"


def test_any_quoted_table_is_read_as_the_csv_module_reads_it(table):
  rng = random.Random(0)
  for delimiter in ",\t;|":
    rows = [
      ["".join(rng.choices('ab "\n,;\t|é', k=rng.randrange(8))) + "." for _ in range(3)]
      for _ in range(300)
    ]
    rows = [[field.replace("\n", " \n ") for field in row] for row in rows]
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter).writerows([("image", "caption", "x"), *rows])
    got = read(table, out.getvalue(), delimiter=delimiter)
    assert [list(row.values()) for row in got] == rows


@pytest.mark.parametrize(
  "row, reason",
  [
    ("a.jpg", "too few fields"),
    ("a.jpg,", {"image": "a.jpg", "caption": ""}),
    ("a.jpg,one, two", "too many fields"),
    ('a.jpg,"one, two"', {"image": "a.jpg", "caption": "one, two"}),
    ('a.jpg,"never closed', "unclosed quote"),
    ('a.jpg,"closed" too early', "unclosed quote"),
    ('a.jpg,5" nails', "quote inside an unquoted field"),
    ('a.jpg, "one, two"', "quote inside an unquoted field"),
    ('a.jpg,"say ""hi"""', {"image": "a.jpg", "caption": 'say "hi"'}),
  ],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_a_malformed_row_is_named_and_the_next_ones_are_read(table, row, reason, ending):
  lines = ["image,caption", "0.jpg,zero", row, "b.jpg,bee", 'c.jpg,"c, d"', ""]
  got = read(table, ending.join(lines))
  assert got[0] == {"image": "0.jpg", "caption": "zero"}
  assert got[1] == (reason if isinstance(reason, dict) else (3, reason))
  assert got[2:] == [
    {"image": "b.jpg", "caption": "bee"},
    {"image": "c.jpg", "caption": "c, d"},
  ]


@pytest.mark.parametrize(
  "lines",
  [
    ['a.jpg,"bad', "b.jpg,good", 'c.jpg,ends with a quote"'],
    ['a.jpg,"bad', 'b.jpg,"good, better"', "c.jpg,fine"],
    ['a.jpg,"bad', 'b.jpg,""', "c.jpg,fine"],
    ['"a.jpg,bad', "b.jpg,good", '"c.jpg",fine'],
  ],
)
def test_an_open_quote_never_swallows_the_next_row(table, lines):
  got = read(table, "\n".join(["image,caption", *lines]))
  assert got[0] == (2, "unclosed quote")
  assert all(isinstance(row, tuple) or "\n" not in row["caption"] for row in got)
  assert len(got) == 3


def test_captions_may_have_several_lines(table):
  got = read(table, 'image,caption\na.jpg,"first\nsecond, third"\n"b.jpg","x\r\ny"\n')
  assert got == [
    {"image": "a.jpg", "caption": "first\nsecond, third"},
    {"image": "b.jpg", "caption": "x\r\ny"},
  ]


def test_quotes_can_be_ordinary_characters(table):
  got = read(table, 'image\tcaption\na.jpg\t"5"" nails\n', quotes="literal")
  assert got == [{"image": "a.jpg", "caption": '"5"" nails'}]


@pytest.mark.parametrize(
  "name, header, delimiter, guessed",
  [
    ("t.csv", "image,caption", ",", False),
    ("t.tsv", "image\tcaption", "\t", False),
    ("t.csv", "filepath\ttitle", "\t", True),
    ("t.csv", "filepath\ttitle, long", "\t", True),
    ("t.csv", '"image";"caption"', ";", True),
    ("t.txt", "image|caption", "|", True),
    ("t.tsv", "image,caption", ",", True),
  ],
)
def test_the_delimiter_is_guessed_from_the_header_and_said(
  tmp_path, name, header, delimiter, guessed
):
  (tmp_path / name).write_text(header + "\n")
  made = open_table(str(tmp_path / name))
  assert made.delimiter == delimiter and bool(made.note) == guessed


def test_utf_16_and_byte_order_marks_are_read(table):
  for encoding in ("utf-8", "utf-8-sig", "utf-16"):
    got = read(table, "image,caption\na.jpg,é\n".encode(encoding))
    assert got == [{"image": "a.jpg", "caption": "é"}]
  assert read(table, b"image,caption\na.jpg,\xe9\nb.jpg,b\n") == [
    (2, "invalid UTF-8"),
    {"image": "b.jpg", "caption": "b"},
  ]


@pytest.mark.parametrize("indent", [None, 2])
def test_json_lists_and_lines_are_read(tmp_path, indent):
  rows = [{"image": f"{i}.jpg", "caption": [f"c {i}"]} for i in range(3)]
  assert read(tmp_path / "t.json", json.dumps(rows, indent=indent)) == rows
  lines = "\n".join(map(json.dumps, rows))
  for name in ("t.json", "t.jsonl", "t.ndjson"):
    assert read(tmp_path / name, lines + "\n\n") == rows
  got = read(tmp_path / "t.json", json.dumps([rows[0], 7, rows[1]], indent=indent)[:-1])
  line = 1 if indent is None else 8
  assert got[:3] == [rows[0], (line, "not an object"), rows[1]]
  assert got[3:] == [(line if indent is None else line + 1, "not JSON")]
  assert read(tmp_path / "t.jsonl", f"{lines}\n{{\n[]\n") == [
    *rows,
    (4, "not JSON"),
    (5, "not an object"),
  ]


@pytest.mark.parametrize(
  "content, options, message",
  [
    ("", {}, "is empty"),
    ("image\na.jpg\n", {}, "the header 'image' has a single column"),
    ("image,image,caption\n", {}, "several columns named image"),
    ("image,caption\n", {"delimiter": "ab"}, "delimiter 'ab' is not a single character or one of"),
    ('image,"caption\n', {}, "the header has unclosed quote"),
  ],
)
def test_a_table_without_a_usable_header_is_refused(table, content, options, message):
  with pytest.raises(UserError, match=message):
    read(table, content, **options)
  with pytest.raises(UserError, match="apply to CSV and TSV files only"):
    open_table(str(table.with_suffix(".json")), delimiter=",")


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.json", "t.jsonl"])
def test_random_damage_gives_rows_or_one_message(tmp_path, name):
  rows = [{"image": f"{i}.jpg", "caption": f'c, "{i}"\té'} for i in range(4)]
  out = io.StringIO(newline="")
  if name.endswith("sv"):
    writer = csv.DictWriter(out, list(rows[0]), delimiter="\t" if name == "t.tsv" else ",")
    writer.writeheader()
    writer.writerows(rows)
  else:
    out.write(json.dumps(rows) if name == "t.json" else "\n".join(map(json.dumps, rows)))
  read_rows = bad = 0
  for damaged in damaged_bytes(out.getvalue().encode(), 200):
    try:
      for row in read(tmp_path / name, damaged):
        bad += isinstance(row, tuple)
        read_rows += isinstance(row, dict)
    except UserError as error:
      assert len(str(error)) < 1000
  assert read_rows > 200 and bad > 30
