"""A tiny folder of icons in Iconify's format, with every case that the source handles."""

import json

HALF = '<path fill="currentColor" d="M0 0h12v24H0z"/>'  # The left half.
QUARTER = '<path fill="currentColor" d="M0 0h12v12H0z"/>'  # The upper left quarter.
RED = '<path fill="#f00" d="M0 0h24v24H0z"/>'
SHAPES = {
  "trash": '<path fill="currentColor" d="M6 3h12v2H6zM7 7h10v14H7z"/>',
  "heart": '<path fill="currentColor" d="M12 21L2 9l5-6l5 4l5-4l5 6z"/>',
  "star": '<path fill="currentColor" d="M12 2l3 7h7l-6 5l3 8l-7-5l-7 5l3-8l-6-5h7z"/>',
  "arrow-left": '<path fill="currentColor" d="M2 12l8-8v6h12v4H10v6z"/>',
  "arrow-right": '<path fill="currentColor" d="M22 12l-8-8v6H2v4h12v6z"/>',
}


def icon_set(prefix, icons, *, spdx="MIT", **more):
  """Returns the content of a set's file; icons are bodies by name, or properties."""
  return {
    "prefix": prefix,
    "info": {
      "name": prefix.title(),
      "author": {"name": f"{prefix} authors", "url": f"https://example.com/{prefix}"},
      "license": {"title": spdx, "spdx": spdx, "url": "https://example.com"},
    },
    "icons": {n: i if isinstance(i, dict) else {"body": i} for n, i in icons.items()},
    "width": 24,
    "height": 24,
    **more,
  }


def write_sets(folder, *sets):
  """Writes sets as @iconify/json has them; returns the folder."""
  (folder / "json").mkdir(parents=True, exist_ok=True)
  for one in sets:
    (folder / "json" / f"{one['prefix']}.json").write_text(json.dumps(one))
  return folder


def tiny_sets():
  """Sets with the same drawings under the same and other names; one of them is held out."""
  padded = {  # The same drawings, smaller and with padding, under other names.
    {"trash": "bin"}.get(name, name): {
      "body": f'<g transform="translate(8 8) scale(.6667)">{body}</g>',
      "width": 32,
      "height": 32,
    }
    for name, body in SHAPES.items()
  }
  broken = {"torn": "<path d=", "nothing": "<g/>"}
  return (
    icon_set("one", {**SHAPES, **broken, "secret": {"body": HALF, "hidden": True}}),
    icon_set("two", padded, aliases={"delete": {"parent": "bin"}}, categories={"Shapes": ["star"]}),
    icon_set("charm", {"star": SHAPES["star"], "red-square": RED, "half": HALF}),
    icon_set("copyleft", {"half": HALF}, spdx="GPL-3.0"),
  )
