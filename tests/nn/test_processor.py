"""The dtype that "auto" means on a processor."""

import pytest

from clip_jax.errors import UserError
from clip_jax.nn.processor import VARIABLE, processor_dtype


@pytest.mark.parametrize(
  "flags, dtype",
  [
    ("flags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile", "bfloat16"),
    ("flags\t\t: fpu avx512f avx512_bf16", "float32"),
    ("Features\t: fp asimd bf16", "float32"),
    (None, "float32"),
  ],
)
def test_auto_is_bfloat16_on_processors_with_amx(flags, dtype, tmp_path, monkeypatch):
  monkeypatch.delenv(VARIABLE)
  cpuinfo = tmp_path / "cpuinfo"
  if flags:
    cpuinfo.write_text(f"processor\t: 0\n{flags}\nbogomips\t: 5199.99\n")
  got, reason = processor_dtype(cpuinfo)
  assert got == dtype and "AMX" in reason


def test_the_environment_overrides_the_processor(tmp_path, monkeypatch):
  monkeypatch.setenv(VARIABLE, "bfloat16")
  assert processor_dtype(tmp_path / "none") == ("bfloat16", f"{VARIABLE} is set")
  monkeypatch.setenv(VARIABLE, "bf16")
  with pytest.raises(UserError, match="CLIP_JAX_CPU_DTYPE='bf16': set it to float32 or bfloat16"):
    processor_dtype(tmp_path / "other")
