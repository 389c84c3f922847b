"""The code blocks and files that a page of the documentation shows."""

import re


def blocks(text):
    """The indented blocks of a page.

    What is in a fence (```console) needs a cluster, or another machine.
    """
    found = re.findall(r"(?:^    .*\n(?:\n+(?=    ))?)+", text + "\n", flags=re.M)
    return [re.sub("^    ", "", block, flags=re.M) for block in found]


def files(text):
    """The files of a page: the block after a line that ends with their name in backticks."""
    found = {}
    for match in re.finditer(r"`([\w/]+\.(?:py|yaml))`:\n\n(?=    )", text):
        found[match[1]] = blocks(text[match.end() :])[0]
    return found


def write_files(text, folder):
    """Write the files of a page below ``folder``."""
    for name, content in files(text).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
