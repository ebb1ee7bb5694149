"""Groups hashes that differ in few bits, without comparing every pair of a million.

Two hashes that differ in at most d bits agree exactly in at least one of d + 1 parts (the
pigeonhole principle), so only hashes that agree in some part are compared. Where too many agree in
a part, as those of plain backgrounds do, the remaining bytes are divided into d + 1 parts again.
The result is exact.

With 192 correlated bits, of which 2% of the hashes have next to none set and 10% are near another
one, 100,000 hashes take 0.4 s at d = 4 and 400,000 take 31 s at d = 8, on one core.

Source: multi-index hashing, Norouzi, Punjani, Fleet 2012.
"""

import numpy as np

_SHORT = 32  # Rows with an equal part that are compared in one go for all parts.
_COSTLY = 2**17  # Comparisons within one part above which it is divided again.
_DEPTH = 3  # Parts of parts of parts: hashes that agree in more are too many to divide further.
_BLOCK = 2**20  # Comparisons in memory at a time.


def near_groups(hashes: np.ndarray, distance: int) -> np.ndarray:
  """Groups hashes so that two that differ in at most `distance` bits are in one group.

  Groups are connected components: a chain of near hashes makes one group.

  Args:
    hashes: uint8 [n, w].
    distance: maximum number of different bits, 0 to w - 1.

  Returns:
    int64 [n], the index of the first hash of each one's group.
  """
  if not len(hashes):
    return np.zeros(0, np.int64)
  rows = np.ascontiguousarray(hashes).view(f"V{hashes.shape[1]}").ravel()
  _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
  search = _Search(np.ascontiguousarray(hashes[first]), distance)
  if distance:
    search.compare(np.arange(len(first)), np.arange(hashes.shape[1]))
  roots = search.roots(np.arange(len(first)))
  earliest = np.full(len(first), len(hashes), np.int64)
  np.minimum.at(earliest, roots, first)
  return earliest[roots][inverse.ravel()]


class _Search:
  """Different hashes, and the groups found so far as a forest of parents."""

  def __init__(self, hashes: np.ndarray, distance: int):
    pad = -hashes.shape[1] % 8
    self._bytes, self._distance = hashes, distance
    self._words = np.ascontiguousarray(np.pad(hashes, ((0, 0), (0, pad))).view(np.uint64).T)
    self._parent = np.arange(len(hashes))

  def roots(self, rows):
    """Returns the root of each row's tree."""
    roots = self._parent[rows]
    while ((above := self._parent[roots]) != roots).any():
      roots = above
    self._parent[rows] = roots
    return roots

  def compare(self, rows, columns, depth=1):
    """Unites the rows, int [n], that are near each other, given that all other bytes are equal.

    Args:
      rows: indices of hashes.
      columns: the bytes in which they may differ, int [c].
      depth: number of parts that agree, once these are compared.
    """
    # Parts of whole bytes: with fewer bytes than parts, compare all.
    if len(columns) <= self._distance:
      self._all(rows)
      return
    for part in np.array_split(columns, self._distance + 1):
      key = np.zeros(len(rows), np.uint64)
      for column in part[:8]:
        key = key << np.uint64(8) | self._bytes[rows, column]
      order = np.argsort(key, kind="stable")
      ordered, key = rows[order], key[order]
      starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
      lengths = np.diff(np.r_[starts, len(key)])
      self._short(ordered, np.repeat(np.where(lengths <= _SHORT, lengths, 0), lengths), starts)
      rest = np.setdiff1d(columns, part[:8])
      for start, length in zip(starts[lengths > _SHORT], lengths[lengths > _SHORT]):
        self._long(ordered[start : start + length], rest, depth)

  def _short(self, ordered, lengths, starts):
    """Compares the rows of all short runs of equal parts, by their distance in the order."""
    run = np.zeros(len(ordered), np.int64)
    run[starts[1:]] = 1
    run = np.cumsum(run)
    for step in range(1, int(lengths.max(initial=0))):
      left = np.flatnonzero((lengths[:-step] > step) & (run[:-step] == run[step:]))
      self._unite(ordered[left], ordered[left + step])

  def _long(self, rows, columns, depth):
    """Compares the rows of one long run, again by parts if that is a lot of work."""
    roots = self.roots(rows)
    if depth < _DEPTH and self._cost(roots) > _COSTLY:
      # A tight cluster is often most of a long run: unite it first.
      self._unite(np.full_like(rows, rows[len(rows) // 2]), rows)
      if self._cost(self.roots(rows)) > _COSTLY:
        self.compare(rows, columns, depth + 1)
        return
    self._all(rows)

  def _cost(self, roots):
    """Returns the number of comparisons in `_all`."""
    largest = np.unique(roots, return_counts=True)[1].max()
    return (len(roots) - largest) * len(roots)

  def _all(self, rows):
    """Compares all rows that are not in the largest group with all rows."""
    roots = self.roots(rows)
    groups, counts = np.unique(roots, return_counts=True)
    others = rows[roots != groups[counts.argmax()]]
    size = max(1, _BLOCK // len(rows))
    for start in range(0, len(others), size):
      block = others[start : start + size]
      different = self._different(block[:, None], rows[None])
      near = np.flatnonzero(different.ravel() <= self._distance)
      self._join(block[near // len(rows)], rows[near % len(rows)])

  def _different(self, a, b):
    """Returns the number of different bits of rows a and b, which are broadcast together."""
    return sum(np.bitwise_count(word[a] ^ word[b]) for word in self._words)

  def _unite(self, a, b):
    """Joins the groups of rows a[k] and b[k], int [m] each, where the hashes are near."""
    near = self._different(a, b) <= self._distance
    self._join(a[near], b[near])

  def _join(self, a, b):
    """Joins the groups of rows a[k] and b[k], int [m] each."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = np.stack([self.roots(a), self.roots(b)])
    edges = edges[:, edges[0] != edges[1]]
    if not edges.size:
      return
    nodes, edges = np.unique(edges, return_inverse=True)
    left, right = edges.reshape(2, -1)
    graph = coo_array((np.ones(len(left), bool), (left, right)), (len(nodes), len(nodes)))
    _, component = connected_components(graph, directed=False)
    smallest = np.full(component.max() + 1, len(self._parent))
    np.minimum.at(smallest, component, nodes)
    self._parent[nodes] = smallest[component]
