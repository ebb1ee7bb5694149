from clip_jax.config import call
from clip_jax.data.crops import RandomResizedCrop
from clip_jax.data.flip import HorizontalFlip
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.data.tokenizer import SentencePiece
from clip_jax.data.views import ImageView, Views
from clip_jax.evaluators.retrieval import Retrieval
from clip_jax.evaluators.zero_shot import ZeroShot
from clip_jax.experiment import Data, Training, experiment
from clip_jax.model import TwoTowers
from clip_jax.objectives.clip import Clip
from clip_jax.optim import WarmupCosine, adamw
from clip_jax.towers.text import TextTransformer
from clip_jax.towers.vit import Vit
