"""Each loss against its paper's equation written as loops, and chunked against dense."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import losses
from clip_jax.errors import UserError

jit = functools.partial(jax.jit, static_argnames="chunk_size")

# name: (function, the scalars to call it with, as in function(z_a, z_b, *scalars)).
LOSSES = {
  "info_nce": (jit(losses.info_nce), (14.3,)),
  "sigmoid_pairs": (jit(losses.sigmoid_pairs), (10.0, -10.0)),
  "nt_xent": (jit(losses.nt_xent), (0.1,)),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def embeddings(B, E=16, *, seed=0, noise=1.0):
  """Unit rows z_a, and z_b near them; float64, so that the reference is exact."""
  rng = np.random.default_rng(seed)
  z_a = rng.normal(size=(B, E))
  z_b = z_a + noise * rng.normal(size=(B, E))
  return tuple(z / np.linalg.norm(z, axis=1, keepdims=True) for z in (z_a, z_b))


def float32(*arrays):
  return tuple(jnp.asarray(x, jnp.float32) for x in arrays)


# The equations, one term at a time. `math.fsum` rounds only once, so the sums are exact.


def info_nce_by_loops(z_a, z_b, scale, groups=None, same_group="positive"):
  """-1/2B sum_i [log softmax_j(s a_i.b_j)_p + log softmax_j(s a_j.b_i)_p], averaged over p.

  p are the rows of the group of row i; with "ignore" only i, and the others are not among the j.
  """
  if groups is not None:
    return info_nce_with_groups_by_loops(z_a, z_b, scale, groups, same_group)
  total = []
  for x, y in ((z_a, z_b), (z_b, z_a)):
    for i in range(len(x)):
      positive = scale * math.fsum(x[i] * y[i])
      rest = math.fsum(
        math.exp(scale * math.fsum(x[i] * y[j]) - positive) for j in range(len(y)) if j != i
      )
      total.append(math.log1p(rest))
  return math.fsum(total) / len(total)


def info_nce_with_groups_by_loops(z_a, z_b, scale, groups, same_group):
  total, B = [], len(z_a)
  for x, y in ((z_a, z_b), (z_b, z_a)):
    for i in range(B):
      mine = [j for j in range(B) if groups[j] == groups[i]]
      logit = [scale * math.fsum(x[i] * y[j]) for j in range(B)]
      if same_group == "ignore":
        candidates, targets = [i, *(j for j in range(B) if j not in mine)], [i]
      else:
        candidates, targets = range(B), mine
      log_z = math.log(math.fsum(math.exp(logit[j]) for j in candidates))
      total.append(math.fsum(log_z - logit[p] for p in targets) / len(targets))
  return math.fsum(total) / len(total)


def sigmoid_pairs_by_loops(z_image, z_text, scale, bias, groups=None, same_group="positive"):
  """-1/B sum_i sum_j log sigmoid(z_ij (t x_i.y_j + b)), with z_ij = 1 on the diagonal, else -1."""
  total, groups = [], range(len(z_image)) if groups is None else groups
  for i in range(len(z_image)):
    for j in range(len(z_text)):
      same = i == j or groups[i] == groups[j]
      if i != j and same and same_group == "ignore":
        continue
      logit = scale * math.fsum(z_image[i] * z_text[j]) + bias
      total.append(math.log1p(math.exp(-logit if same else logit)))
  return math.fsum(total) / len(z_image)


def nt_xent_by_loops(z_a, z_b, temperature):
  """SimCLR's eq. 1, averaged over the 2B views; the partner of view k is k + B modulo 2B."""
  views, B = [*z_a, *z_b], len(z_a)
  total = []
  for i in range(2 * B):
    own = (i + B) % (2 * B)
    positive = math.fsum(views[i] * views[own]) / temperature
    rest = math.fsum(
      math.exp(math.fsum(views[i] * views[k]) / temperature - positive)
      for k in range(2 * B)
      if k not in (i, own)
    )
    total.append(math.log1p(rest))
  return math.fsum(total) / len(total)


BY_LOOPS = {
  "info_nce": info_nce_by_loops,
  "sigmoid_pairs": sigmoid_pairs_by_loops,
  "nt_xent": nt_xent_by_loops,
}


