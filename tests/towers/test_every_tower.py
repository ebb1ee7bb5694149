"""Properties that hold for every image tower."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax.config import build, call
from clip_jax.costs.flops import count_multiply_adds, count_parameters
from clip_jax.errors import UserError
from clip_jax.model.learner import split_state
from clip_jax.nn.target import any_platform
from clip_jax.objectives.flip import flip
from clip_jax.objectives.siglip import Siglip
from clip_jax.objectives.slip import Slip
from clip_jax.parallel import mesh as mesh_lib, partition, placement
from clip_jax.towers.convnext import ConvNext
from clip_jax.towers.mixer import MlpMixer
from clip_jax.towers.resnet import BitResnet
from clip_jax.towers.sizes import both_sides
from clip_jax.towers.swin import Swin
from clip_jax.towers.vit import Vit
from clip_jax.training import state as state_lib, step as step_lib
from tiny import batch, largest_difference, learner, text_tower
from tiny_towers import IMAGE_TOWERS, features, pixels, randomised, with_arguments

B = 8

# Parameters in millions and multiply-adds in billions at 224 pixels, including a head for 1000
# classes. Sources: the model tables of torchvision (ViT, ResNet, ConvNeXt, Swin) and timm (others).
PUBLISHED = {
  "ViT-Ti/16": (call(Vit, size="Ti", patch=16, pool="tok"), 5.717, 1.26),
  "ViT-S/16": (call(Vit, size="S", patch=16, pool="tok"), 22.051, 4.61),
  "ViT-B/32": (call(Vit, size="B", patch=32, pool="tok"), 88.224, 4.409),
  "ViT-B/16": (call(Vit, size="B", patch=16, pool="tok"), 86.568, 17.564),
  "ViT-L/16": (call(Vit, size="L", patch=16, pool="tok"), 304.327, 61.555),
  "ViT-H/14": (call(Vit, size="H", patch=14, pool="tok"), 632.046, 167.4),
  "ResNet-26": (call(BitResnet, layers=26), 15.995, 2.36),
  "ResNet-50": (call(BitResnet, layers=50), 25.557, 4.089),
  "ResNet-101": (call(BitResnet, layers=101), 44.549, 7.801),
  "ResNet-152": (call(BitResnet, layers=152), 60.193, 11.514),
  "ConvNeXt-T": (call(ConvNext, size="T"), 28.589, 4.456),
  "ConvNeXt-S": (call(ConvNext, size="S"), 50.224, 8.684),
  "ConvNeXt-B": (call(ConvNext, size="B"), 88.591, 15.355),
  "ConvNeXt-L": (call(ConvNext, size="L"), 197.767, 34.361),
  "ConvNeXt-XL": (call(ConvNext, size="XL"), 350.197, 60.98),
  "Swin-T": (call(Swin, size="T"), 28.288, 4.491),
  "Swin-S": (call(Swin, size="S"), 49.606, 8.741),
  "Swin-B": (call(Swin, size="B"), 87.768, 15.431),
  "Swin-L": (call(Swin, size="L"), 196.532, 34.53),
  "Mixer-S/32": (call(MlpMixer, size="S", patch=32), 19.10, 1.00),
  "Mixer-S/16": (call(MlpMixer, size="S", patch=16), 18.53, 3.79),
  "Mixer-B/32": (call(MlpMixer, size="B", patch=32), 60.29, 3.24),
  "Mixer-B/16": (call(MlpMixer, size="B", patch=16), 59.88, 12.61),
  "Mixer-L/32": (call(MlpMixer, size="L", patch=32), 206.94, 11.27),
  "Mixer-L/16": (call(MlpMixer, size="L", patch=16), 208.20, 44.60),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_have_the_published_parameters_and_multiply_adds(name):
  spec, millions, billions = PUBLISHED[name]
  tower = jax.eval_shape(lambda key: build(spec, rngs=nnx.Rngs(key)), jax.random.key(0))
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  count = count_multiply_adds(lambda tower, image: tower(image), tower, image)
  head = 1000 * tower.width
  assert count_parameters(nnx.state(tower, nnx.Param)) + head + 1000 == pytest.approx(
    millions * 1e6, rel=0.001
  )
  assert count + head == pytest.approx(billions * 1e9, rel=0.01)


# A large epsilon, so that Adam does not turn rounding errors of tiny gradients into full steps.
OPTIMIZER = optax.adam(1e-2, eps=1e-3)
TEXTS = text_tower(depth=0, pool="mean")


def trained(spec, state, *, steps, mesh=None):
  """The train states and the (loss, gradient norm) of each step on one batch."""
  graphdef = split_state(jax.eval_shape(lambda: learner(image=spec, text=TEXTS)))[0]
  step = step_lib.make_train_step(graphdef, OPTIMIZER, seed=0)
  rng = np.random.default_rng(0)
  data = batch(B) | {"image": rng.integers(0, 256, (B, *both_sides(spec.image_size), 3), np.uint8)}
  mesh = mesh or mesh_lib.make_mesh(devices=jax.devices()[:1])
  states, metrics = [], []
  with jax.set_mesh(mesh):
    state = jax.device_put(state, partition.state_shardings(state, mesh, min_size=64))
    data, step = placement.to_global(data, placement.batch_sharding(mesh)), jax.jit(step)
    for _ in range(steps):
      state, one = step(state, data)
      states.append(state)
      metrics.append((one["loss"], one["grad_norm"]))
  return states, jax.device_get(metrics)


# Those that differ from a faster one in little that matters to these tests.
SLOW = ("vit-tok", "vit-gap", "vit-openai", "resnet-flat")


@pytest.fixture(
  scope="module",
  params=[pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in IMAGE_TOWERS],
)
def plain(request):
  """A tower's config, its initial state, and the result of training on one device."""
  spec = IMAGE_TOWERS[request.param]
  state = jax.jit(lambda: state_lib.init_train_state(learner(image=spec, text=TEXTS), OPTIMIZER))()
  return spec, state, trained(spec, state, steps=30)


