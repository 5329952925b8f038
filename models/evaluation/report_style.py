"""How the report looks: light, dark, on a phone and on paper.

Colours of stages are those of Okabe and Ito, "Color Universal Design" (2008), which people with any common colour
blindness tell apart.
"""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d2127; --quiet: #5b6470; --line: #d9dde3; --shade: #f4f6f8;
  --mark: #0072b2; --stage-0: #56b4e9; --stage-1: #0072b2; --stage-2: #e69f00; --stage-3: #009e73; --stage-4: #cc79a7;
  --stage-5: #8a929c; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e6e9ed; --quiet: #a3acb8; --line: #363d46;
  --shade: #1d2228; --mark: #56b4e9; --stage-1: #2f8fd0; } }
@page { margin: 12mm; }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --quiet: #444; --line: #bbb; --shade: #f4f4f4;
  --mark: #0072b2; --stage-1: #0072b2; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 84rem; padding: 1rem clamp(.8rem, 3vw, 2rem) 4rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  overflow-wrap: break-word; }
h1, h2, h3, h4, h5 { line-height: 1.25; margin: 1.6em 0 .5em; text-wrap: balance; }
h1 { font-size: clamp(1.5rem, 4vw, 2rem); margin-top: .5em; }
h2 { font-size: 1.4rem; padding-top: .8rem; border-top: 2px solid var(--ink); margin-top: 3rem; }
h3 { font-size: 1.1rem; } h4 { font-size: .95rem; margin: 1.2em 0 .3em; }
h5 { font-size: .85rem; margin: .4em 0; color: var(--quiet); font-weight: 600; }
p, ul, dl { max-width: 46rem; } p { margin: .5em 0; }
a { color: var(--mark); }
.lead { font-size: 1.1rem; } .quiet, .facts, small { color: var(--quiet); } .quiet { font-size: .9rem; }
.facts { font-weight: 600; }
.rules, .leaders, .groups { padding-left: 1.2rem; } .rules li, .leaders li { margin: .3em 0; }
.notes { border-left: 4px solid var(--stage-2); background: var(--shade); padding: .6rem 1rem; max-width: 46rem; }
.notes ul { margin: .3em 0; padding-left: 1.2rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; list-style: none; padding: 0; max-width: none; }
.scrolls { overflow-x: auto; margin: .8rem 0; border: 1px solid var(--line); border-radius: 6px; }
.scrolls:focus-visible { outline: 3px solid var(--mark); }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .4rem; text-align: left; vertical-align: middle; border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { background: var(--shade); vertical-align: bottom; font-weight: 600; line-height: 1.25; min-width: 4rem; }
th small, td small { display: block; font-weight: 400; font-size: .84em; line-height: 1.3; }
.number { text-align: right; white-space: nowrap; } td.drawn { padding-block: 0; }
thead th:not(:first-child):not(.drawn) { text-align: right; }
tr > th:first-child { position: sticky; left: 0; z-index: 1; background: var(--paper); font-weight: 600;
  min-width: clamp(8.5rem, 15vw, 12rem); max-width: 16rem; overflow-wrap: anywhere;
  border-right: 1px solid var(--line); }
thead tr > th:first-child { background: var(--shade); }
.oracle > * { font-style: italic; color: var(--quiet); }
.wide { min-width: 14rem; width: 40%; } th.stage { white-space: nowrap; min-width: 0; }
.swatch { background: var(--stage); display: inline-block; width: .8em; height: .8em; border-radius: 2px;
  margin-right: .35em; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.more { margin: .8rem 0; } summary { cursor: pointer; font-weight: 600; color: var(--mark); }
.more th:first-child { min-width: 9rem; }
svg { display: block; }
svg text { font-size: 11px; font-weight: 400; fill: var(--quiet); font-variant-numeric: tabular-nums; }
.grid { stroke: var(--line); } .axis { stroke: var(--quiet); }
.whisker { stroke: var(--mark); stroke-width: 2.5; stroke-linecap: round; }
.dot { fill: var(--mark); stroke: var(--paper); }
.oracle .whisker { stroke: var(--quiet); } .oracle .dot { fill: var(--paper); stroke: var(--quiet); stroke-width: 2; }
.bar { fill: var(--mark); } .median { stroke: var(--stage-2); stroke-width: 2; }
.stack { width: 100%; height: 20px; } .stack rect { fill: var(--stage); stroke: var(--paper);
  stroke-width: 2px; vector-effect: non-scaling-stroke; }
.stage-0 { --stage: var(--stage-0); } .stage-1 { --stage: var(--stage-1); } .stage-2 { --stage: var(--stage-2); }
.stage-3 { --stage: var(--stage-3); } .stage-4 { --stage: var(--stage-4); } .stage-other { --stage: var(--stage-5); }
.diagonal { stroke: var(--quiet); stroke-dasharray: 4 4; }
.curve { fill: none; stroke: var(--mark); stroke-width: 1.5; }
.bubble { fill: var(--mark); stroke: var(--paper); }
.multiples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)); gap: 1.2rem; }
figure { margin: 0; break-inside: avoid; } figure h4 { margin: 0 0 .3em; }
.multiples figure { display: flex; flex-direction: column; } .multiples h4 { flex: 1; }
.multiples svg { width: 100%; max-width: 20rem; height: auto; }
figcaption { font-size: .82rem; color: var(--quiet); font-variant-numeric: tabular-nums; }
.gallery { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: .6rem 1.5rem; }
.gallery figure { margin-bottom: .8rem; }
.gallery img { display: block; max-width: 100%; height: auto; border-radius: 4px; background: var(--shade); }
.gallery figcaption { display: flex; justify-content: space-between; gap: 1rem; margin-top: .2rem; }
.name { overflow-wrap: anywhere; } .figure-number { white-space: nowrap; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 1rem; }
.card { border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem; font-size: .9rem;
  break-inside: avoid; }
summary h4 { display: inline; margin: 0; } .strips { margin: 1rem 0; }
.card h3 { margin: 0 0 .4em; font-size: 1rem; }
.pairs { margin: .4em 0 0; }
.pairs div { display: flex; gap: .8rem; border-top: 1px solid var(--line); padding: .15rem 0; }
.pairs dt { flex: 0 0 7rem; color: var(--quiet); } .pairs dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
.glossary dt { font-weight: 600; margin-top: .9em; } .glossary dd { margin: 0; }
code { font-size: .82em; font-weight: 400; color: var(--quiet); overflow-wrap: anywhere; }
@page { margin: 12mm; }
@media print { :root { font-size: 9pt; }
  body { max-width: none; padding: 0; } nav { display: none; } a { color: inherit; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } table { font-size: .85rem; }
  .scrolls { overflow: visible; border: 0; } th, td { padding: .25rem .3rem; } thead th { min-width: 0; }
  tr > th:first-child { position: static; min-width: 8rem; } .wide { min-width: 8rem; width: auto; }
  .number { white-space: normal; } table .drawn:not(.wide) svg { width: 7.5rem; height: auto; }
  tr, .gallery figure { break-inside: avoid; } h2, h3, h4, h5 { break-after: avoid; }
  details:not([open])::details-content { content-visibility: visible; display: block; } }
"""
"""CSS."""