def slope(f, arguments, k, direction, h=1e-5):
  """Directional derivative of `f` in its k-th argument, by central differences in float64."""
  moved = lambda sign: f(
    *(x + sign * h * direction if i == k else x for i, x in enumerate(arguments))
  )
  return (moved(1) - moved(-1)) / (2 * h)


@every_loss
@pytest.mark.parametrize("chunk", [None, 4])
def test_loss_matches_its_papers_equation(name, chunk):
  f, scalars = LOSSES[name]
  z_a, z_b = embeddings(12)
  np.testing.assert_allclose(
    f(*float32(z_a, z_b), *scalars, chunk_size=chunk), BY_LOOPS[name](z_a, z_b, *scalars), rtol=1e-6
  )


@every_loss
@pytest.mark.parametrize("chunk", [None, 4])
def test_gradient_matches_finite_differences_of_the_equation(name, chunk):
  f, scalars = LOSSES[name]
  arguments = (*embeddings(12), *map(np.float64, scalars))
  gradients = jax.jit(jax.grad(functools.partial(f, chunk_size=chunk), range(len(arguments))))(
    *float32(*arguments)
  )
  rng = np.random.default_rng(1)
  for k, gradient in enumerate(gradients):
    direction = rng.normal(size=np.shape(arguments[k]))
    np.testing.assert_allclose(
      np.sum(gradient * direction), slope(BY_LOOPS[name], arguments, k, direction), rtol=2e-5
    )


GROUPED = {
  name: (jax.jit(f, static_argnames=("chunk_size", "same_group")), LOSSES[name][1])
  for name, f in (("info_nce", losses.info_nce), ("sigmoid_pairs", losses.sigmoid_pairs))
}
# Twelve rows: a group of three that are in different chunks, two pairs, and five single rows.
GROUPS = np.array([7, 1, 2, 7, 3, 3, 4, 9, 9, 7, 5, 6])


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("same_group", ["positive", "ignore"])
def test_losses_with_groups_match_loops_and_their_gradients(name, same_group):
  f, scalars = GROUPED[name]
  by_loops = functools.partial(BY_LOOPS[name], groups=GROUPS, same_group=same_group)
  arguments = (*embeddings(12), *map(np.float64, scalars))
  ungrouped = BY_LOOPS[name](*arguments)
  rng = np.random.default_rng(1)
  for chunk in (None, 4):
    value, gradients = jax.jit(
      jax.value_and_grad(
        functools.partial(f, chunk_size=chunk, groups=GROUPS, same_group=same_group),
        range(len(arguments)),
      )
    )(*float32(*arguments))
    np.testing.assert_allclose(value, by_loops(*arguments), rtol=1e-6)
    assert abs(value - ungrouped) > 1e-4
    for k, gradient in enumerate(gradients):
      direction = rng.normal(size=np.shape(arguments[k]))
      np.testing.assert_allclose(
        np.sum(gradient * direction), slope(by_loops, arguments, k, direction), rtol=2e-5
      )


@pytest.mark.parametrize("name", GROUPED)
def test_groups_of_one_row_and_negative_groups_change_nothing(name):
  f, scalars = GROUPED[name]
  arguments = (*float32(*embeddings(8)), *scalars)
  alone = np.stack([np.zeros(8, int), np.arange(8)], 1)  # Differ in the second column only.
  for groups, same_group in (
    (alone, "positive"),
    (alone, "ignore"),
    (np.zeros(8, int), "negative"),
  ):
    np.testing.assert_allclose(
      f(*arguments, groups=groups, same_group=same_group), f(*arguments), rtol=1e-6
    )


def test_positives_with_equal_texts_change_sigmoid_pairs_but_not_info_nce():
  """With equal texts, the targets of InfoNCE are met by the plain loss already."""
  z_image, z_text = embeddings(12)
  _, first, group = np.unique(GROUPS, return_index=True, return_inverse=True)
  arguments = float32(z_image, z_text[first][group])
  for name, changes in (("info_nce", False), ("sigmoid_pairs", True)):
    f, scalars = GROUPED[name]
    plain, positive, ignored = (
      f(*arguments, *scalars, groups=GROUPS, same_group=option)
      for option in ("negative", "positive", "ignore")
    )
    assert (abs(plain - positive) > 0.1) == changes
    if not changes:
      np.testing.assert_allclose(positive, plain, rtol=1e-6)
    assert abs(plain - ignored) > 0.01


