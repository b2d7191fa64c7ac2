"""The style sheet of the html report."""

STYLE = """\
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c1f23; --soft: #5b636d; --line: #d8dde3; --band: #f4f6f8;
  --hit: 0 114 178; --miss: 213 94 0; --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --ink: #e6e9ec; --soft: #a4adb7; --line: #363d45; --band: #1d2126; --hit: 86 180 233;
    --miss: 255 140 60; --link: #8cc8f5; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
header, main { max-width: 72rem; margin: 0 auto; padding: 1rem 1rem 0; }
main { padding: 0 1rem 4rem; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; border-radius: 2px; }
main:focus { outline: none; }
.skip { position: absolute; left: -100vw; background: var(--paper); padding: .5rem 1rem; z-index: 1; }
.skip:focus { left: .5rem; top: .5rem; }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; max-width: none; }
nav li a { display: inline-block; padding: .2rem 0; }
details { margin: .5rem 0; }
summary { cursor: pointer; color: var(--link); padding: .3rem 0; }
header p, header aside { max-width: 46rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 2.2rem 0 .6rem; overflow-wrap: anywhere; }
.lead { font-size: 1.1rem; max-width: 46rem; }
aside { border-left: .25rem solid rgb(var(--miss)); background: var(--band); padding: .1rem 1rem; max-width: 46rem; }
li, dd, p { max-width: 46rem; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; }
.wide { overflow-x: auto; }
.wide + .wide, figure + .wide { margin-top: 1.2rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; min-width: 100%; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; max-width: min(46rem, calc(100vw - 2rem)); }
th, td { padding: .35rem .5rem; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; white-space: normal; }
tbody th { font-weight: 600; }
tbody td:not(.number) { white-space: normal; }
tbody tr:nth-child(even) { background: var(--band); }
.number { text-align: right; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: .2rem 0; text-align: inherit;
  cursor: pointer; text-decoration: underline dotted; text-underline-offset: .2em; }
th[aria-sort="ascending"] button::after { content: " \\2191"; }
th[aria-sort="descending"] button::after { content: " \\2193"; }
.sortable thead th, .sortable tbody td:not(.number) { white-space: nowrap; }
.filter { display: inline-block; margin: 0 1rem .5rem 0; font-size: .9rem; }
.filter input { font: inherit; color: inherit; background: var(--band); border: 1px solid var(--soft);
  border-radius: .25rem; padding: .25rem .5rem; max-width: 12rem; }
tr:target { outline: 3px solid var(--link); outline-offset: -3px; }
h3 { font-size: 1.05rem; line-height: 1.3; margin: 1.8rem 0 .5rem; overflow-wrap: anywhere; }
h4 { font-size: .95rem; margin: 1.2rem 0 .3rem; }
figure { margin: 0; max-width: 42rem; }
figure svg { display: block; width: 100%; height: auto; font-family: system-ui, sans-serif; }
figcaption { color: var(--soft); font-size: .9rem; }
.matrix { min-width: 0; }
.matrix td, .matrix th { text-align: center; padding: .3rem .5rem; border: 1px solid var(--line); }
.matrix tbody tr { background: none; }
.matrix tbody th { text-align: right; }
.matrix thead span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 9rem; }
.matrix .hit { background: rgb(var(--hit) / calc(var(--share) * .55)); }
.matrix .miss { background: rgb(var(--miss) / calc(var(--share) * .8)); }
.mistakes { list-style: none; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); }
.mistakes img { width: 100%; aspect-ratio: 1; object-fit: cover; display: block; border-radius: .3rem;
  background: var(--band); }
.mistakes p { margin: .3rem 0 0; font-size: .9rem; line-height: 1.35; }
.mistakes .key { color: var(--soft); font-size: .75rem; }
pre { font: .85rem/1.5 ui-monospace, monospace; background: var(--band); padding: .6rem 1rem; margin: 0;
  overflow-x: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .9rem; }
dt { color: var(--soft); }
dd { margin: 0; min-width: 0; }
@media (max-width: 30rem) {
  tbody th, .sortable tbody th { white-space: normal; min-width: 7rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
}
@media print { nav, .skip { display: none; } .wide { overflow: visible; } section { break-inside: avoid; } }
"""
