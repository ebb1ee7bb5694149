"""The command: what it prints, and what it says when it is mistyped."""

import pytest

from clip_jax.errors import UserError
from clip_jax.study.__main__ import main


def test_verdicts_of_a_csv_are_printed(tmp_path, capsys):
  (tmp_path / "runs.csv").write_text(
      "name,data,protocol,arch,method,aug,dataset_size,quality,samples_seen,zero_shot\n"
      "a,d,one epoch,ViT-x,CLIP,none,100,100,100,40\n")
  main(["verdicts", f"--runs={tmp_path}", f"--out={tmp_path / 'verdicts.csv'}"])
  assert "S15" in capsys.readouterr().out and (tmp_path / "verdicts.csv").exists()


def test_a_dry_run_lists_the_runs(capsys):
  assert main(["run", "--grid=configs/study/augmentations.py", "--dry-run", "--shard=1/4"]) == 0
  printed = capsys.readouterr().out
  assert "4 runs, 4 missing" in printed and "RandAugment" in printed


@pytest.mark.parametrize("arguments, message", [
    (("figurs", "--runs=x"), "Study what\\? 'figurs' is none of run, table, figures, fit, advise"),
    ((), "Study what\\? '' is none of run, table, figures, fit, advise, verdicts"),
    (("think",), "'think' is none of"),
    (("run",), "--grid is missing, as in --grid=configs/study/openclipart.py"),
    (("run", "--grid=configs/study/shapes.py"), "--out is missing"),
    (("run", "--grid=configs/study/shapes.py:1", "--dry-run", "--shard=3/3"),
     "--shard=3/3 is not I/N"),
    (("run", "--grid=configs/study/shapes.py:1", "--dry-run", "--accelerator=x"),
     "No peak is known"),
    (("advise", "--pairs=50M"), "Say how many pairs there are and what training may take"),
    (("advise", "--pairs=50M", "--compute=much"), "--compute=much is not a number"),
    (("verdicts",), "--runs is missing"),
    (("figures", "--out=x", "--run=y"), "no flag --run; .* Did you mean --runs"),
])
def test_a_mistyped_command_is_told_what_was_meant(arguments, message):
  with pytest.raises(UserError, match=message):
    main(list(arguments))
