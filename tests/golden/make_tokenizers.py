"""Writes the tokens that other libraries give 300 odd texts; see README.md next to this file."""

import json
from pathlib import Path
import random
import tempfile

import ftfy
import open_clip
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
import tokenizers
import transformers

FOLDER = Path(__file__).parent / "tokenizers"
FRAGMENTS = json.loads((FOLDER / "fragments.json").read_text())


def texts():
  """Returns 300 texts: every fragment, and random joins of fragments and pieces of them."""
  rng = random.Random(0)
  made = ["", " ", *FRAGMENTS]
  while len(made) < 300:
    parts = [rng.choice(FRAGMENTS) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.5:
      parts = [part[rng.randrange(len(part)) :] for part in parts]
    made.append(rng.choice(("", " ", "  ", "\n", ", ", "_")).join(parts)[:60])
  return made


def byte_tokenizer():
  """A tokenizer.json whose tokens are bytes, so that its ids show the text that it received."""
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {token: i for i, token in enumerate(("<pad>", "</s>", "<unk>", *alphabet))}
  made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>"))
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single="$A </s>", special_tokens=[("</s>", 1)]
  )
  made.add_special_tokens(["<pad>", "</s>", "<unk>"])
  return made


def gemma_tokenizer():
  """A tokenizer.json of the kind of Gemma's, whose tokens are characters or bytes."""
  characters = [chr(i) for i in range(33, 127)] + ["\u2581", "é", "日"]
  tokens = ("<pad>", "</s>", "<bos>", "<unk>", "<mask>", *(f"<0x{i:02X}>" for i in range(256)))
  vocabulary = {token: i for i, token in enumerate((*tokens, *characters))}
  made = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
  )
  made.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
  made.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "merged_with_previous")
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single="$A </s>", special_tokens=[("</s>", 1)]
  )
  made.add_special_tokens(["<pad>", "</s>", "<bos>", "<unk>", "<mask>"])
  return made


def save(folder, made, tokenizer_class, **settings):
  """Writes a tokenizer as a directory of Hugging Face."""
  made.save(f"{folder}/tokenizer.json")
  settings = {"tokenizer_class": tokenizer_class, "pad_token": "<pad>", **settings}
  Path(folder, "tokenizer_config.json").write_text(
    json.dumps({"eos_token": "</s>", "unk_token": "<unk>", **settings})
  )


def rows(tokens):
  """Drops the padding, which is the last value of a padded row, but keeps one."""
  made = []
  for row in tokens:
    row = [int(i) for i in row]
    while len(row) > 1 and row[-1] == row[-2]:
      row.pop()
    made.append(row)
  return made


def main():
  """Writes texts.json with all tokens, and the tokenizers."""
  FOLDER.mkdir(exist_ok=True)
  given = texts()
  made = {"SimpleTokenizer": rows(SimpleTokenizer()(given, context_length=96))}
  save(FOLDER, byte_tokenizer(), "PreTrainedTokenizerFast")
  gemma_tokenizer().save(str(FOLDER / "gemma.json"))
  for clean in ("canonicalize", "lower", "whitespace"):
    tokenizer = HFTokenizer(str(FOLDER), context_length=160, clean=clean)
    made[f"HFTokenizer {clean}"] = rows(tokenizer(given))
  for name in ("PreTrainedTokenizerFast", "Siglip2Tokenizer"):
    with tempfile.TemporaryDirectory() as folder:
      gemma = name == "Siglip2Tokenizer"
      save(folder, gemma_tokenizer() if gemma else byte_tokenizer(), name)
      tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
      padded = tokenizer(
        given, padding="max_length", max_length=160, truncation=True, padding_side="right"
      )
      made[name] = rows(padded.input_ids)
  with tempfile.TemporaryDirectory() as folder:
    clip = SimpleTokenizer()
    start, end = "<|startoftext|>", "<|endoftext|>"
    vocabulary = {token: i for token, i in clip.encoder.items() if i < 49_406}
    vocabulary |= {start: 49_406, end: 49_407}
    merges = sorted(clip.bpe_ranks, key=clip.bpe_ranks.get)
    transformers.CLIPTokenizer(vocab=vocabulary, merges=merges).save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    padded = tokenizer(given, padding="max_length", max_length=96, truncation=True)
    made["CLIPTokenizer"] = rows(padded.input_ids)
  versions = {m.__name__: m.__version__ for m in (open_clip, transformers, tokenizers, ftfy)}
  content = {"versions": versions, "texts": given, "tokens": made}
  lines = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
  (FOLDER / "texts.json").write_text(lines.replace('],"', '],\n"') + "\n")


if __name__ == "__main__":
  main()
