"""The style sheets of a page and of its charts: light and dark, phone and desktop, and print."""

COLORS = """
:root { color-scheme: light dark; --page: #fff; --card: #f6f7f9; --text: #1b1f24; --muted: #59636e; --line: #dde1e6;
  --right: #2463c6; --wrong: #c8500c; --third: #1a7f4b; --fourth: #8a3fb0; --fifth: #a07800;
  --sixth: #0d7f8f; --on: #fff; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1d2126; --text: #e7eaed; --muted: #9ba6b2;
  --line: #343b43; --right: #6ea4f7; --wrong: #f2905a; --third: #5cc48d; --fourth: #c58be0; --fifth: #d8b33c;
  --sixth: #4cc3d3; --on: #10131a; } }
"""
CHARTS = """
.tick { fill: var(--muted); } .key { fill: var(--text); } .grid { stroke: var(--line); stroke-width: .6; }
.cell.right, .bar.right { fill: var(--right); } .cell.wrong, .bar.wrong { fill: var(--wrong); }
.cell { stroke: var(--line); stroke-width: .3; } path.cell { stroke: none; }
.frame { fill: none; stroke: var(--line); }
.bar.third { fill: var(--third); }
.bar.gap { fill: var(--wrong); fill-opacity: .35; }
text.in { fill: var(--text); text-anchor: middle; font-size: 7.5px; } text.in.on { fill: var(--on); }
.line { fill: none; stroke-width: 1.6; stroke: var(--right); stroke-linejoin: round; }
.line.diagonal { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 3 3; }
.line.s2 { stroke: var(--wrong); } .line.s3 { stroke: var(--third); } .line.s4 { stroke: var(--fourth); }
.line.s5 { stroke: var(--fifth); } .line.s6 { stroke: var(--sixth); }
.line.target { stroke: var(--text); stroke-width: .8; stroke-dasharray: 3 2; }
.runs .line { stroke-width: 1; }
.dot { fill: var(--right); } .dot.s2 { fill: var(--wrong); } .dot.s3 { fill: var(--third); }
.dot.s4 { fill: var(--fourth); } .dot.s5 { fill: var(--fifth); } .dot.s6 { fill: var(--sixth); }
"""
PAGE = """
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem 1rem 3rem; max-width: 68rem; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 .5rem; font-size: 1.15rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
.muted, figcaption, small { color: var(--muted); }
.warning { border-left: 4px solid var(--wrong); padding: .4rem .8rem; background: var(--card); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin-top: 1rem; font-size: .9rem; }
a { color: var(--right); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .6rem; margin: 1.2rem 0; }
.card { background: var(--card); border-radius: 8px; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.45rem; line-height: 1.25; }
.card small { display: block; line-height: 1.35; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1.5rem 2.5rem;
  align-items: start; }
.pair > * { min-width: 0; }
figure { margin: 0; }
figcaption { font-size: .85rem; line-height: 1.4; margin-top: .4rem; }
svg { display: block; width: 100%; height: auto; max-width: 36rem; font: 9px system-ui, sans-serif; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .9rem .22rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } thead th { color: var(--muted); font-weight: 400; font-size: .85rem; }
td:not(.n) { min-width: 6.2rem; }
td.n, th.n { text-align: right; white-space: nowrap; }
@media (max-width: 30rem) {
  table { font-size: .87rem; } th, td { padding-right: .55rem; } td:not(.n) { min-width: 5.4rem; }
}
tfoot td, tfoot th { border-bottom: 0; font-weight: 600; }
.findings { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18.5rem), 1fr)); gap: .8rem; }
.finding { background: var(--card); border-radius: 8px; padding: .7rem; break-inside: avoid; font-size: .9rem;
  line-height: 1.35; min-width: 0; }
.finding p { margin: .4rem 0; }
.views { display: flex; gap: .5rem; }
img { display: block; image-rendering: pixelated; border-radius: 4px; }
.views img { width: calc(50% - .25rem); max-width: 9rem; aspect-ratio: 1; }
.neighbors { display: grid; grid-template-columns: repeat(5, 1fr); gap: .35rem; font-size: .66rem; line-height: 1.25; }
.neighbors img { width: 100%; aspect-ratio: 1; }
.neighbors > div { min-width: 0; }
.small { grid-template-columns: repeat(auto-fill, minmax(8.2rem, 1fr)); }
.small img { width: 100%; aspect-ratio: 1; }
.differs { color: var(--wrong); }
pre { background: var(--card); border-radius: 8px; padding: .7rem .9rem; white-space: pre-wrap; font-size: .85rem; }
.settings { columns: 19rem 3; column-gap: 2rem; font-size: .85rem; }
.settings div { display: flex; justify-content: space-between; gap: 1rem; border-bottom: 1px solid var(--line);
  break-inside: avoid; }
.settings .changed { font-weight: 600; }
@media print {
  :root { color-scheme: light; --page: #fff; --card: #f6f7f9; --text: #000; --muted: #444; --line: #ccc;
    --right: #2463c6; --wrong: #c8500c; --third: #1a7f4b; --fourth: #8a3fb0; --fifth: #a07800;
    --sixth: #0d7f8f; --on: #fff; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { font-size: 10pt; padding: 0; } nav { display: none; }
  figure, .card, tr { break-inside: avoid; } h2 { break-after: avoid; } svg { max-width: 24rem; }
}
"""
STYLE = COLORS + PAGE + CHARTS
