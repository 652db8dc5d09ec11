"""``sslsv report``: what one or more runs found, as one HTML page that needs no network.

`runs` reads the folders of runs, `maps` lays embeddings out in the plane, `clips` cuts audio to
listen to, `page` writes what they give into page.html, which page.js draws and page.css lays out.
"""

from sslsv.report.page import report

__all__ = ["report"]
