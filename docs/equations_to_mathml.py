"""A hook of mkdocs: $$equations$$ become MathML, which browsers draw by themselves; nothing is fetched."""

import re

from latex2mathml.converter import convert


def on_page_markdown(markdown: str, **_: object) -> str:
    return re.sub(
        r"^\$\$(.+?)\$\$$",
        lambda m: f"<p>{convert(m[1], display='block')}</p>",
        markdown,
        flags=re.M,
    )
