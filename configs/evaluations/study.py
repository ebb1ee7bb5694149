"""All evaluations of the study: ImageNet, six variants of it, probes, few-shot, COCO retrieval.

  python -m clip_jax.evaluate --model=DIR --suite=configs/evaluations/study.py --out=F.json
  ... --suite=configs/evaluations/study.py:/data/tfds              folder of the TFDS data sets
  ... --only=imagenet,imagenet_v2,coco                             a part of the suite

Requires these TFDS data sets in ArrayRecord files (`tfds build NAME --file_format=array_record`):
imagenet2012, imagenet_v2, imagenet_a, imagenet_r, imagenet_sketch, imagenet2012_real and
coco_captions; and objectnet, for which TFDS has no builder: a data set with an `image` and a
ClassLabel `label` with the names of ObjectNet's folders, split "test", without the red border of
its images. ImageNet itself has to be downloaded by hand.

As in the study, images are resized by the shorter side and cropped to the central 0.875, in one
step; few-shot classification follows big_vision; COCO is R@1 on the 5,000 test images with all
their captions. Zero-shot uses OpenAI's class names and 80 templates, not canonicalised. ImageNet-A
and -R are evaluated on their 200 classes, and ObjectNet on the 113 that ImageNet also has. ReaL
counts any of the raters' labels as correct and leaves out images without labels. The study does not
specify how the probe is trained; here it is trained by SGD for 90 epochs, with the learning rate
swept on a tenth of the training images. The suite has not been run on the real data sets;
tests/test_evaluate_study.py runs it on stand-ins with the same features.
"""

from ml_collections.config_dict import ConfigDict

from clip_jax.config import call
from clip_jax.data.sources.tfds import Tfds
from clip_jax.evaluators.few_shot import FewShot
from clip_jax.evaluators.labeled_sets import LabeledSet
from clip_jax.evaluators.linear_classifier import Sgd
from clip_jax.evaluators.linear_probe import LinearProbe
from clip_jax.evaluators.retrieval import Retrieval
from clip_jax.evaluators.robustness import Robustness
from clip_jax.evaluators.zero_shot import ZeroShot

# Name, split, label field, classes, what to do with records of other classes.
SETS = {
  "imagenet": ("imagenet2012", "validation", "label", "imagenet", "error"),
  "imagenet_v2": ("imagenet_v2/matched-frequency", "test", "label", "imagenet", "error"),
  "imagenet_a": ("imagenet_a", "test", "label", "imagenet_a", "error"),
  "imagenet_r": ("imagenet_r", "test", "label", "imagenet_r", "error"),
  "imagenet_sketch": ("imagenet_sketch", "test", "label", "imagenet", "error"),
  "imagenet_real": ("imagenet2012_real", "validation", "real_label", "imagenet", "error"),
  "objectnet": ("objectnet", "test", "label", "objectnet", "leave_out"),
}
VARIANTS = tuple(name for name in SETS if name != "imagenet")


def get_config(data_dir=None):
  """Builds the evaluators by name; `data_dir` is the folder of the TFDS data sets, as in `Tfds`."""
  resize = "central_crop"

  def source(name, split, label):
    return call(Tfds, name=name, split=split, text=None, label=label, data_dir=data_dir)

  def zero_shot(name, split, label, classes, others):
    return call(
      ZeroShot,
      source=source(name, split, label),
      classes=classes,
      others=others,
      templates="openai_80",
      resize=resize,
    )

  def test(name, split, label, classes, others):
    return call(
      LabeledSet, source=source(name, split, label), classes=classes, others=others, resize=resize
    )

  train, validation = (source("imagenet2012", split, "label") for split in ("train", "validation"))
  return ConfigDict(
    {
      **{name: zero_shot(*one) for name, one in SETS.items()},
      "robustness": call(
        Robustness, standard="imagenet/top1", variants={name: f"{name}/top1" for name in VARIANTS}
      ),
      "few_shot": call(
        FewShot,
        train=source("imagenet2012", "train[:65000]", "label"),
        test=validation,
        classes="imagenet",
        shots=(5, 10),
        resize=resize,
      ),
      "probe": call(
        LinearProbe,
        train=call(LabeledSet, source=train, classes="imagenet", resize=resize),
        test=test(*SETS["imagenet"]),
        others={name: test(*SETS[name]) for name in VARIANTS},
        solver=call(Sgd),
      ),
      "probe_robustness": call(
        Robustness,
        standard="probe/top1",
        variants={name: f"probe/{name}/top1" for name in VARIANTS},
      ),
      "coco": call(
        Retrieval,
        source=call(
          Tfds, name="coco_captions/2014", split="test", text="captions/text", data_dir=data_dir
        ),
        resize=resize,
      ),
    }
  )
