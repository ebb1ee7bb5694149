"""Every number of the study: ImageNet, six variants of it, probes, few shots, COCO.

  python -m clip_jax.evaluate --from=DIR --suite=configs/evaluations/study.py --out=F.json
  ... --suite=configs/evaluations/study.py:/data/tfds              where TFDS prepared the sets
  ... --only=imagenet,imagenet_v2,coco                             some of it

Wants from TFDS, in ArrayRecord files (`tfds build NAME --file_format=array_record`): imagenet2012,
imagenet_v2, imagenet_a, imagenet_r, imagenet_sketch, imagenet2012_real, coco_captions; and
objectnet, for which TFDS has no builder: a set with an `image` and a ClassLabel `label` that has
the names of ObjectNet's folders, split "test", without the red border of its images. ImageNet
itself has to be downloaded by hand.

As in the study: the shorter side is resized and the central 0.875 kept, in one step; few-shot as
big_vision's; COCO by R@1 on the 5,000 test images with all their captions. OpenAI's class names and
80 templates, not canonical. ImageNet-A and -R among their 200 classes, ObjectNet among the 113 that
ImageNet has, too; ReaL takes any of the raters' labels as right and leaves out images without. The
study leaves open how the probe is trained: here SGD, 90 epochs, the rate swept on a tenth of the
training images. Nothing here has been run on the real sets yet; stand-ins of the same features are
in tests/test_evaluate_study.py.
"""

from ml_collections.config_dict import ConfigDict

from clip_jax.config import call
from clip_jax.data.sources.tfds import Tfds
from clip_jax.evaluators.few_shot import FewShot
from clip_jax.evaluators.labelled import Labelled
from clip_jax.evaluators.linear_probe import LinearProbe
from clip_jax.evaluators.regression import Sgd
from clip_jax.evaluators.retrieval import Retrieval
from clip_jax.evaluators.robustness import Robustness
from clip_jax.evaluators.zero_shot import ZeroShot

# Name, split, label, classes, what happens to records of other classes.
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
  """The evaluators, by name; `data_dir` as `Tfds` has it."""
  resize = "central_crop"

  def source(name, split, label):
    return call(Tfds, name=name, split=split, text=None, label=label, data_dir=data_dir)

  def zero_shot(name, split, label, classes, others):
    return call(ZeroShot, source=source(name, split, label), classes=classes, others=others,
                templates="openai_80", resize=resize)

  def test(name, split, label, classes, others):
    return call(Labelled, source=source(name, split, label), classes=classes, others=others,
                resize=resize)

  train, validation = (source("imagenet2012", split, "label") for split in ("train", "validation"))
  return ConfigDict({
      **{name: zero_shot(*one) for name, one in SETS.items()},
      "robustness": call(Robustness, standard="imagenet/top1",
                         variants={name: f"{name}/top1" for name in VARIANTS}),
      "few_shot": call(FewShot, train=source("imagenet2012", "train[:65000]", "label"),
                       test=validation, classes="imagenet", shots=(5, 10), resize=resize),
      "probe": call(LinearProbe, train=call(Labelled, source=train, classes="imagenet",
                                            resize=resize),
                    test=test(*SETS["imagenet"]), others={name: test(*SETS[name])
                                                          for name in VARIANTS},
                    solver=call(Sgd)),
      "probe_robustness": call(Robustness, standard="probe/top1",
                               variants={name: f"probe/{name}/top1" for name in VARIANTS}),
      "coco": call(Retrieval, source=call(Tfds, name="coco_captions/2014", split="test",
                                          text="captions/text", data_dir=data_dir), resize=resize),
  })
