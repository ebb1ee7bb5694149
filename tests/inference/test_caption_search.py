"""Beam search against the enumeration of all captions, and the texts of tokens."""

from contextlib import closing
import functools
import itertools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clip_jax
from clip_jax import export
from clip_jax.config import call
from clip_jax.data.tokenizer import ClipBpe, SentencePiece
from clip_jax.errors import UserError
from clip_jax.inference.caption_search import best_captions, decode_tokens
from clip_jax.inference.embedder import Embedder
from clip_jax.model.text_decoder import TextDecoder
from clip_jax.objectives.captioner import Captioner
from clip_jax.training import evaluations, loop as loop_lib
from clip_jax.training.checkpoint import Checkpoints
from clip_jax.training.setup import build_setup
from run_config import get_config

V, L = 3, 3


@pytest.fixture(scope="module")
def decoder():
  made = TextDecoder(
    vocab_size=V,
    context_length=L,
    memory_width=4,
    width=8,
    depth=1,
    num_heads=2,
    mlp_dim=8,
    dtype="float32",
    remat="none",
    rngs=nnx.Rngs(3),
  )
  made.head.kernel[...] *= 3  # Far from uniform.
  return made


MEMORY = np.random.default_rng(0).normal(size=(12, 2, 4)).astype(np.float32) * 2


@pytest.fixture(scope="module")
def chances(decoder):
  """For each image, the log-probabilities [V] of the token after each beginning of a caption."""
  sequences = list(itertools.product(range(V), repeat=L))
  tokens = jnp.array(sequences * len(MEMORY))
  score = jax.jit(lambda *x: jax.nn.log_softmax(decoder.head(decoder(*x)), -1))
  found = np.asarray(score(jnp.repeat(MEMORY, len(sequences), 0), tokens))
  found = found.reshape(len(MEMORY), len(sequences), L, V)
  return [{s[:k]: of[i, k] for i, s in enumerate(sequences) for k in range(L)} for of in found]


def ended(tokens):
  return len(tokens) == L or tokens[-1:] == (0,)


def total(own, tokens):
  """The log-probability of a beginning of a caption."""
  return sum(own[tokens[:k]][token] for k, token in enumerate(tokens))


def best_of(own, captions, penalty):
  """The best caption, padded, by the log-probability divided by a power of the length."""
  best = max(captions, key=lambda tokens: total(own, tokens) / len(tokens) ** penalty)
  return [*best, *[0] * (L - len(best))]


def beam_search(own, beams, penalty):
  kept = [()]
  for _ in range(L):
    longer = [
      more for x in kept for more in ([x] if ended(x) else [(*x, token) for token in range(V)])
    ]
    kept = sorted(longer, key=lambda tokens: total(own, tokens))[-beams:]
  return best_of(own, kept, penalty)


@pytest.fixture(scope="module")
def search(decoder):
  run = jax.jit(functools.partial(best_captions, decoder), static_argnums=1)
  return lambda *x: np.asarray(run(MEMORY, *x)).tolist()


def test_as_many_beams_as_captions_find_the_best_of_all(search, chances):
  lengths = [itertools.product(range(V), repeat=k + 1) for k in range(L)]
  every = [x for x in itertools.chain(*lengths) if ended(x) and 0 not in x[:-1]]
  assert len(every) == 15
  found = {penalty: search(len(every), penalty) for penalty in (0.0, 0.6, 2.0)}
  for penalty, captions in found.items():
    assert captions == [best_of(own, every, penalty) for own in chances]
  assert found[0.0] != found[2.0]


def test_few_beams_match_a_search_over_lists_and_one_is_greedy(search, chances, decoder):
  found = {beams: search(beams, 0.6) for beams in (1, 2)}
  for beams, captions in found.items():
    assert captions == [beam_search(own, beams, 0.6) for own in chances]
  assert found[1] != found[2]
  for own, caption in zip(chances, found[1]):
    tokens = ()
    while not ended(tokens):
      tokens += (int(own[tokens].argmax()),)
    assert caption == [*tokens, *[0] * (L - len(tokens))]
  with pytest.raises(UserError, match="beams=0 is below 1"):
    best_captions(decoder, MEMORY, beams=0)


@pytest.mark.slow
def test_a_loaded_run_writes_the_captions_that_the_trained_decoder_prefers(tmp_path, capsys):
  config = get_config("4")
  config.evaluators = config.final_evaluators = {}
  config.objective = call(Captioner, pairs=config.objective, depth=1, dtype="float32")
  loop_lib.run(config, tmp_path)
  loaded = clip_jax.load(tmp_path)
  setup = build_setup(config)
  images = [setup.data.source[i]["image"] for i in range(3)]
  memory = loaded.model.image_tokens(np.stack([*map(loaded.preprocess, images)]))[0]
  written = {beams: loaded.caption(images, beams=beams) for beams in (1, 3)}
  for beams, captions in written.items():
    tokens = best_captions(loaded.decoder, memory, beams)
    assert captions == decode_tokens(loaded.tokenize, np.asarray(tokens))
  with closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
    state = checkpoints.restore(setup.state)
  trained = evaluations.embedder(setup, state)
  assert trained.caption(images) == written[1]
  export.main([f"--model={tmp_path}", "--format=clip_jax", f"--out={tmp_path / 'out'}"])
  assert "The text decoder is not part of an export" in capsys.readouterr().out


@pytest.mark.parametrize(
  "tokenizer", [SentencePiece(), SentencePiece(bos=True), ClipBpe(fix_text=False)]
)
def test_tokenizers_give_back_their_texts(tokenizer):
  texts = ["a red flower in a café", "two dogs, 3 cats"]
  back = decode_tokens(tokenizer, tokenizer(texts))
  assert [text.replace(" ,", ",") for text in back] == texts


def test_what_cannot_write_says_so():
  with pytest.raises(UserError, match="no method decode"):
    decode_tokens(object(), np.zeros((1, 2), int))
  with pytest.raises(UserError, match="cannot write captions.*configs/captioner.py"):
    Embedder(None, None, None).caption([])
