"""Figures as inline SVG that takes its colours and its typeface from the page."""

from __future__ import annotations

import html
import io
import re

from auxin.analysis.style import COLOURS, Plot, house_style


def inline(plot: Plot, name: str, kind: str = "") -> str:
    """Return a figure as an ``<svg>`` element for a page with the house's CSS variables.

    Args:
        plot: The figure and its caption, which becomes its description for those who cannot see it.
        name: Distinguishes its ids from those of the other figures of the page.
        kind: CSS class.

    Returns:
        The element: text is text, and each colour of the house is a variable.
    """
    file = io.StringIO()
    with house_style():
        plot.figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    # Names of groups mean nothing on a page; ids that are referred to must not occur twice on it.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    for role, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{role})")
    text = re.sub(r"(\d+\.\d{2})\d+", r"\1", text)
    text = re.sub(r"\n\s*", "\n", text)
    label = html.escape(plot.caption, quote=True)
    return text.replace("<svg", f'<svg class="plot {kind}" role="img" aria-label="{label}"', 1)
