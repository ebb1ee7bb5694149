"""From files to batches: sources, subsets, views, tokenizers and the order of examples."""

from clip_jax.data.augment.color_jitter import ColorJitter
from clip_jax.data.augment.horizontal_flip import HorizontalFlip
from clip_jax.data.augment.randaugment import RandAugment
from clip_jax.data.augment.redraw import Redraw
from clip_jax.data.augment.simclr import SimclrColors
from clip_jax.data.checkpoint_tokenizer import CleanedTokenizer, MissingTokenizer, TokenizerJson
from clip_jax.data.crops import RandomResizedCrop, Resize
from clip_jax.data.deduplicate import Deduplicate
from clip_jax.data.pipeline import Examples, batches
from clip_jax.data.records import ArrayRecord
from clip_jax.data.resize_then_crop import ResizeThenCrop
from clip_jax.data.score_file import read_scores, write_scores
from clip_jax.data.score_filter import ScoreFilter
from clip_jax.data.sources.caption_files import CaptionFiles
from clip_jax.data.sources.caption_table import CaptionTable
from clip_jax.data.sources.folder import Folder
from clip_jax.data.sources.icon_records import IconRecords
from clip_jax.data.sources.iconify import Iconify
from clip_jax.data.sources.mixture import Mixture
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.data.sources.parquet import Parquet
from clip_jax.data.sources.shapes import Shapes
from clip_jax.data.sources.tfds import Tfds
from clip_jax.data.sources.with_embeddings import WithEmbeddings
from clip_jax.data.split import Split
from clip_jax.data.stored_views import StoredViews
from clip_jax.data.subset import Subset
from clip_jax.data.tokenizer import ClipBpe, SentencePiece
from clip_jax.data.views import ImageView, Views

Quality = ScoreFilter  # The name until format 1.

# What a saved config may name, see `clip_jax.config`.
PARTS = (
  "ArrayRecord",
  "CaptionFiles",
  "CaptionTable",
  "CleanedTokenizer",
  "ClipBpe",
  "ColorJitter",
  "Deduplicate",
  "Folder",
  "HorizontalFlip",
  "IconRecords",
  "Iconify",
  "ImageView",
  "MissingTokenizer",
  "Mixture",
  "OpenClipart",
  "Parquet",
  "RandAugment",
  "RandomResizedCrop",
  "Redraw",
  "Resize",
  "ResizeThenCrop",
  "ScoreFilter",
  "SentencePiece",
  "Shapes",
  "SimclrColors",
  "Split",
  "StoredViews",
  "Subset",
  "Tfds",
  "TokenizerJson",
  "Views",
  "WithEmbeddings",
)
__all__ = [
  "ArrayRecord",
  "CaptionFiles",
  "CaptionTable",
  "CleanedTokenizer",
  "ClipBpe",
  "ColorJitter",
  "Deduplicate",
  "Examples",
  "Folder",
  "HorizontalFlip",
  "IconRecords",
  "Iconify",
  "ImageView",
  "MissingTokenizer",
  "Mixture",
  "OpenClipart",
  "Parquet",
  "Quality",
  "RandAugment",
  "RandomResizedCrop",
  "Redraw",
  "Resize",
  "ResizeThenCrop",
  "ScoreFilter",
  "SentencePiece",
  "Shapes",
  "SimclrColors",
  "Split",
  "StoredViews",
  "Subset",
  "Tfds",
  "TokenizerJson",
  "Views",
  "WithEmbeddings",
  "batches",
  "read_scores",
  "write_scores",
]
