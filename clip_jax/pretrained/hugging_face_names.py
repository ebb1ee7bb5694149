"""Name tables of Hugging Face's CLIPModel and SiglipModel."""

from clip_jax.pretrained.name_table import (
  Name,
  layer_norm,
  linear,
  matrix,
  matrix_of_heads,
  of,
  patch,
  prefixed,
  vector,
)

BLOCK = [
  *layer_norm("layer_norm1", "norm_attention"),
  *(
    row
    for i, name in enumerate("qkv")
    for row in linear(f"self_attn.{name}_proj", "attention/qkv", of(i, 1, matrix), of(i, 0, vector))
  ),
  *linear("self_attn.out_proj", "attention/out", matrix_of_heads),
  *layer_norm("layer_norm2", "norm_mlp"),
  *linear("mlp.fc1", "mlp/up"),
  *linear("mlp.fc2", "mlp/down"),
]
TOWERS = [
  Name("vision_model.embeddings.class_embedding", "image/class_token"),
  Name("vision_model.embeddings.patch_embedding.weight", "image/embedding/kernel", patch),
  Name("vision_model.embeddings.patch_embedding.bias", "image/embedding/bias"),
  Name("vision_model.embeddings.position_embedding.weight", "image/positions"),
  *layer_norm("vision_model.pre_layrnorm", "image/pre_norm"),
  *prefixed("vision_model.encoder.layers.{}.", "image/stack/blocks/", BLOCK),
  *layer_norm("vision_model.post_layernorm", "image/norm"),
  Name("text_model.embeddings.token_embedding.weight", "text/embedding"),
  Name("text_model.embeddings.position_embedding.weight", "text/positions"),
  *prefixed("text_model.encoder.layers.{}.", "text/stack/blocks/", BLOCK),
  *layer_norm("text_model.final_layer_norm", "text/norm"),
]
TABLES = {
  "clip": [
    *TOWERS,
    Name("visual_projection.weight", "image_projection/kernel", matrix),
    Name("text_projection.weight", "text_projection/kernel", matrix),
    Name("logit_scale", "log_scale"),
  ],
  "siglip": [
    *TOWERS,
    *prefixed(
      "vision_model.head.",
      "image/head/",
      [
        Name("probe", "probe", lambda x: x[None, None]),
        # One array with the queries first, then the keys and values.
        Name("attention.in_proj_weight", "query/kernel", matrix),
        Name("attention.in_proj_weight", "key_value/kernel", matrix),
        Name("attention.in_proj_bias", "query/bias", vector),
        Name("attention.in_proj_bias", "key_value/bias", vector),
        *linear("attention.out_proj", "out", matrix_of_heads),
        *layer_norm("layernorm", "norm"),
        *linear("mlp.fc1", "mlp/up"),
        *linear("mlp.fc2", "mlp/down"),
      ],
    ),
    *linear("text_model.head", "text_projection"),
    Name("logit_scale", "log_scale", lambda x: x[None]),
    Name("logit_bias", "bias", lambda x: x[None]),
  ],
}