def test_overfits_one_batch(plain):
  _, _, (_, metrics) = plain
  assert metrics[-1][0] < 0.2 * metrics[0][0]


@pytest.mark.slow
@pytest.mark.parametrize(
  "objective",
  [
    call(Siglip),
    call(Slip, projection_hidden_dim=32, outputs=16, dtype="float32"),
    call(flip, keep_patches=0.75),
  ],
  ids=("siglip", "slip", "flip"),
)
@pytest.mark.parametrize("name", IMAGE_TOWERS)
def test_overfits_one_batch_with_other_objectives(name, objective):
  spec = IMAGE_TOWERS[name]
  if objective.get("keep_patches", 1) < 1 and not spec.fn.endswith(".Vit"):
    pytest.skip("this tower cannot drop patches")
  made = lambda: learner(objective, image=spec, text=TEXTS)
  state = jax.jit(lambda: state_lib.init_train_state(made(), OPTIMIZER))()
  step = jax.jit(step_lib.make_train_step(split_state(jax.eval_shape(made))[0], OPTIMIZER, seed=0))
  rng = np.random.default_rng(0)
  draw = lambda: rng.integers(0, 256, (B, *both_sides(spec.image_size), 3), np.uint8)
  data = batch(B) | {entry: draw() for entry in ("image", "view_a", "view_b")}
  losses = []
  for _ in range(60):
    state, metrics = step(state, data)
    losses.append(float(metrics["loss"]))
  assert losses[-1] < 0.4 * losses[0]


def test_every_parameter_is_trained(plain):
  _, start, (states, _) = plain
  moved = jax.tree.map(lambda a, b: np.ptp(a - b) if a.ndim else 1, states[2].params, start.params)
  for path, change in jax.tree_util.tree_leaves_with_path(moved):
    assert change > 0, f"{jax.tree_util.keystr(path)} is not trained"


def test_sharding_unrolling_and_remat_do_not_change_training(plain):
  spec, start, (states, metrics) = plain
  # Two steps, because a third can magnify rounding a thousandfold where a ReLU's input crosses 0.
  unroll = {"unroll": 2} if "unroll" in spec else {}  # Only for towers with a loop over blocks.
  theirs, their_metrics = trained(
    with_arguments(spec, remat="full", **unroll), start, steps=2, mesh=mesh_lib.make_mesh(2, 4)
  )
  np.testing.assert_allclose(their_metrics, metrics[:2], rtol=1e-4)
  assert largest_difference(theirs[1].params, states[1].params) < 1e-4  # A step is 1e-2.