def test_a_batch_of_one_group_has_no_negatives():
  arguments = (*float32(*embeddings(8)), 14.3)
  grad = jax.jit(jax.value_and_grad(losses.info_nce), static_argnames="same_group")
  value, gradient = grad(*arguments, groups=np.zeros(8, int), same_group="ignore")
  assert value == 0 and (np.asarray(gradient) == 0).all()


def test_groups_of_the_wrong_shape_or_another_option_are_an_error():
  z = jnp.ones((8, 4))
  with pytest.raises(UserError, match=r"groups have shape \(7,\).*\(8,\)"):
    losses.info_nce(z, z, 1.0, groups=jnp.zeros(7, int))
  with pytest.raises(UserError, match="'positives' is not one of"):
    losses.info_nce(z, z, 1.0, groups=jnp.zeros(8, int), same_group="positives")


def test_accuracies_leave_out_rows_of_the_same_group():
  z = jnp.eye(4)[jnp.array([0, 1, 1, 3])]  # Rows 1 and 2 are equal, so each is nearest to both.
  assert losses.accuracies(z, z) == (0.5, 0.5)
  for chunk in (None, 2):
    assert losses.accuracies(z, z, groups=jnp.array([0, 5, 5, 3]), chunk_size=chunk) == (1, 1)
  assert losses.accuracies(z, z, groups=jnp.array([0, 5, 3, 3])) == (0.5, 0.5)


def test_info_nce_with_scale_0_is_log_B():
  z_a, z_b = float32(*embeddings(24))
  np.testing.assert_allclose(losses.info_nce(z_a, z_b, 0.0), math.log(24), rtol=1e-6)
  np.testing.assert_allclose(losses.info_nce(z_a, z_b, 0.0, chunk_size=6), math.log(24), rtol=1e-6)


def test_sigmoid_pairs_with_scale_and_bias_0_is_B_log_2():
  z_a, z_b = float32(*embeddings(24))
  np.testing.assert_allclose(losses.sigmoid_pairs(z_a, z_b, 0.0, 0.0), 24 * math.log(2), rtol=1e-6)


def test_nt_xent_of_equal_views_is_the_log_of_the_candidates():
  z = jnp.ones((24, 4)) / 2
  np.testing.assert_allclose(losses.nt_xent(z, z, 0.1), math.log(2 * 24 - 1), rtol=1e-6)


def test_a_single_pair_has_zero_softmax_loss_and_gradient():
  z = jnp.array([[0.6, 0.8]])
  for f in (losses.info_nce, losses.nt_xent):
    value, gradient = jax.jit(jax.value_and_grad(f))(z, z, 0.1)
    assert value == 0 and not gradient.any()


@every_loss
@pytest.mark.parametrize("chunk", [1, 16])
def test_chunked_matches_dense(name, chunk):
  f, scalars = LOSSES[name]
  arguments = float32(*embeddings(64, 32), *scalars)
  n = range(len(arguments))
  dense = jax.jit(jax.value_and_grad(f, n))(*arguments)
  chunked = jax.jit(jax.value_and_grad(functools.partial(f, chunk_size=chunk), n))(*arguments)
  for x, y in zip(jax.tree.leaves(dense), jax.tree.leaves(chunked)):
    assert x.shape == y.shape and x.dtype == y.dtype == jnp.float32
    np.testing.assert_array_less(jnp.linalg.norm(x - y), 1e-6 * jnp.linalg.norm(x))


@every_loss
def test_chunking_does_not_depend_on_the_order_of_rows(name):
  """Chunk i has every (B / chunk)-th row; gradients must come back in the order of the rows."""
  f, scalars = LOSSES[name]
  z_a, z_b = float32(*embeddings(24))
  order = np.random.default_rng(2).permutation(24)
  gradient = jax.jit(jax.grad(functools.partial(f, chunk_size=8)))
  np.testing.assert_allclose(
    gradient(z_a[order], z_b[order], *scalars), gradient(z_a, z_b, *scalars)[order], atol=1e-6
  )


