"""Makes the tiny open_clip and Hugging Face checkpoints with those libraries; see README.md."""

import json
from pathlib import Path
import shutil
import string

import numpy as np
import open_clip
import safetensors.torch
import sentencepiece
import timm
import tokenizers
import torch
import transformers

HERE = Path(__file__).parent
RNG = np.random.default_rng(0)
TEXTS = ["a dog", "Two cats, sleeping on a RED sofa!", "a_photo of x & y"]


def shake(model, dtype=torch.float32):
  """Sets all weights to random values, because an initial 0 or 1 could hide a mistake.

  The values are rounded to `dtype`.
  """
  with torch.no_grad():
    for name, value in model.state_dict().items():
      if not value.dtype.is_floating_point or "position_ids" in name:
        continue
      if name.endswith(("running_var",)):
        value.copy_(torch.rand_like(value) + 0.5)
      elif "logit" in name:
        value.copy_(torch.full_like(value, 2.3 if "scale" in name else -4.5))
      elif value.ndim < 2:
        norm = any(part in name for part in ("ln_", "norm", "bn", "downsample.1"))
        one = 1.0 if norm and name.endswith("weight") else 0.0
        value.copy_(one + 0.2 * torch.randn_like(value))
      else:
        spread = 1.0 if "embed" in name or "probe" in name or "latent" in name else 1.2
        fan = value[0].numel() if "embed" not in name else 1
        value.copy_(spread * torch.randn_like(value) / fan**0.5)
      value.copy_(value.to(dtype))
  return model.eval()


def inputs(size, length, vocabulary, end=None, pad=0):
  image = RNG.integers(0, 256, (3, size, size, 3)).astype(np.uint8)
  tokens = RNG.integers(3, vocabulary - 2, (3, length))
  for row, n in zip(tokens, (3, length - 2, length - 1)):
    if end is not None:
      row[n] = end
    row[n + 1 :] = pad
  return image, tokens.astype(np.int32)


def save_outputs(folder, image, tokens, z_image, z_text, scale, bias=0.0, **more):
  np.savez_compressed(
    folder / "outputs.npz",
    image=image,
    tokens=tokens,
    scale=np.float32(scale),
    bias=np.float32(bias),
    **more,
    **{name: z.detach().numpy() for name, z in (("z_image", z_image), ("z_text", z_text))},
  )


def fresh(name):
  folder = HERE / name
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir()
  return folder


def word_tokenizer(vocabulary, folder, *, clip=False):
  """Saves a tokenizer of a few words and letters, with the special tokens that the model needs."""
  specials = ["<pad>", "</s>", "<unk>"] if not clip else ["!"]
  words = [*specials, "a", "dog", "cats", "two", "red", "sofa", *string.ascii_lowercase[1:]]
  words += [f"w{i}" for i in range(vocabulary - len(words) - 2 * clip)]
  words += ["<|startoftext|>", "<|endoftext|>"] * clip
  table = {word: i for i, word in enumerate(words)}
  assert len(table) == vocabulary, len(table)
  unknown = "!" if clip else "<unk>"
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel(table, unk_token=unknown))
  made.normalizer = tokenizers.normalizers.Lowercase()
  made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  single = "<|startoftext|> $A <|endoftext|>" if clip else "$A </s>"
  marks = [(w, table[w]) for w in (["<|startoftext|>", "<|endoftext|>"] if clip else ["</s>"])]
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single=single, special_tokens=marks
  )
  pad = "<|endoftext|>" if clip else "</s>"
  fast = transformers.PreTrainedTokenizerFast(
    tokenizer_object=made, pad_token=pad, eos_token=marks[-1][0], unk_token=unknown
  )
  fast.save_pretrained(folder)
  return fast


def write_open_clip(
  name, config, *, preprocess, size, end=None, tokenizer=False, dtype=torch.float32
):
  folder = fresh(name)
  model = shake(
    (open_clip.model.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP)(
      **config
    ),
    dtype,
  )
  if "visual.trunk.norm.weight" in model.state_dict():
    config["custom_text"] = True
  text = config["text_cfg"]
  image, tokens = inputs(
    size, text["context_length"], text["vocab_size"], end=end, pad=1 if tokenizer else 0
  )
  mean, std = (torch.tensor(preprocess[key])[:, None, None] for key in ("mean", "std"))
  pixels = (torch.from_numpy(image).permute(0, 3, 1, 2) / 255 - mean) / std
  safetensors.torch.save_file(
    {
      name: value.to(dtype) if value.dtype.is_floating_point else value
      for name, value in model.state_dict().items()
    },
    folder / "open_clip_model.safetensors",
  )
  (folder / "open_clip_config.json").write_text(
    json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2)
  )
  more = {}
  if tokenizer:
    word_tokenizer(text["vocab_size"], folder)
    made = open_clip.tokenizer.HFTokenizer(
      str(folder), context_length=text["context_length"], **text["tokenizer_kwargs"]
    )
    more["text_tokens"] = made(TEXTS).numpy().astype(np.int32)
  with torch.no_grad():
    bias = 0.0 if model.logit_bias is None else float(model.logit_bias)
    # Record the preprocessing of a non-square image too.
    picture = RNG.integers(0, 256, (size + 30, size + 11, 3)).astype(np.uint8)
    transform = open_clip.transform.image_transform(
      size,
      is_train=False,
      mean=preprocess["mean"],
      std=preprocess["std"],
      interpolation=preprocess["interpolation"],
      resize_mode=preprocess["resize_mode"],
    )
    from PIL import Image

    seen = transform(Image.fromarray(picture)) * std + mean
    seen = (seen * 255).round().numpy().astype(np.uint8).transpose(1, 2, 0)
    save_outputs(
      folder,
      image,
      tokens,
      model.encode_image(pixels),
      model.encode_text(torch.from_numpy(tokens).long()),
      float(model.logit_scale.exp()),
      bias,
      picture=picture,
      picture_seen=seen,
      **more,
    )


