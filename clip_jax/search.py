"""Searches pictures: python -m clip_jax.search --from=MODEL --images=DIR "a red car"."""

from collections.abc import Callable
from typing import Any

from clip_jax import cli

HELP = """Finds the pictures of a folder that go best with a text, or with another picture.

  python -m clip_jax.search --from=MODEL --images=DIR "a red car" [--top=20] [--sheet=F.png]
  python -m clip_jax.search --from=MODEL --images=DIR --like=PICTURE
  python -m clip_jax.search --from=MODEL --images=DIR --serve [--port=8000]

  --from=MODEL    the workdir of a training run, an exported model, or another library's checkpoint
  --images=DIR    pictures, in folders inside it as well; each is embedded once, and the vectors are
                  kept for the next search
  --top=20        how many to find
  --sheet=F.png   draws what was found
  --like=PICTURE  a file to find others like
  --serve         a page with a search box, on this machine alone; pictures can be dropped on it
  --port=8000     of that page
  --trust=MODULE,...
                  modules beyond clip_jax that the model's config may call

Prints a line for each picture: the cosine, and the path.

Exit codes: 0 done, 2 a mistake in what was asked for, 130 stopped by Ctrl-C, 1 anything else.
"""


def main(arguments: list[str]) -> int:
  """Runs the command; returns its exit code."""
  from clip_jax.errors import UserError
  from clip_jax.flags import parse, whole
  words = [a for a in arguments if not a.startswith("-")]
  flags = parse([a for a in arguments if a.startswith("-")], HELP, switches=("serve",),
                strings=("from", "images", "top", "sheet", "like", "port", "trust"))
  where = getattr(flags, "from")
  if not where:
    raise UserError("Which model? Set --from=MODEL, as the workdir of a training run.")
  if not flags.images:
    raise UserError("Which pictures? Set --images=DIR.")
  if bool(words) + bool(flags.like) + flags.serve != 1:
    raise UserError("Look for what? Give a text, as in \"a red car\", or --like=PICTURE, or "
                    "--serve for a page to ask on; one of them.")
  top, port = whole(flags.top, "--top", 20), whole(flags.port, "--port", 8000, at_least=0)
  like = read(flags.like) if flags.like else None

  from clip_jax.index import index
  from clip_jax.loading import load
  from clip_jax.scoring import model_fingerprint
  embedder = load(where, trust=tuple(filter(None, (flags.trust or "").split(","))))
  found = index(embedder, model_fingerprint(embedder.model), flags.images, print)
  if found.unreadable:
    print(f"{len(found.unreadable):,} files cannot be read and are left out: "
          f"{', '.join(found.unreadable[:5])}{', ...' if len(found.unreadable) > 5 else ''}")
  by_text = lambda text: found.nearest(embedder.encode_text([text])[0], top)
  by_image = lambda image: found.nearest(embedder.encode_image([image])[0], top)
  if flags.serve:
    return serve(found, where, by_text, by_image, port)
  best = by_image(like) if like else by_text(" ".join(words))
  paths = found.paths()
  for k, score in best:
    print(f"{score:.4f}  {paths[k]}")
  if flags.sheet:
    from pathlib import Path

    from clip_jax.sheet import contact_sheet
    contact_sheet([Path(paths[k]).read_bytes() for k, _ in best],
                  [f"{score:.3f}" for _, score in best],
                  title=" ".join(words) or f"like {flags.like}").save(flags.sheet)
    print(f"drawn in {flags.sheet}")
  return 0


def read(path: str) -> bytes:
  """The bytes of a picture that can be read.

  Raises:
    UserError: it is not there, or cannot be.
  """
  from clip_jax.data.decode import UnreadableImage, decode
  from clip_jax.errors import UserError
  try:
    with open(path, "rb") as f:
      content = f.read()
    decode(content)
  except OSError as e:
    raise UserError(f"--like={path} cannot be opened: {e.strerror}.") from e
  except UnreadableImage as e:
    raise UserError(f"--like={path} is no picture that can be read: {e}") from e
  return content


def serve(found: Any, where: str, by_text: Callable, by_image: Callable, port: int) -> int:
  """Answers questions in the browser until Ctrl-C."""
  from clip_jax.page import Page
  page = Page(f"{found.folder.name}, by {where}", found.paths(), by_text, by_image, port=port)
  print(f"Open {page.address} in a browser on this machine. Ctrl-C ends it.", flush=True)
  try:
    page.serve()
  except KeyboardInterrupt:
    print("\nEnded.")
  return 0


if __name__ == "__main__":
  cli.command(main)
