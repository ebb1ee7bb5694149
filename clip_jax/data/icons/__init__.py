"""Icons in Iconify's format: sets of SVG drawings, their names, and how they are drawn."""
