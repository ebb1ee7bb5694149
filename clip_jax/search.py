"""Searches images: python -m clip_jax.search --model=MODEL --images=DIR "a red car"."""

from typing import Any

from clip_jax.cli.command import run_command

HELP = """Searches a folder for the images that best match a text or another image.

  python -m clip_jax.search --model=MODEL --images=DIR "a red car" [--top=20]
  python -m clip_jax.search --model=MODEL --images=DIR --query_image=FILE
  python -m clip_jax.search --model=MODEL --images=DIR --serve [--port=8000]

  --model=MODEL          workdir of a training run, exported model, or checkpoint of another library
  --images=DIR           folder of images, searched recursively, or one that prepare wrote; each
                         image is embedded once, and the embeddings are cached for the next search
  --query_image=FILE     search with an image instead of a text
  --top=20               number of results; on the web page, before more are loaded
  --contact_sheet=F.png  save a contact sheet of the results
  --serve                serve a web page that searches by text, by an image, or by both; reachable
                         from this machine only. The text in NAME.txt is shown below NAME.jpg.
  --port=8000            port of the web page; 0 for any free port
  --allowed_hosts=HOST:PORT,...
                         further addresses of the web page, for example localhost:9000 through a
                         tunnel
  --trust=MODULE,...     modules besides clip_jax that the config of the model may call

Prints one line per result: the cosine similarity and the path.

Exit codes: 0 done, 2 a mistake in the command, 130 stopped by Ctrl-C, 1 any other error.
"""


def main(arguments: list[str]) -> int:
  """Runs the command; returns its exit code."""
  from clip_jax.cli.flags import check_output, integer, parse
  from clip_jax.errors import UserError

  words = [a for a in arguments if not a.startswith("-")]
  flags = parse(
    [a for a in arguments if a.startswith("-")],
    HELP,
    switches=("serve",),
    strings=(
      "model",
      "images",
      "query_image",
      "top",
      "contact_sheet",
      "port",
      "allowed_hosts",
      "trust",
    ),
  )
  where = flags.model
  if not where:
    raise UserError("Which model? Set --model=MODEL, for example the workdir of a training run.")
  if not flags.images:
    raise UserError("Which images? Set --images=DIR.")
  if bool(words) + bool(flags.query_image) + flags.serve != 1:
    raise UserError(
      'Search for what? Give exactly one of a text such as "a red car", '
      "--query_image=FILE, or --serve for a web page."
    )
  top, port = integer(flags.top, "--top", 20), integer(flags.port, "--port", 8000, at_least=0)
  query = read(flags.query_image) if flags.query_image else None
  sheet_format = image_format(flags.contact_sheet) if flags.contact_sheet else None
  check_output(flags.contact_sheet, "--contact_sheet")

  from clip_jax.cli.formatting import printable
  from clip_jax.inference.image_index import build_index
  from clip_jax.inference.loading import load
  from clip_jax.inference.similarity import model_fingerprint
  from clip_jax.parallel.jax_private import protect_compiled_programs

  protect_compiled_programs()
  embedder = load(where, trust=tuple(filter(None, (flags.trust or "").split(","))))
  found = build_index(embedder, model_fingerprint(embedder.model), flags.images, print)
  report_skipped(found)
  if flags.serve:
    hosts = tuple(filter(None, (flags.allowed_hosts or "").split(",")))
    return serve(embedder, found, where, top, port, hosts)
  z = embedder.encode_image([query]) if query else embedder.encode_text([" ".join(words)])
  best = found.nearest(z[0], top)
  for k, score in best:
    print(f"{score:.4f}  {printable(found.path(k))}")
  if flags.contact_sheet:
    from clip_jax.files import atomic_write
    from clip_jax.inference.contact_sheet import contact_sheet

    sheet = contact_sheet(
      [found.pictures.read(found.names[k]) for k, _ in best],
      [f"{score:.3f}" for _, score in best],
      title=" ".join(words) or f"like {flags.query_image}",
    )
    with atomic_write(flags.contact_sheet, "wb") as file:
      sheet.save(file, sheet_format)
    print(f"Saved the contact sheet to {flags.contact_sheet}.")
  return 0


def report_skipped(found: Any) -> None:
  """Prints how many images of the folder are not searched, and why."""
  from clip_jax.cli.formatting import printable
  from clip_jax.data.folder_walk import describe

  if found.unreadable:
    print(
      f"{len(found.unreadable):,} files cannot be read and are skipped: "
      f"{', '.join(map(printable, found.unreadable[:5]))}"
      f"{', ...' if len(found.unreadable) > 5 else ''}"
    )
  if found.pictures.skipped:
    print(f"The folder: {describe(found.pictures.skipped)}.")


def image_format(path: str) -> str:
  """Returns Pillow's name of the format that the ending of a path stands for.

  Raises:
    UserError: the ending is not that of an image file.
  """
  import os

  from PIL import Image

  from clip_jax.errors import UserError

  found = Image.registered_extensions().get(os.path.splitext(path)[1].lower())
  if found not in Image.SAVE:
    raise UserError(f"--contact_sheet={path} does not end like an image file, as in found.png.")
  return found


def read(path: str) -> bytes:
  """Returns the bytes of an image file after checking that it can be decoded.

  Raises:
    UserError: the file is missing or not a readable image.
  """
  from clip_jax.data.decode import MAX_BYTES, UnreadableImage, decode
  from clip_jax.data.untrusted import read_regular
  from clip_jax.errors import UserError

  try:
    content = read_regular(path, MAX_BYTES)
    decode(content)
  except OSError as e:
    raise UserError(f"--query_image={path} cannot be opened: {e.strerror or e}.") from e
  except UnreadableImage as e:
    raise UserError(f"--query_image={path} is not a readable image: {e}") from e
  return content


def serve(
  embedder: Any, found: Any, where: str, top: int, port: int, hosts: tuple[str, ...] = ()
) -> int:
  """Serves the search page until Ctrl-C."""
  from clip_jax.inference.picture_search import PictureSearch
  from clip_jax.inference.web_ui import SearchServer

  page = SearchServer(
    f"{found.pictures.folder.name}, by {where}",
    found.pictures,
    found.names,
    PictureSearch(embedder, found),
    per_page=top,
    port=port,
    allowed_hosts=hosts,
  )
  print(f"Open {page.address} in a browser on this machine. Press Ctrl-C to stop.", flush=True)
  try:
    page.serve()
  except KeyboardInterrupt:
    print("\nStopped.")
  return 0


if __name__ == "__main__":
  run_command(main)