@every_loss
@pytest.mark.parametrize("chunk", [None, 8])
def test_nothing_overflows_at_scale_100(name, chunk):
  f = LOSSES[name][0]
  scalars = {"info_nce": (100.0,), "sigmoid_pairs": (100.0, 0.0), "nt_xent": (0.01,)}[name]
  z, _ = embeddings(32)
  for z_b in (z, -z):  # Positive logits are all +100, then -100: the loss is near 0, then near 100.
    arguments = float32(z, z_b, *scalars)
    value, gradients = jax.jit(
      jax.value_and_grad(functools.partial(f, chunk_size=chunk), range(len(arguments)))
    )(*arguments)
    np.testing.assert_allclose(value, BY_LOOPS[name](z, z_b, *scalars), rtol=2e-5)
    assert all(jnp.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("chunk", [None, 8])
@pytest.mark.parametrize("name", ["info_nce", "nt_xent"])
def test_a_small_loss_at_scale_100_is_precise(name, chunk):
  """log(sum(exp)) - positive would be 0 or a multiple of 7.6e-6, the float32 spacing near 100."""
  z_a, z_b = embeddings(32, 64, noise=0.1)
  scalar = {"info_nce": 100.0, "nt_xent": 0.01}[name]
  expected = BY_LOOPS[name](z_a, z_b, scalar)
  assert 0 < expected < 1e-12
  f = LOSSES[name][0]
  np.testing.assert_allclose(f(*float32(z_a, z_b), scalar, chunk_size=chunk), expected, rtol=1e-4)
  assert jax.grad(f)(*float32(z_a, z_b), scalar, chunk_size=chunk).any()


@pytest.mark.parametrize("chunk", [None, 4])
def test_both_directions_contribute_to_the_gradient(chunk):
  """Unlike in SLIP's code, an embedding must also get gradients as a candidate of other rows."""
  z_a, z_b = float32(*embeddings(12))
  a_finds_b = lambda z_a, z_b: -jax.nn.log_softmax(14.3 * z_a @ z_b.T, axis=1).trace() / 12
  b_finds_a = lambda z_a, z_b: a_finds_b(z_b, z_a)
  for side in (0, 1):
    one, other = (jax.grad(f, side)(z_a, z_b) for f in (a_finds_b, b_finds_a))
    assert jnp.linalg.norm(one - other) > 0.1 * jnp.linalg.norm(one)
    np.testing.assert_allclose(
      jax.grad(functools.partial(losses.info_nce, chunk_size=chunk), side)(z_a, z_b, 14.3),
      (one + other) / 2,
      atol=1e-6,
    )


@every_loss
def test_swapping_the_sides_changes_nothing(name):
  f, scalars = LOSSES[name]
  z_a, z_b = float32(*embeddings(12))
  np.testing.assert_allclose(f(z_a, z_b, *scalars), f(z_b, z_a, *scalars), rtol=1e-6)


@every_loss
def test_bfloat16_embeddings_are_compared_in_float32(name):
  f, scalars = LOSSES[name]
  halves = tuple(x.astype(jnp.bfloat16) for x in float32(*embeddings(12)))
  value = f(*halves, *scalars)
  assert value.dtype == jnp.float32
  assert value == f(*(x.astype(jnp.float32) for x in halves), *scalars)


@every_loss
def test_chunking_needs_a_fraction_of_the_memory(name):
  """One B x B matrix is 268 MB for B = 8,192, so this only compiles."""
  f, scalars = LOSSES[name]
  z = jax.ShapeDtypeStruct((8192, 64), jnp.float32)

  def temporaries(chunk):
    step = jax.value_and_grad(functools.partial(f, chunk_size=chunk), range(2 + len(scalars)))
    return jax.jit(step).lower(z, z, *scalars).compile().memory_analysis().temp_size_in_bytes

  dense, chunked, matrix = temporaries(None), temporaries(256), 4 * 8192**2
  assert dense >= matrix
  assert chunked < matrix / 2 and chunked < dense / 8


@every_loss
def test_products_are_float32_on_every_device(name):
  f, scalars = LOSSES[name]
  z = jnp.zeros((4, 8))
  for chunk in (None, 2):
    text = str(jax.make_jaxpr(jax.grad(functools.partial(f, chunk_size=chunk)))(z, z, *scalars))
    assert text.count("dot_general[") == text.count("precision=(Precision.HIGHEST") > 0


def test_accuracies_count_rows_nearest_to_their_partner():
  z_a = jnp.array([[1.0, 0], [0, 1], [0.6, 0.8], [-1, 0]])
  z_b = jnp.array([[1.0, 0], [0.6, 0.8], [0, 1], [-1, 0]])
  for chunk in (None, 1, 2):
    a_to_b, b_to_a = losses.accuracies(z_a, z_b, chunk_size=chunk)
    assert a_to_b == b_to_a == 0.5


def test_the_two_accuracies_differ_where_the_directions_do():
  z_a = jnp.array([[1.0, 0], [0.8, 0.6]])
  z_b = jnp.array([[1.0, 0], [0.96, 0.28]])
  # a_0 is nearest to b_0 (1 > .96), a_1 to b_1 (.936 > .8); but b_1 is nearer to a_0 than to a_1.
  assert [float(x) for x in losses.accuracies(z_a, z_b)] == [1.0, 0.5]


@pytest.mark.parametrize("chunk", [None, 4])
def test_accuracies_match_a_loop(chunk):
  z_a, z_b = embeddings(32, 8, noise=1.5)
  nearest = lambda x, y: np.mean([np.argmax(y @ x[i]) == i for i in range(len(x))])
  expected = nearest(z_a, z_b), nearest(z_b, z_a)
  assert min(expected) > 0 and max(expected) < 1
  np.testing.assert_allclose(losses.accuracies(*float32(z_a, z_b), chunk_size=chunk), expected)


@pytest.mark.parametrize("chunk", [None, 4])
def test_nt_xent_accuracy_matches_a_loop(chunk):
  z_a, z_b = embeddings(32, 8)
  views = np.concatenate([z_a, z_b])
  similarity = views @ views.T - 9 * np.eye(64)
  expected = np.mean(similarity.argmax(1) == (np.arange(64) + 32) % 64)
  assert 0 < expected < 1
  np.testing.assert_allclose(
    losses.nt_xent_accuracy(*float32(z_a, z_b), chunk_size=chunk), expected
  )


@pytest.mark.parametrize("chunk", [None, 7])
def test_collapsed_embeddings_have_zero_accuracy(chunk):
  z = jnp.tile(jnp.asarray(embeddings(1, 50)[0], jnp.float32), (35, 1))
  assert losses.accuracies(z, z, chunk_size=chunk) == (0, 0)
  assert losses.nt_xent_accuracy(z, z, chunk_size=chunk) == 0


def test_accuracies_have_no_gradient():
  z_a, z_b = float32(*embeddings(8))
  assert not jax.grad(lambda z: sum(losses.accuracies(z, z_b)))(z_a).any()
  assert not jax.grad(losses.nt_xent_accuracy)(z_a, z_b).any()


FUNCTIONS = {
  **LOSSES,
  "accuracies": (losses.accuracies, ()),
  "nt_xent_accuracy": (losses.nt_xent_accuracy, ()),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_chunk_size_that_does_not_divide_the_batch_is_an_error(name):
  f, scalars = FUNCTIONS[name]
  z = jnp.zeros((96, 4))
  with pytest.raises(
    UserError,
    match="chunk_size 20 does not divide the batch of 96 rows. Nearest divisors: 16, 24. Set",
  ):
    f(z, z, *scalars, chunk_size=20)
  with pytest.raises(UserError, match="chunk_size 0 .* Nearest divisors: 1. Set"):
    f(z, z, *scalars, chunk_size=0)
  with pytest.raises(UserError, match="chunk_size 100 .* Nearest divisors: 96. Set"):
    f(z, z, *scalars, chunk_size=100)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_embeddings_of_different_shapes_are_an_error(name):
  f, scalars = FUNCTIONS[name]
  with pytest.raises(UserError, match=r"\(4, 8\) and \(4, 6\) cannot be compared"):
    f(jnp.zeros((4, 8)), jnp.zeros((4, 6)), *scalars)
  with pytest.raises(UserError, match=r"\(4, 2, 3\) and \(4, 2, 3\) cannot be compared"):
    f(jnp.zeros((4, 2, 3)), jnp.zeros((4, 2, 3)), *scalars)
