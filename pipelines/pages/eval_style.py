"""The style of the report of `cc eval --html`: light and dark, from a phone to a wide screen."""

from __future__ import annotations

import base64
import hashlib

COLORS = 6
"""Colours of sides; more sides share them."""

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #22262a; --quiet: #626a72; --page: #fcfcfb; --panel: #f3f4f2; --line: #dcdfdb;
  --base: #9aa1a7; --s0: #0068a8; --s1: #c2510a; --s2: #0a7d5c; --s3: #a3508a; --s4: #8a6a00;
  --s5: #4c6fbf;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e8ea; --quiet: #9aa2a9; --page: #16191c; --panel: #1f2327; --line: #353b40;
    --base: #7d858c; --s0: #5cb3e8; --s1: #f0905a; --s2: #4fc39c; --s3: #d78fc0; --s4: #d9b94a;
    --s5: #93aeea;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 70rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: anywhere;
}
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2.75rem 0 .35rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .35rem; }
p, ul { margin: .35rem 0; max-width: 46rem; }
ul { padding-left: 1.2rem; }
.quiet, small { color: var(--quiet); }
small { font-size: .8125rem; }
.wide { overflow-x: auto; margin: .75rem 0; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td {
  padding: .45rem .55rem; text-align: right; border-top: 1px solid var(--line);
  white-space: nowrap; vertical-align: top; line-height: 1.3;
}
thead th { border-top: 0; font-weight: 600; background: var(--panel); }
th:first-child { text-align: left; font-weight: 600; }
tbody th {
  position: sticky; left: 0; background: var(--page); min-width: 6.5rem; max-width: 12rem;
  white-space: normal; overflow-wrap: break-word;
}
td small { display: block; font-weight: 400; }
td.best { font-weight: 650; }
.key {
  display: inline-block; width: .7rem; height: .7rem; border-radius: 2px; margin-right: .4rem;
}
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; margin: .5rem 0; }
.base { background: var(--base); fill: var(--base); }
.s0 { background: var(--s0); fill: var(--s0); }
.s1 { background: var(--s1); fill: var(--s1); }
.s2 { background: var(--s2); fill: var(--s2); }
.s3 { background: var(--s3); fill: var(--s3); }
.s4 { background: var(--s4); fill: var(--s4); }
.s5 { background: var(--s5); fill: var(--s5); }
.photo { margin: 1rem 0 1.75rem; padding: 0; }
.photo > figcaption { margin-bottom: .35rem; }
.strip { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem; }
.strip figure { margin: 0; max-width: 20rem; }
.strip img { display: block; width: 100%; height: auto; border-radius: 4px; }
.strip figcaption { font-size: .8125rem; line-height: 1.35; margin-top: .25rem; }
.rows { margin: .75rem 0; }
.row {
  display: grid; grid-template-columns: 6.5rem minmax(0, 1fr); gap: .15rem .75rem;
  padding: .4rem 0; border-top: 1px solid var(--line); align-items: center;
}
.row > small { grid-column: 1; }
.row > div:last-child { grid-column: 2; grid-row: 1 / span 2; }
.bar {
  display: grid; grid-template-columns: minmax(0, 1fr) 3.25rem; gap: .5rem; align-items: center;
}
.bar span {
  text-align: right; font-size: .8125rem; line-height: 1.1rem; font-variant-numeric: tabular-nums;
}
.bar svg { display: block; width: 100%; height: .55rem; }
.charts {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1.25rem;
}
.charts figure { margin: .5rem 0; }
.charts svg { display: block; width: 100%; max-width: 26rem; height: auto; }
.charts figcaption { font-weight: 600; }
svg text { fill: var(--quiet); font-size: 13px; }
svg .axis { stroke: var(--line); fill: none; }
svg .ideal { stroke: var(--quiet); stroke-dasharray: 4 4; fill: none; }
svg .mark { stroke: var(--ink); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
svg .track { fill: var(--panel); }
svg circle { fill-opacity: .55; }
.swatch { width: .9rem; height: .9rem; vertical-align: -.1rem; margin-right: .4rem; }
@media (max-width: 30rem) {
  body { padding: 1.25rem .9rem 3rem; }
  th, td { padding: .4rem .5rem; }
  tbody th { min-width: 5.5rem; max-width: 7rem; }
  .strip { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .charts { grid-template-columns: minmax(0, 1fr); }
}
"""


def policy() -> str:
    """A Content-Security-Policy that allows this style, embedded pictures, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def color_of(number: int | None) -> str:
    """The class of a side's colour; None is a baseline."""
    return "base" if number is None else f"s{number % COLORS}"
