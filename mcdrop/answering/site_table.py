"""The sites of a network as people read them: a tuple that prints as a table."""

import os

from mcdrop.graph.sites import Site

__all__ = ["Sites"]


class Sites(tuple[Site, ...]):
    """The sites of a network; prints as a table."""

    def __repr__(self) -> str:
        head = ("#", "module", "kind", "p", "mask of one pass", "active", "source")
        rows = [
            (
                "" if site.index < 0 else str(site.index),
                site.path or "(network)",
                site.kind,
                "" if site.p is None else f"{site.p:g}",
                " x ".join(map(str, site.shape)),
                "yes" if site.active else f"no: {site.reason}",
                "" if site.source is None else os.path.basename(site.source),
            )
            for site in self
        ]
        widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [head, *rows]
        )
