"""Tests of the command line: its output, and its messages about mistakes."""

import pytest

from clip_jax.errors import UserError
from clip_jax.study.__main__ import main


def test_verdicts_prints_and_writes_a_table(tmp_path, capsys):
  (tmp_path / "runs.csv").write_text(
    "name,data,protocol,arch,method,aug,dataset_size,quality,samples_seen,zero_shot\n"
    "a,d,one epoch,ViT-x,CLIP,none,100,100,100,40\n"
  )
  main(["verdicts", f"--runs={tmp_path}", f"--out={tmp_path / 'verdicts.csv'}"])
  assert "S15" in capsys.readouterr().out and (tmp_path / "verdicts.csv").exists()


def test_a_dry_run_lists_the_runs(capsys):
  assert main(["run", "--grid=configs/study/augmentations.py", "--dry-run", "--shard=1/4"]) == 0
  printed = capsys.readouterr().out
  assert "4 runs, 4 missing" in printed and "RandAugment" in printed


@pytest.mark.parametrize(
  "arguments, message",
  [
    (
      ("figurs", "--runs=x"),
      "command 'figurs'; .* run, table, figures, fit, laws, calibrate, predict, advise",
    ),
    ((), "command ''; .* predict, advise, verdicts"),
    (("think",), "command 'think'"),
    (("run",), "--grid is required, as in --grid=configs/study/openclipart.py"),
    (("run", "--grid=configs/study/shapes.py"), "--out is required"),
    (
      ("run", "--grid=configs/study/shapes.py:1", "--dry-run", "--shard=3/3"),
      "--shard=3/3 is not I/N",
    ),
    (
      ("run", "--grid=configs/study/shapes.py:1", "--dry-run", "--accelerator=x"),
      "accelerator 'x' is unknown",
    ),
    (("advise", "--pairs=50M"), "needs --pairs and exactly one of --compute"),
    (("advise", "--pairs=50M", "--compute=much"), "--compute=much is not a number"),
    (("verdicts",), "--runs is required"),
    (("figures", "--out=x", "--run=y"), "no flag --run; .* Did you mean --runs"),
  ],
)
def test_mistakes_are_reported(arguments, message):
  with pytest.raises(UserError, match=message):
    main(list(arguments))