OPENAI = {
  "mean": [0.48145466, 0.4578275, 0.40821073],
  "std": [0.26862954, 0.26130258, 0.27577711],
  "interpolation": "bicubic",
  "resize_mode": "shortest",
}
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 2}


def open_clips():
  vit = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
  write_open_clip(
    "open_clip_vit",
    {"embed_dim": 24, "vision_cfg": vit, "text_cfg": TEXT},
    preprocess=OPENAI,
    size=32,
    end=63,
  )
  write_open_clip(
    "open_clip_quickgelu",
    {
      "embed_dim": 24,
      "quick_gelu": True,
      "vision_cfg": {**vit, "mlp_ratio": 3.5},
      "text_cfg": TEXT,
    },
    preprocess=OPENAI,
    size=32,
    end=63,
    dtype=torch.float16,
  )
  write_open_clip(
    "open_clip_resnet",
    {
      "embed_dim": 24,
      "quick_gelu": True,
      "vision_cfg": {
        "image_size": 64,
        "layers": [1, 2, 1, 1],
        "width": 4,
        "head_width": 16,
        "patch_size": None,
      },
      "text_cfg": TEXT,
    },
    preprocess=OPENAI,
    size=64,
    end=63,
    dtype=torch.float16,
  )

  # Register a small model in timm's SigLIP family. Names with "base" stand for 12 heads, and this
  # one for the exact GELU.
  def vit_base_patch16_siglip_32(pretrained=False, **kwargs):
    return timm.models.vision_transformer.VisionTransformer(
      img_size=32,
      patch_size=16,
      embed_dim=36,
      depth=2,
      num_heads=12,
      class_token=False,
      global_pool=kwargs["global_pool"],
      num_classes=0,
    )

  timm.models._registry._model_entrypoints["vit_base_patch16_siglip_32"] = (
    vit_base_patch16_siglip_32
  )
  write_open_clip(
    "open_clip_siglip",
    {
      "embed_dim": 36,
      "init_logit_bias": -10,
      "custom_text": True,
      "vision_cfg": {
        "image_size": 32,
        "timm_model_name": "vit_base_patch16_siglip_32",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
      },
      "text_cfg": {
        **TEXT,
        "hf_tokenizer_name": "example/siglip",
        "no_causal_mask": True,
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},
      },
    },
    preprocess=HALF,
    size=32,
    tokenizer=True,
    dtype=torch.bfloat16,
  )


def hugging_faces():
  shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
  folder = fresh("huggingface_clip")
  config = transformers.CLIPConfig(
    text_config=dict(
      **shape,
      vocab_size=64,
      max_position_embeddings=8,
      eos_token_id=63,
      bos_token_id=62,
      pad_token_id=63,
    ),
    vision_config=dict(**shape, image_size=32, patch_size=8),
    projection_dim=24,
  )
  model = shake(transformers.CLIPModel(config))
  finish(folder, model, inputs(32, 8, 64, end=63, pad=63), 0.0)
  fast = word_tokenizer(64, folder, clip=True)
  processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
  processor.save_pretrained(folder)
  add_tokens(folder, fast, 8)

  folder = fresh("huggingface_siglip")
  config = transformers.SiglipConfig(
    text_config=dict(**shape, vocab_size=64, max_position_embeddings=8, projection_size=32),
    vision_config=dict(**shape, image_size=36, patch_size=16),
  )
  model = shake(transformers.SiglipModel(config), torch.bfloat16)
  finish(folder, model, inputs(36, 8, 64, pad=1), float(model.logit_bias))
  processor = transformers.SiglipImageProcessor(size={"height": 36, "width": 36})
  processor.save_pretrained(folder)
  words = ["a dog", "two cats on a red sofa", "a photo of x and y", "sleeping cats"] * 20
  import io

  piece = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(words),
    model_writer=piece,
    vocab_size=40,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    hard_vocab_limit=False,
    minloglevel=2,
    normalization_rule_name="identity",
  )
  (folder / "spiece.model").write_bytes(piece.getvalue())
  slow = transformers.SiglipTokenizer(str(folder / "spiece.model"), model_max_length=8)
  slow.save_pretrained(folder)
  add_tokens(folder, slow, 8)


def finish(folder, model, made, bias):
  image, tokens = made
  mean = OPENAI if isinstance(model, transformers.CLIPModel) else HALF
  mean, std = (torch.tensor(mean[key])[:, None, None] for key in ("mean", "std"))
  pixels = (torch.from_numpy(image).permute(0, 3, 1, 2) / 255 - mean) / std
  with torch.no_grad():
    out = model(input_ids=torch.from_numpy(tokens).long(), pixel_values=pixels)
  save_outputs(
    folder, image, tokens, out.image_embeds, out.text_embeds, float(model.logit_scale.exp()), bias
  )
  model.to(torch.bfloat16 if "siglip" in folder.name else torch.float32).save_pretrained(folder)


def add_tokens(folder, tokenizer, length):
  there = dict(np.load(folder / "outputs.npz"))
  made = tokenizer(TEXTS, padding="max_length", max_length=length, truncation=True)["input_ids"]
  np.savez_compressed(folder / "outputs.npz", **there, text_tokens=np.int32(made))


if __name__ == "__main__":
  torch.manual_seed(0)
  open_clips()
  hugging_faces()
  for library in (torch, open_clip, timm, transformers, tokenizers, sentencepiece):
    print(library.__name__, library.__version__)
  print("safetensors", safetensors.__version__)
