"""Tests that names and captions cannot act on the terminal."""

import os
import subprocess
import sys
import unicodedata

import pytest

from clip_jax.cli.formatting import printable, table


@pytest.mark.parametrize(
  "text, expected",
  [
    ("a \x1b[2J\x07b", "a \\x1b[2J\\x07b"),
    ("a\r\nb\tc\0", "a\\r\\nb\\tc\\x00"),
    ("\x9b31m", "\\x9b31m"),
    ("x\u202egpj.exe\u2066", "x\\u202egpj.exe\\u2066"),
    ("caf\udce9", "caf\\udce9"),
  ],
)
def test_characters_that_act_on_a_terminal_are_escaped(text, expected):
  assert printable(text) == expected
  printable(text).encode()


def test_ordinary_text_of_any_script_stays_as_it_is():
  for text in ("a dog, 100 % €", "日本語", "می‌خواهم", "हिन्दी", "👩‍👩‍👧 🇨🇦", "e\u0301 ö", "a\xa0b"):
    assert printable(text) == text


def test_no_control_character_of_unicode_is_left():
  every = "".join(map(chr, range(0x110000)))
  left = [c for c in printable(every) if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
  assert left == []
  assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"


def test_cells_of_tables_are_escaped():
  assert table([("a\x1b[0m", 1), ("b\n", 2)], ("na\rme", "n")).splitlines() == [
    "na\\rme    n",
    "--------  -",
    "a\\x1b[0m  1",
    "b\\n       2",
  ]


def test_the_message_of_a_command_is_escaped():
  code = (
    "from clip_jax.cli.command import run_command\nfrom clip_jax.errors import UserError\n"
    "def main(arguments): raise UserError('no \\x1b[31m \\udcff:\\n  x')\nrun_command(main)"
  )
  ran = subprocess.run([sys.executable, "-c", code], capture_output=True, env=os.environ)
  assert ran.returncode == 2 and ran.stderr == b"error: no \\x1b[31m \\udcff:\n  x\n"
