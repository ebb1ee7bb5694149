"""The command that makes what training reads."""

import pytest

from clip_jax import prepare
from clip_jax.data import tokenizer as tokenizer_lib
from clip_jax.errors import UserError


def test_the_shipped_tokenizer_is_what_the_command_makes(tmp_path, capsys):
  path = tmp_path / "new.model"
  prepare.main(["--from=openclipart", "--format=source", f"--tokenizer={path}", "--pieces=4096"])
  assert "4,096 pieces" in capsys.readouterr().out
  shipped = tokenizer_lib._FOLDER / "openclipart-4k.model"
  pieces = [tokenizer_lib.SentencePiece(str(p))._processor for p in (path, shipped)]
  assert [[m.id_to_piece(i) for i in range(4096)] for m in pieces][0] == [
      pieces[1].id_to_piece(i) for i in range(4096)]


def test_a_wrong_flag_is_said(tmp_path):
  with pytest.raises(UserError, match="--from=laion is not a source; there are openclipart"):
    prepare.main(["--from=laion", f"--tokenizer={tmp_path}/a.model"])
  with pytest.raises(UserError, match="there is no folder .*missing. Make it first"):
    prepare.main(["--from=openclipart", f"--tokenizer={tmp_path}/missing/a.model"])
