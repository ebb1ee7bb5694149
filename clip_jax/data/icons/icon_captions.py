"""Captions for icons: several sentences, one of which `Views` draws at each visit."""

from collections.abc import Sequence


def captions(
  names: Sequence[str], style: Sequence[str], categories: Sequence[str], colour: str = ""
) -> list[str]:
  """Returns captions in different words.

  Half of them are bare names, because that is what people search for; the others mention the
  style, two names, the category or the colour if there are any.

  Args:
    names: the words of the name and of its aliases, the main one first.
    style: words such as "outline".
    categories: categories of the set.
    colour: name of the colour that it is painted in.
  """
  name, *others = names
  texts = [f"{name} icon", f"an icon of {name}"]
  if style:
    texts.append(f"{' '.join(style)} {name} icon")
    texts.append(f"{name}, {style[0]}")
  for other in others[:4]:
    texts.append(f"{name}, {other} icon")
  for category in categories[:2]:
    texts.append(f"{name}, {category.lower()}")
  if colour:
    texts = [f"{colour} {name}", f"a {colour} {name} icon", f"{name}, {colour}", *texts[:1]]
  bare = [name, *others[:6]]
  repeated = -(-len(texts) // len(bare))
  return bare * repeated + texts