def test_bfloat16_with_float32_parameters(plain):
  spec, start, _ = plain
  z = {}
  for dtype in ("float32", "bfloat16"):
    abstract = jax.eval_shape(lambda: build(with_arguments(spec, dtype=dtype), rngs=nnx.Rngs(0)))
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(nnx.state(abstract, nnx.Param)))
    tower = nnx.merge(
      split_state(abstract)[0],
      start.params["model"]["image"],
      start.stats.get("model", {}).get("image", {}),
    )
    z[dtype] = features(tower, pixels(spec))
    assert z[dtype].shape == (4, tower.width)
    with any_platform():  # On a CPU, activations may be float32.
      assert jax.eval_shape(lambda x, tower=tower: tower(x), pixels(spec)).dtype == dtype
  exact = z["float32"]
  assert largest_difference(exact[0], exact[1]) > 1e-3
  np.testing.assert_allclose(
    z["bfloat16"].astype(jnp.float32), exact, atol=0.05 * np.abs(exact).max()
  )


def equations(jaxpr):
  """The equations of a jaxpr and of all jaxprs nested in it."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.tree.leaves(list(equation.params.values())):
      if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
        yield from equations(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize("name", IMAGE_TOWERS)
def test_no_sum_over_rows_is_in_bfloat16(name):
  """Checks all sums except the gradients of convolution kernels."""
  spec, rows = with_arguments(IMAGE_TOWERS[name], dtype="bfloat16"), 7  # No other axis has 7.
  graphdef, params, stats = split_state(jax.eval_shape(lambda: build(spec, rngs=nnx.Rngs(0))))
  x = jax.ShapeDtypeStruct((rows, *both_sides(spec.image_size), 3), jnp.float32)
  loss = lambda params, stats, x: (
    nnx.merge(graphdef, params, stats)(x, train=True).astype(jnp.float32).sum()
  )
  with any_platform():  # On a CPU, activations may be float32.
    program = jax.make_jaxpr(jax.grad(loss))(params, stats, x).jaxpr
  sums = [
    e
    for e in equations(program)
    if e.primitive.name in ("dot_general", "reduce_sum")
    and any(rows in v.aval.shape for v in e.invars)
    and rows not in e.outvars[0].aval.shape
  ]
  assert len(sums) > 5
  assert [e for e in sums if e.outvars[0].aval.dtype == jnp.bfloat16] == []


@pytest.mark.parametrize("name", IMAGE_TOWERS)
def test_remat_recomputes(name):
  spec = IMAGE_TOWERS[name]

  def work(remat):
    tower = jax.eval_shape(lambda: build(with_arguments(spec, remat=remat), rngs=nnx.Rngs(0)))
    graphdef, params, stats = split_state(tower)
    loss = lambda params, stats: nnx.merge(graphdef, params, stats)(pixels(spec)).sum()
    return count_multiply_adds(jax.grad(loss), params, stats)

  assert work("full") > work("none")


@pytest.mark.parametrize("name", IMAGE_TOWERS)
def test_oblong_images_are_independent_of_each_other(name):
  spec = with_arguments(IMAGE_TOWERS[name], image_size=(16, 24))
  tower, image = randomised(spec), pixels(spec)
  run = jax.jit(tower.__call__)
  z = run(image)
  assert z.shape == (4, tower.width)
  image = image[::-1].copy()
  image[0, -1, -1] -= 1e4  # Large, because towers without a final norm attenuate it.
  other = run(image)
  np.testing.assert_allclose(other[1:], z[2::-1], rtol=1e-4, atol=1e-4)
  assert largest_difference(other[0], z[3]) > 1e-3, "the last pixel has no effect"


@pytest.mark.parametrize("name", IMAGE_TOWERS)
def test_patches_are_dropped_by_key_or_an_error_gives_the_fix(name):
  tower, image = randomised(IMAGE_TOWERS[name]), pixels(IMAGE_TOWERS[name])
  drop = jax.jit(lambda image, keys: tower(image, train=True, keep=0.5, key=keys))
  keys = jax.random.split(jax.random.key(0), 4)
  try:
    z = drop(image, keys)
  except UserError as error:
    assert "keep=0.5 drops patches, but" in str(error)
    assert "Set the objective's keep_patches=1, or train a Vit" in str(error)
    return
  assert z.shape == (4, tower.width)
  # The subset depends on the image's own key, not on the position in the batch.
  np.testing.assert_allclose(drop(image[::-1], keys[::-1]), z[::-1], rtol=1e-4, atol=1e-4)
  assert largest_difference(z, drop(image, keys[::-1])) > 1e-3
